"""Imports packages that only some commands need and that may not be installed."""

import importlib
from types import ModuleType

from retinanet_tpu import errors


def optional_import(
    name: str, extra: str, *, needed_by: str = "", package: str = ""
) -> ModuleType:
    """Imports a module of an optional package.

    Args:
      name: The module, such as "tf2onnx.convert".
      extra: The extra of this package that installs the module, such as "onnx".
      needed_by: The file or setting that requires the module, for the message.
      package: The package that may be missing, if the module is one of ours.
    Returns:
      The module.
    Raises:
      MissingPackageError: The module cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = package or name.partition(".")[0]
        subject = f"{needed_by} requires {package}, which" if needed_by else package
        raise errors.MissingPackageError(
            f"{subject} is missing: pip install -e '.[{extra}]'"
        ) from error
