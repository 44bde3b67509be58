"""Measures the time and the error of reducing large images to a network's input.

  python tools/benchmarks/large_images.py [--image_size=640] [--jpegs=DIR]

Without --jpegs, three synthetic JPEGs of 4000 x 3000 px are used. The output is a
Markdown table. Its columns are the CPU time of the process per image (median of
--rounds) and the RMS error in gray levels. The error is the difference from the mean
over the area that each pixel covers.
"""

import retinanet_tpu.startup.cpu

import functools
import io
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image
import tensorflow as tf
from absl import flags

from retinanet_tpu.data import image_files, transforms
from retinanet_tpu.startup import guard

FLAGS = flags.FLAGS

_NUM_SYNTHETIC = 3
_WIDTH = 4000
_HEIGHT = 3000
# The side of a noise cell in px and the standard deviation of its gray level. Natural
# images have less contrast at finer scales too.
_OCTAVES = ((500, 40.0), (125, 22.0), (25, 14.0), (6, 10.0), (2, 8.0), (1, 6.0))

ReduceFn = Callable[[tf.Tensor], tf.Tensor]  # encoded or decoded -> [h, w, 3]


class Candidate(NamedTuple):
    """A way to reduce an image to the network's input.

    Attributes:
      kind: The input of the function: "jpeg", "png" or "pixels".
      reduce_fn: The function.
    """

    kind: str
    reduce_fn: ReduceFn


