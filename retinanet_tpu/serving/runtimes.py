"""Runs exported models in TensorFlow, onnxruntime, OpenVINO and TensorFlow Lite.

Each `load_…` returns a `DetectFn` and the metadata of the file.
"""

import contextlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tpu import errors, structures
from retinanet_tpu.data import transforms
from retinanet_tpu.detections import decode
from retinanet_tpu.estimator.model_dir import files
from retinanet_tpu.optional_packages import optional_import
from retinanet_tpu.serving import openvino_format, tflite_format

# uint8 [B, H, W, 3] RGB images, with B > 0, -> Detections of NumPy arrays, in px of the
# images and with the dataset's ids.
DetectFn = Callable[[np.ndarray], structures.Detections]
# The same as tensors, with the outputs by name.
SignatureFn = Callable[[tf.Tensor], Mapping[str, tf.Tensor]]

_OUTPUTS = ("boxes_xyxy", "scores", "class_ids", "valid_detections")
_IMAGES = {"images": "uint8 [?, ?, ?, 3]"}
# The signature serving_default, for old exports without the signature images.
_ONE_IMAGE = {"image": "float32 [?, ?, 3]", "image_id": "int32 []"}
_OUTPUTS_OF_ONE = ("boxes", "scores", "class_ids", "valid_detections")
_TENSORRT_NODE = b"EfficientNMS_TRT"
_ONNX_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


class Loaded(NamedTuple):
    """A loaded model.

    Attributes:
      detect_fn: The function that detects.
      metadata: The texts by name in an ONNX or OpenVINO file; {} for other formats.
    """

    detect_fn: DetectFn
    metadata: Mapping[str, str]


class _Signature(NamedTuple):
    """The inputs and outputs of a model."""

    inputs: Mapping[str, str]  # name -> type, as `_format_spec` writes it
    outputs: Collection[str]


def load_saved_model(path: str, *, num_threads: int | None = None) -> Loaded:
    """Loads a SavedModel.

    The function calls the signature `images`, or `serving_default` for each image if
    there is no `images`.

    Args:
      path: The directory of the SavedModel.
      num_threads: The number of TensorFlow's threads, for the whole process; None
        leaves it unchanged.
    Raises:
      UserError: The SavedModel is corrupt or has other signatures; TensorFlow already
        runs with another number of threads; or TensorFlow would interpret the path as a
        pattern. The function raises it for an image that the export rejects.
    """
    files.check_path(path, "--model")
    if num_threads is not None:
        set_tensorflow_threads(num_threads)
    with _with_path_in_error(path):
        model = tf.saved_model.load(path)
    signatures = model.signatures
    if not {"images", "serving_default"} & set(signatures):
        raise errors.UserError(
            f"{path} has neither signature images nor serving_default, only "
            f"{', '.join(signatures) or 'none'}; export the model again."
        )
    is_batched = "images" in signatures
    name = "images" if is_batched else "serving_default"
    specs = signatures[name].structured_input_signature[1]
    inputs = {
        key: _format_spec(spec.dtype.name, spec.shape) for key, spec in specs.items()
    }
    _check_signature(
        f"Signature {name} of {path}",
        _Signature(inputs, signatures[name].structured_outputs),
        expected=_Signature(_IMAGES, _OUTPUTS)
        if is_batched
        else _Signature(_ONE_IMAGE, _OUTPUTS_OF_ONE),
    )

    # These closures must hold `model`: it owns the weights, a signature does not.
    def detect_images(images: tf.Tensor) -> Mapping[str, tf.Tensor]:
        return model.signatures["images"](images=images)

    def detect_one_by_one(images: np.ndarray) -> structures.Detections:
        serve = model.signatures["serving_default"]
        image_id = tf.constant(0)
        with request_errors():
            outputs = [
                serve(image=tf.constant(image, tf.float32), image_id=image_id)
                for image in images
            ]
        stacked = {key: np.stack([x[key] for x in outputs]) for key in _OUTPUTS_OF_ONE}
        return to_detections(stacked | {"boxes_xyxy": stacked["boxes"]})

    detect_fn = splitting(detect_images) if is_batched else detect_one_by_one
    return Loaded(detect_fn, {})


