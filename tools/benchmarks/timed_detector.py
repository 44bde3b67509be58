"""The process of an artifact that tools/benchmarks/latency.py times.

  python timed_detector.py PATH SIGNATURE THREADS

It says what it runs on, then measures the turns that come in, all in lines of JSON. An
empty SIGNATURE is the usual one.
"""

import retinanet_tpu.startup.cpu

import json
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import stopwatch

from retinanet_tpu import errors

_DTYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}  # onnxruntime's


class Detector(NamedTuple):
    """A loaded artifact."""

    detect_fn: Callable[[np.ndarray], dict[str, np.ndarray]]
    shape: tuple[int | None, ...]  # of its input, None for any
    dtype: Any  # of its input
    runs_on: str


def pictures(batch: int, size: tuple[int, int]) -> np.ndarray:
    """Returns uint8 [batch, *size, 3]: rectangles on noise, the first ever the same."""
    images = []
    for number in range(batch):
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
      path: of a SavedModel, or of a file of one of _LOADERS.
      signature: of the SavedModel, empty for the usual one.
      threads: to run it on.
    Raises:
      UserError: it does not take images, or what runs it is not installed.
    """
    loader = _LOADERS.get(pathlib.Path(path).suffix)
    try:
        if loader:
            detector = loader(path, threads)
        else:
            detector = _load_saved_model(path, signature, threads)
    except ImportError as error:
        raise errors.UserError(f"{path} needs {error.name}: pip install it.") from error
    if len(detector.shape) != 4 or detector.shape[3] not in (None, 3):
        raise errors.UserError(
            f"{path} takes {list(detector.shape)}, which is no batch of images "
            "[B, H, W, 3]; of a SavedModel, name a signature that does: PATH@SIGNATURE."
        )
    return detector


def _load_saved_model(path, signature, threads):
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    signatures = tf.saved_model.load(path).signatures
    name = signature or ("images" if "images" in signatures else "serving_default")
    if name not in signatures:
        raise errors.UserError(
            f"{path} has no signature '{name}'; name one of {sorted(signatures)}: "
            "PATH@SIGNATURE."
        )
    detect_fn = signatures[name]
    specs = detect_fn.structured_input_signature[1]
    key, spec = _only(path, specs.items())

    def detect(images):
        outputs = detect_fn(**{key: tf.constant(images)})
        return {name: value.numpy() for name, value in outputs.items()}

    runs_on = f"TensorFlow {tf.__version__}, signature {name}"
    return Detector(detect, tuple(spec.shape), spec.dtype.as_numpy_dtype, runs_on)


def _load_onnx(path, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"]
    )
    spec = _only(path, session.get_inputs())
    names = [output.name for output in session.get_outputs()]

    def detect(images):
        return dict(zip(names, session.run(names, {spec.name: images}), strict=True))

    shape = tuple(side if isinstance(side, int) else None for side in spec.shape)
    runs_on = f"onnxruntime {onnxruntime.__version__}"
    return Detector(detect, shape, _DTYPES[spec.type], runs_on)


def _load_tflite(path, threads):
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(path, num_threads=threads)
    interpreter.allocate_tensors()
    spec = _only(path, interpreter.get_input_details())
    names = {out["index"]: out["name"] for out in interpreter.get_output_details()}
    for key in interpreter.get_signature_list():  # Has the names that the maker gave.
        outputs = interpreter.get_signature_runner(key).get_output_details()
        names |= {out["index"]: name for name, out in outputs.items()}

    def detect(images):
        [now] = interpreter.get_input_details()
        if tuple(now["shape"]) != images.shape:
            interpreter.resize_tensor_input(spec["index"], images.shape, strict=True)
            interpreter.allocate_tensors()
        interpreter.set_tensor(spec["index"], images)
        interpreter.invoke()
        return {name: interpreter.get_tensor(index) for index, name in names.items()}

    shape = tuple(None if side < 0 else int(side) for side in spec["shape_signature"])
    return Detector(detect, shape, spec["dtype"], f"TensorFlow Lite {tf.__version__}")


_LOADERS = {".onnx": _load_onnx, ".tflite": _load_tflite}


def _only(path, inputs):
    """Returns the input of an artifact, if it is a single one."""
    found = list(inputs)
    if len(found) != 1:
        raise errors.UserError(
            f"{path} takes {len(found)} inputs; one, of images, is due."
        )
    return found[0]


def feeds(detector: Detector, images: np.ndarray) -> list[np.ndarray]:
    """Returns a batch as the detector takes it, in one or more calls.

    Args:
      detector: says what it takes.
      images: uint8 [B, H, W, 3].
    Raises:
      UserError: the batch or the images do not fit.
    """
    batch, *sides = images.shape[:3]
    at_once, *input_sides = detector.shape[:3]
    at_once = at_once or batch
    room = [
        (most or side) - side for most, side in zip(input_sides, sides, strict=True)
    ]
    if batch % at_once or min(room) < 0:
        raise errors.UserError(
            f"A batch of {batch} images of {sides} px does not go into an input of "
            f"{list(detector.shape)}; choose another --batch or --size."
        )
    padded = np.pad(images, [(0, 0), (0, room[0]), (0, room[1]), (0, 0)])
    return np.split(padded.astype(detector.dtype), batch // at_once)


def measure(
    detector: Detector, batch: int, size: tuple[int, int], *, secs: float
) -> dict[str, float | None]:
    """Returns what a turn brings.

    Args:
      detector: whose turn it is.
      batch: images in it.
      size: of an image, height and width, px.
      secs: to measure for, at least one batch.
    Returns:
      What `stopwatch.measure` does, and "objects": found in an image, on average; None
      where the artifact does not count them.
    """
    calls, last = feeds(detector, pictures(batch, size)), {}

    def batches() -> Iterator[None]:
        while True:
            for images in calls:
                last.update(detector.detect_fn(images))
            yield

    result = stopwatch.measure(batches(), batch, secs=secs, warm_up_secs=0.0)
    counts = [v for k, v in last.items() if re.search("(valid|num)_detections", k)]
    return result | {"objects": float(np.mean(counts[0])) if counts else None}


def main() -> None:
    """Runs the process, until nothing more comes in."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What libraries print is no answer.

    def answer(**content):
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
