"""Measures what it takes to make a network's input of a large image, and how exactly.

  python tools/benchmarks/large_images.py [--canvas=640] [--jpegs=DIR]

Without --jpegs it makes up three JPEGs of 4000 x 3000 px. A Markdown table comes out:
CPU time of the process per image, the median over --num_rounds, and the root mean
square difference from the mean over the area that each pixel covers, in gray levels.
"""

import retinanet_tpu.startup.cpu

import functools
import io
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import PIL.Image
import tensorflow as tf
from absl import flags

from retinanet_tpu.data import image_files, transforms
from retinanet_tpu.startup import guard

_JPEGS = flags.DEFINE_string("jpegs", None, "Folder of JPEGs, instead of made-up ones.")
_CANVAS = flags.DEFINE_integer("canvas", 640, "Sides of the canvas, px.")
_ROUNDS = flags.DEFINE_integer("num_rounds", 5, "Of which the median is shown.")

_NUM_MADE_UP, _WIDTH, _HEIGHT = 3, 4000, 3000
# Side of a cell in px and standard deviation of its gray level: finer is fainter.
_OCTAVES = ((500, 40.0), (125, 22.0), (25, 14.0), (6, 10.0), (2, 8.0), (1, 6.0))

Contender = Callable[[tf.Tensor], tf.Tensor]  # encoded or decoded -> [h, w, 3]


def made_up_jpeg(seed: int, width: int = _WIDTH, height: int = _HEIGHT) -> bytes:
    """Returns a JPEG of noise at all scales, as images have detail."""
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


def contenders(canvas: tuple[int, int]) -> dict[str, tuple[str, Contender]]:
    """Returns the ways to the network's input: what each is given, and a function.

    Args:
      canvas: Height and width of the network's input.
    """
    window_fn = functools.partial(transforms.crop_window, output_size=canvas)

    def resized_only(pixels: tf.Tensor) -> tf.Tensor:
        window = window_fn(tf.shape(pixels)[:2])
        return tf.image.resize(tf.cast(pixels, tf.float32), window.resized)

    def load(encoded: tf.Tensor) -> tf.Tensor:
        return transforms.decode_and_resize(encoded, window_fn)[0]

    def letterbox(pixels: tf.Tensor) -> tf.Tensor:
        window = window_fn(tf.shape(pixels)[:2])
        inputs, _ = transforms.letterbox(pixels, canvas)
        return inputs[: window.resized[0], : window.resized[1]]

    return {
        "JPEG: decoded in full, resized": (
            "jpeg",
            lambda encoded: resized_only(tf.io.decode_jpeg(encoded, channels=3)),
        ),
        "JPEG: the input pipeline": ("jpeg", load),
        "PNG: the input pipeline": ("png", load),
        "decoded image: resized": ("pixels", resized_only),
        "decoded image: exported models": ("pixels", letterbox),
    }


def measure(
    jpegs: Sequence[bytes], canvas: tuple[int, int], num_rounds: int
) -> dict[str, tuple[float, float]]:
    """Returns CPU ms per image and the RMS error in gray levels, by contender."""
    ways = contenders(canvas)
    inputs = [_inputs(jpeg) for jpeg in jpegs]
    functions = {name: tf.function(fn) for name, (_, fn) in ways.items()}
    times = {name: [] for name in ways}
    for number in range(-1, num_rounds):  # One to warm up.
        for name, (kind, _) in ways.items():
            start = time.process_time()
            for given in inputs:
                functions[name](given[kind])
            if number >= 0:
                secs = time.process_time() - start
                times[name].append(1e3 * secs / len(inputs))
    return {
        name: (
            statistics.median(times[name]),
            _rms(fn, kind=ways[name][0], inputs=inputs),
        )
        for name, fn in functions.items()
    }


def _inputs(jpeg: bytes) -> Mapping[str, tf.Tensor]:
    pixels = tf.io.decode_jpeg(jpeg, channels=3)
    png = tf.io.encode_png(pixels, compression=1)
    return {"jpeg": tf.constant(jpeg), "png": png, "pixels": pixels}


def _rms(fn, kind, inputs):
    squares = []
    for given in inputs:
        found = tf.cast(fn(given[kind]), tf.float32)
        area = tf.image.resize(given["pixels"], tf.shape(found)[:2], method="area")
        squares.append(float(tf.reduce_mean((found - area) ** 2)))
    return float(np.sqrt(np.mean(squares)))


def main() -> None:
    """Runs the command."""
    if _JPEGS.value:
        paths = image_files.find([_JPEGS.value])
        jpegs = [tf.io.read_file(path).numpy() for path in paths]
    else:
        jpegs = [made_up_jpeg(seed) for seed in range(_NUM_MADE_UP)]
    print("| | CPU ms an image | RMS error, gray levels |")
    print("| --- | --- | --- |")
    canvas = (_CANVAS.value, _CANVAS.value)
    for name, (cpu_ms, rms) in measure(jpegs, canvas, _ROUNDS.value).items():
        print(f"| {name} | {cpu_ms:.0f} | {rms:.2f} |")


if __name__ == "__main__":
    guard.run(main)