def splitting(fn: SignatureFn) -> DetectFn:
    """Returns a function that splits a batch with more images than fn accepts.

    Args:
      fn: The signature `images`: uint8 [B, H, W, 3] -> its outputs by name.
    Returns:
      The function. It raises UserError for an image that fn rejects.
    """

    def detect(images: np.ndarray) -> structures.Detections:
        try:
            with request_errors():
                outputs = fn(tf.constant(images))
        except errors.UserError:
            if len(images) == 1:
                raise
            return _concatenate(map(detect, np.array_split(images, 2)))
        return to_detections(outputs)

    return detect


def load_onnx(path: str, *, num_threads: int | None = None) -> Loaded:
    """Loads an ONNX file, on a GPU if onnxruntime has one.

    Args:
      path: The file, local or remote.
      num_threads: The number of CPU threads; None leaves it to onnxruntime.
    Raises:
      UserError: onnxruntime is missing, or the file is corrupt, is for TensorRT, or is
        not a detector of this package.
    """
    onnxruntime = optional_import("onnxruntime", "onnx", needed_by=path)
    with _with_path_in_error(path):
        content = _read(path)
    if _TENSORRT_NODE in content:
        raise errors.UserError(
            f"{path} ends in EfficientNMS_TRT, which only TensorRT has; build an "
            "engine with tools/deploy/tensorrt/build_engine.py, or give the model.onnx "
            "of an export."
        )
    options = onnxruntime.SessionOptions()
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    available = onnxruntime.get_available_providers()
    providers = [name for name in _ONNX_PROVIDERS if name in available]
    with _with_path_in_error(path):
        session = onnxruntime.InferenceSession(content, options, providers=providers)
    types = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
    inputs = {
        x.name: _format_spec(types.get(x.type, x.type), x.shape)
        for x in session.get_inputs()
    }
    _check_signature(
        path,
        _Signature(inputs, [x.name for x in session.get_outputs()]),
        expected=_Signature(_IMAGES, _OUTPUTS),
    )

    def detect(images: np.ndarray) -> structures.Detections:
        arrays = session.run(_OUTPUTS, {"images": images})
        return to_detections(dict(zip(_OUTPUTS, arrays, strict=True)))

    return Loaded(detect, session.get_modelmeta().custom_metadata_map)


def load_openvino(path: str, *, num_threads: int | None = None) -> Loaded:
    """Loads an OpenVINO model on the CPU, in bfloat16 if the CPU has it.

    Args:
      path: The .xml file, local or remote, with the .bin file beside it.
      num_threads: The number of CPU threads; None leaves it to OpenVINO.
    Raises:
      UserError: OpenVINO is missing, or the file is corrupt or is not a detector of
        this package.
    """
    openvino = optional_import("openvino", "openvino", needed_by=path)
    with _with_path_in_error(path):
        weights = _read(os.path.splitext(path)[0] + ".bin")
        model = openvino.Core().read_model(_read(path), weights)
        compiled = openvino_format.compile_model(model, num_threads=num_threads)
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    logging.info("openvino | %s runs in %s on this CPU", path, precision)
    types = {"u8": "uint8", "f32": "float32"}
    inputs = {}
    for port in compiled.inputs:
        name = port.element_type.get_type_name()
        sides = [x.get_length() if x.is_static else None for x in port.partial_shape]
        inputs[port.any_name] = _format_spec(types.get(name, name), sides)
    outputs = [port.any_name for port in compiled.outputs]
    _check_signature(
        path, _Signature(inputs, outputs), expected=_Signature(_IMAGES, _OUTPUTS)
    )

    def detect(images: np.ndarray) -> structures.Detections:
        # A new request for each call, as threads may call at the same time.
        results = compiled.infer_new_request({"images": images})
        return to_detections({key: results[key] for key in _OUTPUTS})

    return Loaded(detect, openvino_format.read_metadata(model))


