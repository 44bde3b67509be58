"""Runs one artifact of tools/benchmarks/latency.py.

  python timed_detector.py PATH SIGNATURE THREADS

The process prints its runtime, then reads a case from each line of its input and prints
the measurement. All lines are JSON. An empty SIGNATURE selects the default. For a .xml
file of OpenVINO, SIGNATURE is the precision of its arithmetic, f32 or bf16.
"""

import retinanet_tpu.startup.cpu

import json
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import timer

from retinanet_tpu import errors

# The names of onnxruntime.
_DTYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}

DetectFn = Callable[[np.ndarray], dict[str, np.ndarray]]


class Detector(NamedTuple):
    """A loaded artifact.

    Attributes:
      detect_fn: A function from images to the outputs by name.
      shape: The shape of the input; None for a dimension of any size.
      dtype: The dtype of the input.
      runs_on: A description of the runtime.
    """

    detect_fn: DetectFn
    shape: tuple[int | None, ...]
    dtype: Any
    runs_on: str


def make_images(batch_size: int, size: tuple[int, int]) -> np.ndarray:
    """Returns synthetic images: rectangles on noise.

    Args:
      batch_size: The number of images. Image i does not depend on this number.
      size: The height and width of an image, px.

    Returns:
      uint8 [batch_size, height, width, 3].
    """
    images = []
    for number in range(batch_size):
        rng = np.random.default_rng(number)
        image = rng.integers(0, 60, (*size, 3), np.uint8)
        for _ in range(12):
            y, x = rng.integers(0, size)
            height, width = rng.integers(16, 256, 2)
            box = image[y : y + height, x : x + width]
            box //= 4
            box += rng.integers(0, 240, 3, np.uint8)
        images.append(image)
    return np.stack(images)


def load(path: str, signature: str, threads: int) -> Detector:
    """Loads an artifact into this process.

    Args:
      path: The path of a SavedModel, or of a .onnx, .tflite or .xml file.
      signature: The signature of the SavedModel, or the precision of the .xml file;
        empty for the default.
      threads: The number of threads.

    Raises:
      UserError: The input is not images, or the runtime is not installed.
    """
    extension = pathlib.Path(path).suffix
    loader = _LOADERS.get(extension)
    try:
        if extension == ".xml":
            detector = _load_openvino(path, signature, threads)
        elif loader:
            detector = loader(path, threads)
        else:
            detector = _load_saved_model(path, signature, threads)
    except ImportError as error:
        raise errors.UserError(f"{path} needs {error.name}: pip install it.") from error
    if len(detector.shape) != 4 or detector.shape[3] not in (None, 3):
        raise errors.UserError(
            f"The input of {path} is {list(detector.shape)}; expected a batch of "
            "images [B, H, W, 3]. For a SavedModel, select a signature: PATH@SIGNATURE."
        )
    return detector


def _load_saved_model(path: str, signature: str, threads: int) -> Detector:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    signatures = tf.saved_model.load(path).signatures
    name = signature or ("images" if "images" in signatures else "serving_default")
    if name not in signatures:
        raise errors.UserError(
            f"{path} has no signature '{name}'; select one of {sorted(signatures)}: "
            "PATH@SIGNATURE."
        )
    detect_fn = signatures[name]
    specs = detect_fn.structured_input_signature[1]
    key, spec = _single_input(path, specs.items())

    def detect(images: np.ndarray) -> dict[str, np.ndarray]:
        outputs = detect_fn(**{key: tf.constant(images)})
        return {name: value.numpy() for name, value in outputs.items()}

    runs_on = f"TensorFlow {tf.__version__}, signature {name}"
    return Detector(detect, tuple(spec.shape), spec.dtype.as_numpy_dtype, runs_on)


def _load_onnx(path: str, threads: int) -> Detector:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"]
    )
    spec = _single_input(path, session.get_inputs())
    names = [output.name for output in session.get_outputs()]

    def detect(images: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {spec.name: images}), strict=True))

    shape = tuple(side if isinstance(side, int) else None for side in spec.shape)
    runs_on = f"onnxruntime {onnxruntime.__version__}"
    return Detector(detect, shape, _DTYPES[spec.type], runs_on)


