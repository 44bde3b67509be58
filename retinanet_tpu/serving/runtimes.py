"""What runs exported models: TensorFlow, onnxruntime and TensorFlow Lite.

Each `load_…` returns a function: uint8 [B, H, W, 3] RGB images, with B > 0, ->
Detections of NumPy arrays, in px of the images and with the data set's ids.
"""

import contextlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from retinanet_tpu import errors, structures
from retinanet_tpu.data import transforms
from retinanet_tpu.detections import decode
from retinanet_tpu.estimator.model_dir import files
from retinanet_tpu.serving import tflite_format

_OUTPUTS = ("boxes_xyxy", "scores", "class_ids", "valid_detections")
_IMAGES = {"images": "uint8 [?, ?, ?, 3]"}
# The signature serving_default, for exports of before there was one for batches.
_ONE_IMAGE = {"image": "float32 [?, ?, 3]", "image_id": "int32 []"}
_OUTPUTS_OF_ONE = ("boxes", "scores", "class_ids", "valid_detections")
_TENSORRT_NODE = b"EfficientNMS_TRT"
_ONNX_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


def load_saved_model(path: str, *, num_threads: int | None = None) -> Callable:
    """Loads a SavedModel: its signature images, else serving_default one by one.

    Args:
      path: directory of the SavedModel.
      num_threads: sets TensorFlow's own, of the whole process; None leaves them.
    Raises:
      UserError: it is damaged, has other signatures, or TensorFlow runs with other
        threads, or takes the path for a pattern. The function raises it for an image
        that the export refuses.
    """
    files.check_path(path, "--model")
    if num_threads is not None:
        _set_tensorflow_threads(num_threads)
    with _named(path):
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
    _check(
        f"Signature {name} of {path}",
        {key: _spelled(spec.dtype.name, spec.shape) for key, spec in specs.items()},
        signatures[name].structured_outputs,
        expected=(_IMAGES, _OUTPUTS) if is_batched else (_ONE_IMAGE, _OUTPUTS_OF_ONE),
    )

    # These hold on to `model`, which owns the weights, and not to its signature alone.
    def detect(pictures):
        try:
            with requesting():
                found = model.signatures["images"](images=tf.constant(pictures))
        except errors.UserError:
            if len(pictures) == 1:
                raise
            # The export may accept fewer images at once.
            return _joined(map(detect, np.array_split(pictures, 2)))
        return detections(found)

    def detect_one_by_one(pictures):
        serve, image_id = model.signatures["serving_default"], tf.constant(0)
        with requesting():
            found = [
                serve(image=tf.constant(picture, tf.float32), image_id=image_id)
                for picture in pictures
            ]
        stacked = {key: np.stack([x[key] for x in found]) for key in _OUTPUTS_OF_ONE}
        return detections(stacked | {"boxes_xyxy": stacked["boxes"]})

    return detect if is_batched else detect_one_by_one