def load_tflite(path: str, *, num_threads: int | None = None) -> Loaded:
    """Loads a TFLite file; its function resizes images and processes them one by one.

    Args:
      path: The file, local or remote.
      num_threads: The number of CPU threads; None leaves it to TensorFlow Lite.
    Raises:
      UserError: The file is corrupt or not a detector of this package.
    """
    with _with_path_in_error(path):
        interpreter = tflite_format.make_interpreter(
            _read(path), num_threads=num_threads
        )
        # int8 ranges may be such that the runtime has no kernel for them.
        interpreter.allocate_tensors()
        signature = interpreter.get_signature_runner()
    inputs = {
        name: (np.dtype(x["dtype"]).name, x["shape"].tolist())
        for name, x in signature.get_input_details().items()
    }
    canvas_size = next(iter(inputs.values()))[1][1:3]
    _check_signature(
        path,
        _Signature(
            {name: _format_spec(*spec) for name, spec in inputs.items()},
            signature.get_output_details(),
        ),
        expected=_Signature(
            {"inputs": _format_spec("float32", [1, *canvas_size, 3])}, _OUTPUTS
        ),
    )

    def detect_one(image: np.ndarray) -> structures.Detections:
        inputs, scales = transforms.letterbox(image[None], canvas_size)
        detections = to_detections(signature(inputs=inputs.numpy()))
        size = tf.constant([image.shape[:2]])
        boxes_yxyx = decode.to_original(detections.boxes_yxyx, scales[None], size)
        return detections._replace(boxes_yxyx=boxes_yxyx.numpy())

    def detect(images: np.ndarray) -> structures.Detections:
        return _concatenate(map(detect_one, images))

    return Loaded(detect, {})


def to_detections(
    outputs: Mapping[str, tf.Tensor | np.ndarray],
) -> structures.Detections:
    """Returns a model's outputs for a batch as Detections of NumPy arrays.

    Args:
      outputs: The tensors boxes_xyxy, scores, class_ids and valid_detections by name;
        others are ignored.
    """
    boxes_xyxy, scores, class_ids, count = (
        np.asarray(outputs[key]) for key in _OUTPUTS
    )
    return structures.Detections(
        boxes_xyxy[..., [1, 0, 3, 2]], scores, class_ids, count
    )


@contextlib.contextmanager
def request_errors() -> Iterator[None]:
    """Raises UserError with the reason if a SavedModel rejects a request."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        text = error.message.rpartition("assertion failed: ")[2].partition("\n")[0]
        raise errors.UserError(re.sub(r"[][]", "", text) + ".") from error


def _concatenate(batches: Iterable[structures.Detections]) -> structures.Detections:
    """Returns several batches as one."""
    return structures.Detections(*map(np.concatenate, zip(*batches, strict=True)))


def set_tensorflow_threads(num_threads: int) -> None:
    """Sets the number of TensorFlow's threads, for the whole process.

    Args:
      num_threads: The number of threads.
    Raises:
      UserError: TensorFlow already runs with another number of threads.
    """
    try:
        tf.config.threading.set_intra_op_parallelism_threads(num_threads)
        tf.config.threading.set_inter_op_parallelism_threads(num_threads)
    except RuntimeError as error:
        raise errors.UserError(
            f"TensorFlow already runs with other threads than {num_threads}; load the "
            "SavedModel before anything else uses TensorFlow."
        ) from error


def _check_signature(name: str, actual: _Signature, *, expected: _Signature) -> None:
    """Raises UserError if inputs differ or outputs are missing."""
    has_outputs = set(expected.outputs).issubset(actual.outputs)
    if actual.inputs != expected.inputs or not has_outputs:
        raise errors.UserError(
            f"{name} maps {_format_specs(actual.inputs)} to "
            f"{', '.join(sorted(actual.outputs))}, where "
            f"{_format_specs(expected.inputs)} to "
            f"{', '.join(sorted(expected.outputs))} is expected; make it with "
            "`python -m retinanet_tpu.export`."
        )


def _format_spec(dtype: str, shape: Sequence[int | str | None]) -> str:
    """Returns a type such as "uint8 [?, ?, ?, 3]"."""
    sides = [str(side) if isinstance(side, int) else "?" for side in shape]
    return f"{dtype} [{', '.join(sides)}]"


def _format_specs(types: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {spec}" for name, spec in sorted(types.items()))


@contextlib.contextmanager
def _with_path_in_error(path: str) -> Iterator[None]:
    """Turns any error of a runtime that reads a file into one with its path."""
    try:
        yield
    except Exception as error:  # The runtimes' errors have no common class.
        raise errors.UserError(f"{path} cannot be loaded: {error}") from error


def _read(path: str) -> bytes:
    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read()
