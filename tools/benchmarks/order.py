r"""Measures how well training mixes a data set that is sorted by class.

  python tools/benchmarks/order.py [--num_images=20000] [--num_classes=10] \
      [--num_files=16,64]

The tool writes synthetic records of images whose names sort by class, and reads two
epochs. The output is a Markdown table with medians over all batches. Its columns are:

  dealt      how images are assigned to files: by a hash of the name, as
             retinanet-tpu convert does, or in turn, as older versions and other
             converters do
  read       here, or by one worker of a tf.data service
  classes    number of classes in a batch
  largest    largest fraction of a batch that one class has
  epochs     correlation of an image's positions in the two epochs

Images in random order give 10 of 10 classes, .16 for batches of 64, and 0.
"""

import retinanet_tpu.startup.cpu

import itertools
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import flags

from retinanet_tpu.conversion import converter
from retinanet_tpu.data import annotations, record_files, record_order
from retinanet_tpu.startup import guard

FLAGS = flags.FLAGS

READERS = {
    "here": record_order.read_records_in_order,
    "service": record_order.read_records_for_data_service,
}
_SPLIT = "train"


class Mixing(NamedTuple):
    """Measures of how well batches and epochs are mixed.

    Attributes:
      num_classes: The number of classes in a batch, median over batches.
      largest_fraction: The largest fraction of a class in a batch, median over batches.
      epoch_correlation: The correlation of an image's positions in two epochs.
    """

    num_classes: float
    largest_fraction: float
    epoch_correlation: float


def deal_by_name(num_images: int, num_classes: int, num_files: int) -> list[list[int]]:
    """Assigns images to files like the converter.

    Args:
      num_images: The number of images.
      num_classes: The number of classes.
      num_files: The number of files.

    Returns:
      The images of each file.
    """
    images = [
        annotations.AnnotatedImage(
            i, f"class_{i * num_classes // num_images:03d}/{i:06d}.jpg", 1, 1, ()
        )
        for i in range(num_images)
    ]
    return converter.assign_to_shards(images, num_files)


def deal_in_turn(num_images: int, num_classes: int, num_files: int) -> list[list[int]]:
    """Assigns image i to file i modulo num_files.

    Args:
      num_images: The number of images.
      num_classes: Not used.
      num_files: The number of files.

    Returns:
      The images of each file.
    """
    del num_classes
    return [list(range(i, num_images, num_files)) for i in range(num_files)]


DEALERS = {"by name": deal_by_name, "in turn": deal_in_turn}


def read(dealt: Sequence[Sequence[int]], reader: str) -> np.ndarray:
    """Returns the images of three epochs in the order of training.

    Args:
      dealt: The images of each file.
      reader: One of READERS.
    """
    num_images = sum(map(len, dealt))
    with tempfile.TemporaryDirectory() as folder:
        for index, images in enumerate(dealt):
            path = f"{folder}/{record_files.file_name(_SPLIT, index, len(dealt))}"
            with tf.io.TFRecordWriter(path) as writer:
                for image in images:
                    writer.write(str(image).encode())
        files = record_files.find(folder, _SPLIT)
        order = record_order.ReadOptions()
        shares = record_order.files_of_host(files, _SPLIT, order.shard)
        records = READERS[reader](shares, order).take(3 * num_images)
        images = records.map(
            lambda _, record: tf.strings.to_number(record, tf.int64),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        return np.concatenate(list(images.batch(1000).as_numpy_iterator()))


def mixing(
    images: np.ndarray, *, num_images: int, num_classes: int, batch_size: int
) -> Mixing:
    """Measures how well an order of images is mixed.

    Args:
      images: The images in order, int64, as returned by `read`.
      num_images: The number of images in an epoch.
      num_classes: The number of classes. The class of image i is
        i * num_classes // num_images.
      batch_size: The number of images in a batch.
    """
    classes = images[: 2 * num_images] * num_classes // num_images
    batches = classes[: len(classes) // batch_size * batch_size]
    counts = [
        np.bincount(batch, minlength=num_classes)
        for batch in batches.reshape(-1, batch_size)
    ]
    # The epochs of a service overlap. The first two positions of each image are used.
    order = np.argsort(images, kind="stable")
    first = np.searchsorted(images[order], np.arange(num_images))
    positions = order[first], order[first + 1]
    return Mixing(
        float(np.median([(count > 0).sum() for count in counts])),
        float(np.median([count.max() / batch_size for count in counts])),
        float(np.corrcoef(*positions)[0, 1]),
    )


def main() -> None:
    """Runs the command."""
    num_images, num_classes = FLAGS.num_images, FLAGS.num_classes
    print("| dealt | read | files | classes | largest | epochs |")
    print("| --- | --- | --- | --- | --- | --- |")
    for dealer, reader, num_files in itertools.product(
        DEALERS, READERS, map(int, FLAGS.num_files)
    ):
        dealt = DEALERS[dealer](num_images, num_classes, num_files)
        result = mixing(
            read(dealt, reader),
            num_images=num_images,
            num_classes=num_classes,
            batch_size=FLAGS.batch_size,
        )
        print(
            f"| {dealer} | {reader} | {num_files} | {result.num_classes:g} | "
            f"{result.largest_fraction:.2f} | {result.epoch_correlation:.2f} |"
        )


def define_flags() -> None:
    """Defines the flags; not on import, when another tool may run."""
    flags.DEFINE_integer(
        "num_images", 20_000, "Number of images in the data set.", lower_bound=1
    )
    flags.DEFINE_integer("num_classes", 10, "Number of classes.", lower_bound=1)
    flags.DEFINE_list("num_files", ["16", "64"], "Numbers of record files to compare.")
    flags.DEFINE_integer(
        "batch_size", 64, "Number of images in a batch.", lower_bound=1
    )


if __name__ == "__main__":
    define_flags()
    guard.run(main)
