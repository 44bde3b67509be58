"""Checks and configures the TPU packages before TensorFlow is imported.

TensorFlow's TPU build loads libtpu while it is imported. It aborts the process if the
version of libtpu does not fit. TPUs from v5 on need environment variables at that time.
Each program imports `startup.cpu` or `startup.tpu` first. Both call `run`, which reads
only package metadata. Without a TPU build of TensorFlow it does nothing.
"""

import contextlib
import operator
import os
import pathlib
import re
import sys
from collections.abc import Mapping, MutableMapping
from importlib import metadata

from retinanet_tpu import errors

# The environment before `run` changes it, for programs that this one starts.
ENVIRONMENT = dict(os.environ)

# The libtpu that each TPU build needs; docs/guides/tpu.md lists the tests.
LIBTPU = {"2.19": "libtpu==0.0.10", "2.20": "libtpu>=0.0.14,<0.0.22"}
_OPERATORS = {"==": operator.eq, ">=": operator.ge, "<": operator.lt}
# Packages that install the same files as tensorflow-tpu.
_OTHER_BUILDS = ("tensorflow", "tensorflow-cpu", "tf-nightly", "tf-nightly-cpu")

_PLUGIN = "TF_PLUGGABLE_DEVICE_LIBRARY_PATH"
_MLIR_BRIDGE = "--tf_mlir_enable_mlir_bridge"
_OLDEST_PJRT_GENERATION = 5
_PCI_DEVICES = pathlib.Path("/sys/bus/pci/devices")
_GOOGLE = "0x1ae0"
# v5p, v5e, v6e and v7x. Source: the table of PCI devices in jax's hardware_utils.py.
_PJRT_CHIPS = ("0x0062", "0x0063", "0x006f", "0x0076")


def run(*, uses_tpu: bool) -> None:
    """Checks the packages, then sets the variables that TensorFlow reads on import.

    Exits the process with a message if the packages do not fit.

    Args:
      uses_tpu: Whether the program computes on the TPUs of this machine.
    """
    build = _version("tensorflow-tpu")
    if build is None:
        return
    try:
        check(build, os.environ)
    except errors.UserError as error:
        sys.exit(f"error: {error}")
    if uses_tpu:
        set_pjrt_variables(os.environ)
    else:
        leave_tpu(os.environ)


def check(build: str, environment: Mapping[str, str]) -> None:
    """Checks that TensorFlow's TPU build can be imported.

    Args:
      build: The version of tensorflow-tpu.
      environment: The environment of the process.
    Raises:
      UserError: Another build of TensorFlow overwrites this one, or the import would
        abort; contains the command that corrects it.
    """
    needed = LIBTPU.get(".".join(build.split(".")[:2]), "")
    for name in _OTHER_BUILDS:
        if other := _version(name):
            raise errors.UserError(
                f"{name} {other} and tensorflow-tpu {build} are both installed, and "
                f"each overwrites the other; run: pip uninstall -y {name} "
                f"tensorflow-tpu && pip install 'tensorflow-tpu=={build}'"
                + (f" '{needed}'" if needed else "")
            )
    if environment.get("TPU_LOAD_LIBRARY") == "0":
        if environment.get(_PLUGIN):
            raise errors.UserError(
                f"TPU_LOAD_LIBRARY is 0 and {_PLUGIN} is set; with both, the import of "
                f"TensorFlow aborts; to disable the TPU, run: unset {_PLUGIN}"
            )
        return
    libtpu = _version("libtpu")
    if libtpu and needed and _loads_package(environment) and not _fits(libtpu, needed):
        raise errors.UserError(
            f"libtpu {libtpu} does not fit tensorflow-tpu {build}, whose import can "
            "abort with it (the extra [preflight] needs an environment without "
            f"tensorflow-tpu); run: pip install '{needed}'"
        )


def check_no_tpu_build() -> None:
    """Checks that TensorFlow is no TPU build; for the engine PJRT.

    Raises:
      UserError: tensorflow-tpu is installed. It contains no XLA for CPUs, by which the
        engine lowers steps, and it loads a libtpu that does not fit jax.
    """
    if build := _version("tensorflow-tpu"):
        raise errors.UserError(
            "make_strategy.engine = 'pjrt' needs TensorFlow for CPUs, but "
            f"tensorflow-tpu {build} is installed; install the engine in its own "
            "environment: python3 -m venv pjrt && pjrt/bin/pip install -e '.[xla-tpu]'"
        )


def set_pjrt_variables(environment: MutableMapping[str, str]) -> None:
    """Sets the variables that TensorFlow needs for TPUs from v5 on.

    Variables that are already set remain. Older TPUs need none. If libtpu is not
    installed as a package, the image of the machine sets the variables.

    Args:
      environment: The environment of the process, which is changed.
    """
    library = _libtpu_library()
    is_disabled = environment.get("TPU_LOAD_LIBRARY") == "0"
    if library is None or is_disabled or not needs_pjrt(environment):
        return
    environment.setdefault("PJRT_DEVICE", "TPU")
    environment.setdefault("NEXT_PLUGGABLE_DEVICE_USE_C_API", "true")
    environment.setdefault(_PLUGIN, library)
    flags = environment.get("TF_XLA_FLAGS", "")
    if _MLIR_BRIDGE not in flags:
        environment["TF_XLA_FLAGS"] = f"{flags} {_MLIR_BRIDGE}=true".strip()


def leave_tpu(environment: MutableMapping[str, str]) -> None:
    """Prevents this process from loading libtpu, which only one process can load.

    Args:
      environment: The environment of the process, which is changed. Variables that are
        already set remain.
    """
    if not environment.get(_PLUGIN):
        environment.setdefault("TPU_LOAD_LIBRARY", "0")


def needs_pjrt(
    environment: Mapping[str, str], pci_devices: pathlib.Path = _PCI_DEVICES
) -> bool:
    """Returns True if the TPUs of this machine are of generation v5 or later.

    Args:
      environment: The environment of the process. TPU_ACCELERATOR_TYPE decides if it is
        set, for example to v5litepod-8 or tpu7x-8.
      pci_devices: The directory in which Linux lists the devices of the machine.
    """
    kind = environment.get("TPU_ACCELERATOR_TYPE", "")
    if generation := re.search(r"\d+", kind):
        return int(generation[0]) >= _OLDEST_PJRT_GENERATION
    for device in pci_devices.glob("*"):
        with contextlib.suppress(OSError):
            vendor = (device / "vendor").read_text().strip()
            chip = (device / "device").read_text().strip()
            if vendor == _GOOGLE and chip in _PJRT_CHIPS:
                return True
    return False


def _loads_package(environment: Mapping[str, str]) -> bool:
    """Returns True if TensorFlow will load the libtpu of the installed package."""
    chosen = environment.get("TPU_LIBRARY_PATH")
    library = _libtpu_library() or ""
    return not chosen or os.path.realpath(chosen) == os.path.realpath(library)


def _libtpu_library() -> str | None:
    """Returns the path of the package's libtpu.so, or None without the package."""
    try:
        return str(metadata.distribution("libtpu").locate_file("libtpu/libtpu.so"))
    except metadata.PackageNotFoundError:
        return None


def _version(package: str) -> str | None:
    """Returns the version of an installed package, or None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _fits(version: str, requirement: str) -> bool:
    """Returns True if a version meets a requirement."""
    bounds = re.findall(r"(==|>=|<)([\d.]+)", requirement)
    return all(
        _OPERATORS[relation](_numbers(version), _numbers(bound))
        for relation, bound in bounds
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))