def load_onnx(path: str, *, num_threads: int | None = None) -> Callable:
    """Loads an ONNX file, for a GPU if there is one that onnxruntime can use.

    Args:
      path: of the file, local or remote.
      num_threads: of the CPU; None leaves it to onnxruntime.
    Raises:
      UserError: onnxruntime is missing, or the file is damaged, for TensorRT, or no
        detector of ours.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise errors.UserError(
            f"{path} needs onnxruntime, which is missing: pip install -e '.[onnx]'"
        ) from error
    with _named(path):
        content = _read(path)
    if _TENSORRT_NODE in content:
        raise errors.UserError(
            f"{path} ends in EfficientNMS_TRT, which only TensorRT has; make an engine "
            "with tools/deploy/tensorrt/build_engine.py, or name the model.onnx of an "
            "export."
        )
    options = onnxruntime.SessionOptions()
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    available = onnxruntime.get_available_providers()
    providers = [name for name in _ONNX_PROVIDERS if name in available]
    with _named(path):
        session = onnxruntime.InferenceSession(content, options, providers=providers)
    types = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
    inputs = session.get_inputs()
    _check(
        path,
        {x.name: _spelled(types.get(x.type, x.type), x.shape) for x in inputs},
        [x.name for x in session.get_outputs()],
        expected=(_IMAGES, _OUTPUTS),
    )

    def detect(pictures):
        arrays = session.run(_OUTPUTS, {"images": pictures})
        return detections(dict(zip(_OUTPUTS, arrays, strict=True)))

    return detect


def load_tflite(path: str, *, num_threads: int | None = None) -> Callable:
    """Loads a TFLite file; images are resized for it, and go through one by one.

    Args:
      path: of the file, local or remote.
      num_threads: of the CPU; None leaves it to TensorFlow Lite.
    Raises:
      UserError: the file is damaged or no detector of ours.
    """
    with _named(path):
        interpreter = tflite_format.interpreter(_read(path), num_threads=num_threads)
        signature = interpreter.get_signature_runner()
    inputs = {
        name: (np.dtype(x["dtype"]).name, x["shape"].tolist())
        for name, x in signature.get_input_details().items()
    }
    canvas_size = next(iter(inputs.values()))[1][1:3]
    _check(
        path,
        {name: _spelled(*spec) for name, spec in inputs.items()},
        signature.get_output_details(),
        expected=({"inputs": _spelled("float32", [1, *canvas_size, 3])}, _OUTPUTS),
    )

    def detect_one(picture):
        inputs, scales = transforms.letterbox(picture[None], canvas_size)
        found = detections(signature(inputs=inputs.numpy()))
        size = tf.constant([picture.shape[:2]])
        boxes_yxyx = decode.to_original(found.boxes_yxyx, scales[None], size)
        return found._replace(boxes_yxyx=boxes_yxyx.numpy())

    def detect(pictures):
        return _joined(map(detect_one, pictures))

    return detect


def detections(found: Mapping[str, Any]) -> structures.Detections:
    """Returns a model's outputs for a batch as Detections of NumPy arrays.

    Args:
      found: boxes_xyxy, scores, class_ids and valid_detections; others are passed over.
    """
    boxes_xyxy, scores, class_ids, count = (np.asarray(found[key]) for key in _OUTPUTS)
    return structures.Detections(
        boxes_xyxy[..., [1, 0, 3, 2]], scores, class_ids, count
    )


@contextlib.contextmanager
def requesting() -> Iterator[None]:
    """Raises UserError with the reason where a SavedModel refuses a request."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        text = error.message.rpartition("assertion failed: ")[2].partition("\n")[0]
        raise errors.UserError(re.sub(r"[][]", "", text) + ".") from error


def _joined(parts: Iterable[structures.Detections]) -> structures.Detections:
    """Returns several batches as one."""
    return structures.Detections(*map(np.concatenate, zip(*parts, strict=True)))


def _set_tensorflow_threads(num_threads: int) -> None:
    try:
        tf.config.threading.set_intra_op_parallelism_threads(num_threads)
        tf.config.threading.set_inter_op_parallelism_threads(num_threads)
    except RuntimeError as error:
        raise errors.UserError(
            f"TensorFlow already runs with other threads than {num_threads}; load the "
            "SavedModel before anything else uses TensorFlow."
        ) from error


def _check(what: str, inputs, outputs: Collection[str], *, expected) -> None:
    """Raises UserError where inputs (name -> type) or outputs (names) differ."""
    wanted_inputs, wanted_outputs = expected
    if inputs != wanted_inputs or not set(wanted_outputs).issubset(outputs):
        raise errors.UserError(
            f"{what} maps {_listed(inputs)} to {', '.join(sorted(outputs))}, where "
            f"{_listed(wanted_inputs)} to {', '.join(sorted(wanted_outputs))} is "
            "expected; make it with `python -m retinanet_tpu.export`."
        )


def _spelled(dtype: str, shape) -> str:
    """Returns a type such as "uint8 [?, ?, ?, 3]"."""
    sides = [str(side) if isinstance(side, int) else "?" for side in shape]
    return f"{dtype} [{', '.join(sides)}]"


def _listed(types: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {spec}" for name, spec in sorted(types.items()))


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Turns a runtime's failure to read a file into an error that names it."""
    try:
        yield
    except Exception as error:  # What the runtimes raise has no class in common.
        raise errors.UserError(f"{path} cannot be loaded: {error}") from error


def _read(path: str) -> bytes:
    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read()
