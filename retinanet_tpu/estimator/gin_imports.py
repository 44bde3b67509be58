"""Imports the modules that gin files name, for configurables outside of the package."""

import importlib
from collections.abc import Sequence

import tensorflow as tf
from gin import config_parser

from retinanet_tpu import errors


class _Delegate(config_parser.ParserDelegate):
    """A parser delegate that resolves no names."""

    def configurable_reference(self, scoped_name, evaluate):
        return scoped_name

    def macro(self, name):
        return name


def import_modules(gin_files: Sequence[str]) -> None:
    """Imports the modules that gin files import.

    Args:
      gin_files: The paths of the files. Files that they include are not read.
    Raises:
      UserError: A module cannot be imported.
    """
    for path in gin_files:
        with tf.io.gfile.GFile(path) as file:
            statements = list(config_parser.ConfigParser(file.read(), _Delegate()))
        for statement in statements:
            if isinstance(statement, config_parser.ImportStatement):
                _import(statement.module, path)


def without_imports(text: str) -> str:
    """Returns gin text without its import statements.

    Args:
      text: The text of gin.config_str.
    """
    lines = text.splitlines(keepends=True)
    return "".join(x for x in lines if not x.startswith(("import ", "from ")))


def _import(module: str, path: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise errors.UserError(
            f"{path} imports {module}: {error}. Add the directory of the module to "
            "PYTHONPATH."
        ) from error
