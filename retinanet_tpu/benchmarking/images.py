"""Chooses the images that models are measured on."""

import collections
import itertools
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging
from pycocotools.coco import COCO

from retinanet_tpu.serving import annotated_images, batching, formats

# Of the first ones, the images of the most frequent size are timed.
_NUM_TIMED = 32


class Images(NamedTuple):
    """The images of a benchmark.

    Attributes:
      files: The images that detections are compared in.
      timed: uint8 [B, H, W, 3], the largest batch that is timed.
      truth: The annotations; None without them.
      description: The images in words.
    """

    files: Sequence[annotated_images.ImageFile]
    timed: np.ndarray
    truth: COCO | None
    description: str


def make(
    files: Sequence[annotated_images.ImageFile],
    batch_size: int,
    *,
    truth: COCO | None = None,
    description: str,
) -> Images:
    """Reads all images once, and returns those that are timed.

    An image that cannot be read is thus an error before models run for a long time.

    Args:
      files: The files of the images, at least one.
      batch_size: The number of images of the largest batch. Images are repeated if
        there are fewer of one size.
      truth: The annotations; None without them.
      description: The images in words.
    Raises:
      UserError: An image cannot be read, or has another size than annotated.
    """
    logging.info("benchmark | reading %d images", len(files))
    groups = collections.defaultdict(list)
    loaded = batching.map_in_threads(annotated_images.load, files)
    for number, image in enumerate(loaded):
        if number < max(_NUM_TIMED, batch_size):
            groups[image.shape].append(image)
    largest = max(groups.values(), key=len)
    timed = list(itertools.islice(itertools.cycle(largest), batch_size))
    return Images(files, np.stack(timed), truth, description)


def write_synthetic(directory: str, num_images: int) -> list[str]:
    """Writes images of colored rectangles on noise, and returns their paths.

    Args:
      directory: The directory.
      num_images: The number of images.
    """
    paths = []
    for number, image in enumerate(formats.synthetic_images(num_images)):
        paths.append(os.path.join(directory, f"{number}.png"))
        tf.io.write_file(paths[-1], tf.io.encode_png(image))
    return paths
