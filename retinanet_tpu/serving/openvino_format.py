"""Converts ONNX models to OpenVINO's files, and compiles those for CPUs."""

import pathlib
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from retinanet_tpu.optional_packages import optional_import

if TYPE_CHECKING:
    import onnx
    import openvino

_EXTRA = "openvino"
# The key in rt_info that contains the metadata of an ONNX model.
_METADATA = "retinanet_tpu"


def check_installed() -> None:
    """Checks that OpenVINO is installed.

    Raises:
      MissingPackageError: The package is missing.
    """
    optional_import("openvino", _EXTRA)


def convert(model: "onnx.ModelProto") -> dict[str, bytes]:
    """Converts an ONNX model to OpenVINO's intermediate representation (IR).

    Weights remain float32. The device that runs the model chooses the precision of its
    arithmetic.

    Args:
      model: The model. Its metadata_props become part of the file.
    Returns:
      The contents of the two files by extension, ".xml" for the graph and ".bin" for
      the weights.
    Raises:
      MissingPackageError: OpenVINO is missing.
    """
    openvino = optional_import("openvino", _EXTRA)
    converted = openvino.Core().read_model(model.SerializeToString())
    for entry in model.metadata_props:
        converted.set_rt_info(entry.value, [_METADATA, entry.key])
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.xml")
        openvino.save_model(converted, path, compress_to_fp16=False)
        return {
            extension: path.with_suffix(extension).read_bytes()
            for extension in (".xml", ".bin")
        }


def read_metadata(model: "openvino.Model") -> Mapping[str, str]:
    """Returns the metadata of the ONNX model that a model was converted from.

    Args:
      model: The model.
    """
    if not model.has_rt_info([_METADATA]):
        return {}
    entries: dict[str, str] = model.get_rt_info([_METADATA]).value
    return entries


def compile_model(
    model: "openvino.Model", *, num_threads: int | None = None, precision: str = ""
) -> "openvino.CompiledModel":
    """Compiles a model for the CPU, with the least time per batch.

    Args:
      model: The model.
      num_threads: The number of threads; None leaves it to OpenVINO.
      precision: The type of the network's arithmetic, "f32" or "bf16". By default it is
        OpenVINO's choice: bf16 if the CPU has instructions for it, else f32. Boxes are
        decoded in f32.
    Raises:
      MissingPackageError: OpenVINO is missing.
    """
    openvino = optional_import("openvino", _EXTRA)
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if num_threads is not None:
        settings["INFERENCE_NUM_THREADS"] = num_threads
    if precision:
        settings["INFERENCE_PRECISION_HINT"] = precision
    return openvino.Core().compile_model(model, "CPU", settings)
