"""Builds a TensorRT engine of an exported model, and times it.

  python -m retinanet_tpu.export --model_dir=run1 --format=tensorrt
  python tools/deploy/tensorrt/build_engine.py --onnx=EXPORT/model_tensorrt.onnx \
    --output=model.engine [--precision=fp32|fp16|int8] [--batch_size=1,8,16] \
    [--calibration_images=photos] [--cache=int8.cache] [--workspace_gib=4]

It runs where the engine will, for an engine fits one kind of GPU and one version of
TensorRT, and needs `pip install tensorrt cuda-python`. --batch_size is the least, the
usual and the greatest batch, or one number for all; the engine is tuned for the usual
one, and timed with it.

fp32 takes the file as it is (with TF32, as TensorRT does by default). fp16 and int8 let
TensorRT 10 choose faster kernels for the convolutions; boxes and scores stay float32,
for float16 has steps of half a pixel from 512 px on. int8 learns the ranges of
activations from some hundred images, or from the --cache of a run before; delete that
when the weights change. TensorRT 11 has dropped both and takes precisions from the file
alone: there, export with --gin_param="COMPUTE_DTYPE = 'float16'" and build with fp32.

No GPU was at hand: this was never run on one. All calls were held against the Python
bindings of TensorRT 10.16 and 11.4, and what comes before them is tested.
"""

import retinanet_tpu.startup.cpu

import importlib
import math
import os
import statistics
from collections.abc import Sequence
from types import ModuleType

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

    Raises:
      UserError: there is none.
    """
    if not tf.io.gfile.exists(path) or tf.io.gfile.isdir(path):
        raise errors.UserError(
            f"--onnx={path} is no file; name the model_tensorrt.onnx of an export."
        )
    with tf.io.gfile.GFile(path, "rb") as file:
        content = file.read()
    if _NODE not in content:
        raise errors.UserError(
            f"--onnx={path} has no {_NODE.decode()} node; name the model_tensorrt.onnx "
            "that `python -m retinanet_tpu.export --format=tensorrt` writes."
        )
    return content


def batch_sizes(texts: Sequence[str]) -> tuple[int, int, int]:
    """Returns the least, usual and greatest batch of --batch_size.

    Raises:
      UserError: it is not one number, or three that rise.
    """
    try:
        sizes = [int(text) for text in texts]
    except ValueError:
        sizes = []
    sizes = sizes * 3 if len(sizes) == 1 else sizes
    if len(sizes) != 3 or sizes != sorted(sizes) or sizes[0] < 1:
        raise errors.UserError(
            f"--batch_size={','.join(texts)} is not one number or three that rise, "
            "such as 1,8,16."
        )
    return tuple(sizes)


def check_precision(tensorrt: ModuleType, precision: str) -> None:
    """Checks that a TensorRT can build what is asked for.

    Raises:
      UserError: it is too old, or too new for fp16 and int8.

    Source: TensorRT's guide "Migrating from TensorRT 10.x to 11.x": weak typing and
      calibrators are deprecated since 10.1 and gone in 11.
    """
    version = tensorrt.__version__
    if int(version.partition(".")[0]) < 10:
        raise errors.UserError(f"TensorRT {version} is too old; install 10 or 11.")
    if precision != "fp32" and not hasattr(tensorrt.BuilderFlag, "FP16"):
        raise errors.UserError(
            f"TensorRT {version} takes precisions from the file alone, so "
            f"--precision={precision} needs TensorRT 10: pip install 'tensorrt<11'. Or "
            "export in half precision, --gin_param=\"COMPUTE_DTYPE = 'float16'\", and "
            "build that with --precision=fp32."
        )


def find_pictures(folder: str | None, batch_size: int) -> list[str]:
    """Returns the files to calibrate on; what does not fill a batch is left out.

    Raises:
      UserError: there are too few.
    """
    if not folder:
        raise errors.UserError(
            "int8 is calibrated; name some hundred images with --calibration_images, "
            "or the --cache of a run before."
        )
    names = tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else []
    paths = sorted(
        os.path.join(folder, name)
        for name in names
        if name.lower().endswith(image_files.EXTENSIONS)
    )
    if len(paths) < batch_size:
        raise errors.UserError(
            f"--calibration_images={folder} has {len(paths)} images, and a batch "
            f"takes {batch_size}; name a folder with some hundred."
        )
    return paths[: len(paths) // batch_size * batch_size]


def load_batches(
    paths: Sequence[str], image_size: tuple[int, int], batch_size: int
) -> np.ndarray:
    """Returns uint8 [N, B, H, W, 3]: images as the server shows them the network.

    Raises:
      UserError: one cannot be read.
    """
    inputs = []
    for path in paths:
        fitted, _ = transforms.letterbox(image_files.load(path), image_size)
        inputs.append(fitted.numpy().astype(np.uint8))  # They are whole numbers.
    return np.stack(inputs).reshape([-1, batch_size, *image_size, 3])


def main() -> None:
    """Does what the flags say."""
    content = read_model(FLAGS.onnx)
    sizes = batch_sizes(FLAGS.batch_size)
    is_known = bool(FLAGS.cache) and tf.io.gfile.exists(FLAGS.cache)
    paths = []
    if FLAGS.precision == "int8" and not is_known:
        paths = find_pictures(FLAGS.calibration_images, sizes[1])
    tensorrt, cudart = (_package(name) for name in _PACKAGES)
    check_precision(tensorrt, FLAGS.precision)
    gpu = tensorrt_engine.device_name(cudart)

    def calibrator(image_size):
        # All before TensorRT begins, for an error in its callbacks would say little.
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
        calibrator_fn=calibrator,
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
        "pictures/s; of noise that lies in the GPU's memory."
    )


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise errors.UserError(
            f"{_PACKAGES[name]} cannot be imported ({error}): "
            f"pip install {_PACKAGES[name]}, where there is an NVIDIA GPU."
        ) from error


def define_flags() -> None:
    """Defines the flags; not on import, when another tool may run."""
    flags.DEFINE_string("onnx", None, "model_tensorrt.onnx of an export.")
    flags.DEFINE_string("output", None, "File for the engine.")
    flags.DEFINE_enum("precision", "fp32", ["fp32", "fp16", "int8"], "See above.")
    flags.DEFINE_list("batch_size", ["1"], "Least, usual, greatest; or one for all.")
    flags.DEFINE_string("calibration_images", None, "int8: folder of images.")
    flags.DEFINE_string("cache", None, "int8: file for what calibration found.")
    flags.DEFINE_integer(
        "workspace_gib", 4, "GPU memory that kernels may take.", lower_bound=1
    )
    flags.DEFINE_integer("runs", 100, "Timed runs, after some to warm up.", 1)
    flags.mark_flags_as_required(["onnx", "output"])


if __name__ == "__main__":
    define_flags()
    guard.run(main)
