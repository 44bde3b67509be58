"""Chooses the images that models are measured on."""

import collections
import itertools
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from pycocotools.coco import COCO

from retinanet_tpu.serving import annotated_images, formats

# Of these, the images of the most frequent size are timed.
_NUM_READ = 32


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
    """Reads the images that are timed.

    Args:
      files: The files of the images, at least one.
      batch_size: The number of images of the largest batch. Images are repeated if
        there are fewer of one size.
      truth: The annotations; None without them.
      description: The images in words.
    Raises:
      UserError: An image cannot be read, or has another size than annotated.
    """
    groups = collections.defaultdict(list)
    for file in files[: max(_NUM_READ, batch_size)]:
        image = annotated_images.load(file)
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