def synthetic_jpeg(seed: int, width: int = _WIDTH, height: int = _HEIGHT) -> bytes:
    """Returns a JPEG of noise at all scales.

    Args:
      seed: The seed of the noise.
      width: The width of the image, px.
      height: The height of the image, px.
    """
    rng = np.random.default_rng(seed)
    pixels = np.full([height, width, 3], 128.0, np.float32)
    for cell, deviation in _OCTAVES:
        shape = (-(-height // cell), -(-width // cell))
        noise = rng.normal(scale=deviation, size=shape).astype(np.float32)
        octave = PIL.Image.fromarray(noise).resize((width, height))
        pixels += np.asarray(octave)[..., None] * rng.uniform(0.6, 1.0, 3)
    file = io.BytesIO()
    image = PIL.Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    image.save(file, "JPEG", quality=92)
    return file.getvalue()


def decode_and_resize_only(
    encoded: tf.Tensor, window: transforms.CropWindow
) -> tf.Tensor:
    """Returns float32 [h, w, 3], a window of a JPEG: decoded at 1 / ratio, and resized.

    It is the least that an input pipeline must do with an image.

    Args:
      encoded: string [], the content of a JPEG file.
      window: The window.
    """

    def decoded_at(ratio: int) -> tf.Tensor:
        corner_and_size = tf.concat([window.start, window.size], axis=0) // ratio
        return tf.image.decode_and_crop_jpeg(
            encoded, corner_and_size, channels=3, ratio=ratio
        )

    index = tf.reduce_sum(tf.cast(window.ratio >= tf.constant([2, 4, 8]), tf.int32))
    branches = [functools.partial(decoded_at, ratio) for ratio in (1, 2, 4, 8)]
    return tf.image.resize(tf.switch_case(index, branches), window.resized)


def candidates(output_size: tuple[int, int]) -> dict[str, Candidate]:
    """Returns the candidates by name.

    Args:
      output_size: The height and width of the network's input, px.
    """
    window_fn = functools.partial(transforms.crop_window, output_size=output_size)

    def resized_only(pixels: tf.Tensor) -> tf.Tensor:
        window = window_fn(tf.shape(pixels)[:2])
        return tf.image.resize(tf.cast(pixels, tf.float32), window.resized)

    def decoded_small(encoded: tf.Tensor) -> tf.Tensor:
        window = window_fn(tf.image.extract_jpeg_shape(encoded)[:2])
        return decode_and_resize_only(encoded, window)

    def load(encoded: tf.Tensor) -> tf.Tensor:
        return transforms.decode_and_resize(encoded, window_fn)[0]

    def letterbox(pixels: tf.Tensor) -> tf.Tensor:
        window = window_fn(tf.shape(pixels)[:2])
        inputs, _ = transforms.letterbox(pixels, output_size)
        return inputs[: window.resized[0], : window.resized[1]]

    return {
        "JPEG: decoded in full, resized": Candidate(
            "jpeg",
            lambda encoded: resized_only(tf.io.decode_jpeg(encoded, channels=3)),
        ),
        "JPEG: decoded at 1 / ratio, resized": Candidate("jpeg", decoded_small),
        "JPEG: the input pipeline": Candidate("jpeg", load),
        "PNG: the input pipeline": Candidate("png", load),
        "decoded image: resized": Candidate("pixels", resized_only),
        "decoded image: exported models": Candidate("pixels", letterbox),
    }


def measure(
    jpegs: Sequence[bytes], output_size: tuple[int, int], num_rounds: int
) -> dict[str, tuple[float, float]]:
    """Measures all candidates.

    Args:
      jpegs: The encoded images.
      output_size: The height and width of the network's input, px.
      num_rounds: The number of measurements of each candidate.

    Returns:
      The median CPU time per image in ms and the RMS error in gray levels, by
      candidate.
    """
    ways = candidates(output_size)
    inputs = [_inputs(jpeg) for jpeg in jpegs]
    functions = {name: tf.function(way.reduce_fn) for name, way in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-1, num_rounds):  # The first round is a warm-up.
        for name, way in ways.items():
            start = time.process_time()
            for image in inputs:
                functions[name](image[way.kind])
            if number >= 0:
                secs = time.process_time() - start
                times[name].append(1e3 * secs / len(inputs))
    return {
        name: (
            statistics.median(times[name]),
            _rms_error(fn, kind=ways[name].kind, inputs=inputs),
        )
        for name, fn in functions.items()
    }


def _inputs(jpeg: bytes) -> Mapping[str, tf.Tensor]:
    pixels = tf.io.decode_jpeg(jpeg, channels=3)
    png = tf.io.encode_png(pixels, compression=1)
    return {"jpeg": tf.constant(jpeg), "png": png, "pixels": pixels}


def _rms_error(
    fn: ReduceFn, *, kind: str, inputs: Sequence[Mapping[str, tf.Tensor]]
) -> float:
    squares = []
    for image in inputs:
        reduced = tf.cast(fn(image[kind]), tf.float32)
        expected = tf.image.resize(
            image["pixels"], tf.shape(reduced)[:2], method="area"
        )
        squares.append(float(tf.reduce_mean((reduced - expected) ** 2)))
    return float(np.sqrt(np.mean(squares)))


def main() -> None:
    """Runs the command."""
    if FLAGS.jpegs:
        paths = image_files.find([FLAGS.jpegs])
        jpegs = [tf.io.read_file(path).numpy() for path in paths]
    else:
        jpegs = [synthetic_jpeg(seed) for seed in range(_NUM_SYNTHETIC)]
    print("| | CPU ms/image | RMS error, gray levels |")
    print("| --- | --- | --- |")
    output_size = (FLAGS.image_size, FLAGS.image_size)
    for name, (cpu_ms, rms) in measure(jpegs, output_size, FLAGS.rounds).items():
        print(f"| {name} | {cpu_ms:.0f} | {rms:.2f} |")


def define_flags() -> None:
    """Defines the flags; not on import, when another tool may run."""
    flags.DEFINE_string("jpegs", None, "Folder of JPEGs; omit to use synthetic images.")
    flags.DEFINE_integer(
        "image_size", 640, "Height and width of the network's input, px."
    )
    flags.DEFINE_integer("rounds", 5, "Number of measurements of each candidate.")


if __name__ == "__main__":
    define_flags()
    guard.run(main)
