"""Builds a TensorRT engine from an exported model and measures its latency.

  python -m retinanet_tpu.export --model_dir=run1 --format=tensorrt
  python tools/deploy/tensorrt/build_engine.py --onnx=EXPORT/model_tensorrt.onnx \
    --output=model.engine [--precision=fp32|fp16|int8] [--batch_size=1,8,16] \
    [--calibration_images=FOLDER] [--cache=int8.cache] [--workspace_gib=4]

Run it on the machine that will use the engine: an engine is built for one kind of GPU
and one version of TensorRT. It needs `pip install tensorrt cuda-python`. --batch_size
is the smallest, the usual and the largest batch, or one number for all. The engine is
tuned for the usual batch, which is also used for the measurement.

* fp32 builds the file without changes (with TF32, TensorRT's default).
* fp16 and int8 let TensorRT 10 choose faster kernels for the convolutions. Boxes and
  scores stay float32, because float16 has steps of half a pixel from 512 px on.
* int8 calibrates the ranges of activations with a few hundred images, or reads them
  from the --cache of an earlier run. Delete the cache when the weights change.
* TensorRT 11 removed fp16 and int8; it reads precisions from the file only. Export with
  --gin_param="COMPUTE_DTYPE = 'float16'" and build with fp32 instead.

No GPU was available: this program has never run on one. All calls were compared with
the Python bindings of TensorRT 10.16 and 11.4. The code before these calls is tested.
"""

import retinanet_tpu.startup.cpu

import importlib
import math
import os
import statistics
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf
import tensorrt_engine
from absl import flags

from retinanet_tpu import errors
from retinanet_tpu.data import image_files, transforms
from retinanet_tpu.startup import guard

FLAGS = flags.FLAGS
_NODE = b"EfficientNMS_TRT"
_PACKAGES = {"tensorrt": "tensorrt", "cuda.bindings.runtime": "cuda-python"}


def read_model(path: str) -> bytes:
    """Returns the content of a model_tensorrt.onnx.

    Args:
      path: The path of the file.

    Raises:
      UserError: The file does not exist, or it is another ONNX file.
    """
    if not tf.io.gfile.exists(path) or tf.io.gfile.isdir(path):
        raise errors.UserError(
            f"--onnx={path} is no file; pass the model_tensorrt.onnx of an export."
        )
    with tf.io.gfile.GFile(path, "rb") as file:
        content = file.read()
    if _NODE not in content:
        raise errors.UserError(
            f"--onnx={path} has no {_NODE.decode()} node; pass the model_tensorrt.onnx "
            "that `python -m retinanet_tpu.export --format=tensorrt` writes."
        )
    return content


def batch_sizes(texts: Sequence[str]) -> tuple[int, int, int]:
    """Returns the smallest, usual and largest batch of --batch_size.

    Args:
      texts: The values of the flag.

    Raises:
      UserError: The flag is not one number, or three in ascending order.
    """
    try:
        sizes = [int(text) for text in texts]
    except ValueError:
        sizes = []
    sizes = sizes * 3 if len(sizes) == 1 else sizes
    if len(sizes) != 3 or sizes != sorted(sizes) or sizes[0] < 1:
        raise errors.UserError(
            f"--batch_size={','.join(texts)} must be one number, or three in ascending "
            "order such as 1,8,16."
        )
    smallest, usual, largest = sizes
    return smallest, usual, largest


def check_precision(tensorrt: ModuleType, precision: str) -> None:
    """Checks that TensorRT's version supports a precision.

    Args:
      tensorrt: The module.
      precision: One of fp32, fp16 and int8.

    Raises:
      UserError: The version is too old, or too new for fp16 and int8.

    Source: TensorRT's guide "Migrating from TensorRT 10.x to 11.x": weak typing and
      calibrators are deprecated since 10.1 and removed in 11.
    """
    version = tensorrt.__version__
    if int(version.partition(".")[0]) < 10:
        raise errors.UserError(f"TensorRT {version} is too old; install 10 or 11.")
    if precision != "fp32" and not hasattr(tensorrt.BuilderFlag, "FP16"):
        raise errors.UserError(
            f"TensorRT {version} reads precisions from the file only, so "
            f"--precision={precision} needs TensorRT 10: pip install 'tensorrt<11'. Or "
            "export in half precision, --gin_param=\"COMPUTE_DTYPE = 'float16'\", and "
            "build that with --precision=fp32."
        )