def _load_openvino(path: str, precision: str, threads: int) -> Detector:
    import openvino

    from retinanet_tpu.serving import openvino_format

    compiled = openvino_format.compile_model(
        openvino.Core().read_model(path), num_threads=threads, precision=precision
    )
    spec = _single_input(path, compiled.inputs)
    names = [output.any_name for output in compiled.outputs]

    def detect(images: np.ndarray) -> dict[str, np.ndarray]:
        results = compiled.infer_new_request({spec.any_name: images})
        return {name: results[name] for name in names}

    sides = spec.partial_shape
    shape = tuple(side.get_length() if side.is_static else None for side in sides)
    actual = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    runs_on = f"OpenVINO {openvino.__version__}, {actual}"
    return Detector(detect, shape, spec.element_type.to_dtype(), runs_on)


def _load_tflite(path: str, threads: int) -> Detector:
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(path, num_threads=threads)
    interpreter.allocate_tensors()
    spec = _single_input(path, interpreter.get_input_details())
    names = {out["index"]: out["name"] for out in interpreter.get_output_details()}
    # Signatures contain the outputs' original names.
    for key in interpreter.get_signature_list():
        outputs = interpreter.get_signature_runner(key).get_output_details()
        names |= {out["index"]: name for name, out in outputs.items()}

    def detect(images: np.ndarray) -> dict[str, np.ndarray]:
        [current] = interpreter.get_input_details()
        if tuple(current["shape"]) != images.shape:
            interpreter.resize_tensor_input(spec["index"], images.shape, strict=True)
            interpreter.allocate_tensors()
        interpreter.set_tensor(spec["index"], images)
        interpreter.invoke()
        return {name: interpreter.get_tensor(index) for index, name in names.items()}

    shape = tuple(None if side < 0 else int(side) for side in spec["shape_signature"])
    return Detector(detect, shape, spec["dtype"], f"TensorFlow Lite {tf.__version__}")


_LOADERS = {".onnx": _load_onnx, ".tflite": _load_tflite}


def _single_input(path: str, inputs: Iterable[Any]) -> Any:
    """Returns the only input of an artifact."""
    listed = list(inputs)
    if len(listed) != 1:
        raise errors.UserError(
            f"{path} has {len(listed)} inputs; expected a single one, of images."
        )
    return listed[0]


def make_feeds(detector: Detector, images: np.ndarray) -> list[np.ndarray]:
    """Splits and pads a batch to the detector's input.

    Args:
      detector: The detector.
      images: The batch, uint8 [B, H, W, 3].

    Returns:
      The input of each call of the detector.

    Raises:
      UserError: The batch size or the image size does not fit.
    """
    batch_size, *sides = images.shape[:3]
    call_size, *input_sides = detector.shape[:3]
    call_size = call_size or batch_size
    padding = [
        (input_side or side) - side
        for input_side, side in zip(input_sides, sides, strict=True)
    ]
    if batch_size % call_size or min(padding) < 0:
        raise errors.UserError(
            f"A batch of {batch_size} images of {sides} px does not fit an input of "
            f"{list(detector.shape)}; choose another --batch_size or --size."
        )
    padded = np.pad(images, [(0, 0), (0, padding[0]), (0, padding[1]), (0, 0)])
    return np.split(padded.astype(detector.dtype), batch_size // call_size)


def measure(
    detector: Detector, batch_size: int, size: tuple[int, int], *, secs: float
) -> dict[str, float | None]:
    """Measures one turn of a detector.

    Args:
      detector: The detector.
      batch_size: The number of images in a batch.
      size: The height and width of an image, px.
      secs: The duration of the measurement; at least one batch is processed.

    Returns:
      The measurement of `timer.measure`, and "objects": the mean number of detections
      per image, or None if the artifact does not return it.
    """
    feeds = make_feeds(detector, make_images(batch_size, size))
    outputs: dict[str, np.ndarray] = {}

    def batches() -> Iterator[None]:
        while True:
            for images in feeds:
                outputs.update(detector.detect_fn(images))
            yield

    result = timer.measure(batches(), batch_size, secs=secs, warm_up_secs=0.0)
    counts = [v for k, v in outputs.items() if re.search("(valid|num)_detections", k)]
    return result | {"objects": float(np.mean(counts[0])) if counts else None}


def main() -> None:
    """Answers requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Libraries print to stdout too; their output must not mix with JSON.

    def answer(**content: Any) -> None:
        print(json.dumps(content), file=answers, flush=True)

    path, signature, threads = sys.argv[1:]
    try:
        detector = load(path, signature, int(threads))
        answer(runs_on=detector.runs_on)
        for line in sys.stdin:
            answer(**measure(detector, **json.loads(line)))
    except ValueError as error:
        answer(error=str(error))


if __name__ == "__main__":
    main()