def find_calibration_images(folder: str | None, batch_size: int) -> list[str]:
    """Returns the images for calibration, without an incomplete last batch.

    Args:
      folder: The folder of images, or None.
      batch_size: The number of images in a batch.

    Raises:
      UserError: The folder is missing or has too few images.
    """
    if not folder:
        raise errors.UserError(
            "int8 requires calibration; pass a folder of a few hundred images with "
            "--calibration_images, or the --cache of an earlier run."
        )
    names = tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else []
    paths = sorted(
        os.path.join(folder, name)
        for name in names
        if name.lower().endswith(image_files.EXTENSIONS)
    )
    if len(paths) < batch_size:
        raise errors.UserError(
            f"--calibration_images={folder} has {len(paths)} images, but a batch "
            f"requires {batch_size}; pass a folder with a few hundred."
        )
    return paths[: len(paths) // batch_size * batch_size]


def load_batches(
    paths: Sequence[str], image_size: tuple[int, int], batch_size: int
) -> np.ndarray:
    """Reads images and prepares them like the serving signature.

    Args:
      paths: The paths of the images; their number is a multiple of the batch size.
      image_size: The height H and width W of the network's input, px.
      batch_size: The number B of images in a batch.

    Returns:
      uint8 [N, B, H, W, 3].

    Raises:
      UserError: An image cannot be read.
    """
    inputs = []
    for path in paths:
        resized, _ = transforms.letterbox(image_files.load(path), image_size)
        inputs.append(resized.numpy().astype(np.uint8))  # The values are integers.
    return np.stack(inputs).reshape([-1, batch_size, *image_size, 3])


def main() -> None:
    """Runs the command."""
    content = read_model(FLAGS.onnx)
    sizes = batch_sizes(FLAGS.batch_size)
    has_cache = bool(FLAGS.cache) and tf.io.gfile.exists(FLAGS.cache)
    paths: list[str] = []
    if FLAGS.precision == "int8" and not has_cache:
        paths = find_calibration_images(FLAGS.calibration_images, sizes[1])
    tensorrt, cudart = (_package(name) for name in _PACKAGES)
    check_precision(tensorrt, FLAGS.precision)
    gpu = tensorrt_engine.device_name(cudart)

    def make_calibrator(image_size: tuple[int, int]) -> Any:
        # All images are read before TensorRT starts: it hides errors in its callbacks.
        batches = load_batches(paths, image_size, sizes[1]) if paths else []
        memory = tensorrt_engine.DeviceMemory(
            cudart, sizes[1] * math.prod(image_size) * 3 * 4
        )
        return tensorrt_engine.make_calibrator(
            tensorrt, memory, batches, batch_size=sizes[1], cache=FLAGS.cache
        )

    engine = tensorrt_engine.build(
        tensorrt,
        content,
        sizes=sizes,
        precision=FLAGS.precision,
        workspace_gib=FLAGS.workspace_gib,
        calibrator_fn=make_calibrator,
    )
    if folder := os.path.dirname(FLAGS.output):
        tf.io.gfile.makedirs(folder)
    with tf.io.gfile.GFile(FLAGS.output, "wb") as file:
        file.write(engine)
    print(f"Wrote {FLAGS.output}, {len(engine) / 1e6:,.1f} MB.")
    times = tensorrt_engine.run_times(
        tensorrt, cudart, engine, batch_size=sizes[1], num_runs=FLAGS.runs
    )
    median = statistics.median(times)
    print(
        f"{gpu}, TensorRT {tensorrt.__version__}, {FLAGS.precision}, batch "
        f"{sizes[1]}: {median:.2f} ms, the median of {len(times)} runs "
        f"({min(times):.2f} to {max(times):.2f}), {1e3 * sizes[1] / median:,.0f} "
        "images/s. The input is noise in the GPU's memory."
    )


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise errors.UserError(
            f"{_PACKAGES[name]} cannot be imported ({error}): "
            f"pip install {_PACKAGES[name]}, on a machine with an NVIDIA GPU."
        ) from error


def define_flags() -> None:
    """Defines the flags; not on import, when another tool may run."""
    flags.DEFINE_string("onnx", None, "The model_tensorrt.onnx of an export.")
    flags.DEFINE_string("output", None, "File to write the engine to.")
    flags.DEFINE_enum(
        "precision", "fp32", ["fp32", "fp16", "int8"], "Precision of the convolutions."
    )
    flags.DEFINE_list(
        "batch_size", ["1"], "Smallest, usual and largest batch, or one number for all."
    )
    flags.DEFINE_string(
        "calibration_images", None, "Folder of images for the calibration of int8."
    )
    flags.DEFINE_string("cache", None, "File of the activation ranges of int8.")
    flags.DEFINE_integer(
        "workspace_gib", 4, "Largest workspace of the kernels, GiB.", lower_bound=1
    )
    flags.DEFINE_integer("runs", 100, "Number of timed runs, after a warm-up.", 1)
    flags.mark_flags_as_required(["onnx", "output"])


if __name__ == "__main__":
    define_flags()
    guard.run(main)
