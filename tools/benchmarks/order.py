r"""Measures how well training mixes a data set that is sorted by class.

  python tools/benchmarks/order.py [--num_images=20000] [--num_classes=10] \
      [--num_files=16,64]

Writes made-up records of images whose names sort by class, and reads two epochs of
them. A Markdown table comes out, with medians over all batches:

  dealt      to the files: by a hash of the name, as retinanet-tpu convert does, or
             in turn, as older versions and other converters do
  read       here, or as one worker of a tf.data service reads
  classes    in a batch
  largest    share of a class in a batch
  epochs     correlation of an image's places in the two epochs, 0 for unlike orders

Images in random order give 10 classes of 10, .16 of 64 images, and 0.
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

_IMAGES = flags.DEFINE_integer("num_images", 20_000, "Images.", lower_bound=1)
_CLASSES = flags.DEFINE_integer("num_classes", 10, "Classes.", lower_bound=1)
_FILES = flags.DEFINE_list("num_files", ["16", "64"], "Numbers of files.")
_BATCH = flags.DEFINE_integer(
    "images_per_batch", 64, "Images in a batch.", lower_bound=1
)

READERS = {
    "here": record_order.read_records_in_order,
    "service": record_order.read_records_for_data_service,
}
_SPLIT = "train"


class Mixing(NamedTuple):
    """How well batches and epochs are mixed."""

    num_classes: float  # median over batches
    largest_share: float  # median over batches
    epoch_correlation: float


def dealt_by_name(num_images: int, num_classes: int, num_files: int) -> list[list[int]]:
    """Returns the images of each file as the converter deals them."""
    images = [
        annotations.AnnotatedImage(
            i, f"class_{i * num_classes // num_images:03d}/{i:06d}.jpg", 1, 1, ()
        )
        for i in range(num_images)
    ]
    return converter.deal(images, num_files)


def dealt_in_turn(num_images: int, num_classes: int, num_files: int) -> list[list[int]]:
    """Returns image i in file i modulo num_files."""
    del num_classes
    return [list(range(i, num_images, num_files)) for i in range(num_files)]


DEALERS = {"by name": dealt_by_name, "in turn": dealt_in_turn}


def read(dealt: Sequence[Sequence[int]], reader: str) -> np.ndarray:
    """Returns the images of three epochs, in the order in which training sees them.

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
    """Measures the order of images.

    Args:
      images: int64, what `read` returns.
      num_images: Of an epoch.
      num_classes: Image i is of class i * num_classes // num_images.
      batch_size: Images in a batch.
    """
    classes = images[: 2 * num_images] * num_classes // num_images
    batches = classes[: len(classes) // batch_size * batch_size]
    counts = [
        np.bincount(batch, minlength=num_classes)
        for batch in batches.reshape(-1, batch_size)
    ]
    # A service's epochs overlap, so that an image's second place counts, not epoch 2.
    order = np.argsort(images, kind="stable")
    first = np.searchsorted(images[order], np.arange(num_images))
    places = order[first], order[first + 1]
    return Mixing(
        float(np.median([(count > 0).sum() for count in counts])),
        float(np.median([count.max() / batch_size for count in counts])),
        float(np.corrcoef(*places)[0, 1]),
    )


def main() -> None:
    """Runs the command."""
    num_images, num_classes = _IMAGES.value, _CLASSES.value
    print("| dealt | read | files | classes | largest | epochs |")
    print("| --- | --- | --- | --- | --- | --- |")
    for dealer, reader, num_files in itertools.product(
        DEALERS, READERS, map(int, _FILES.value)
    ):
        dealt = DEALERS[dealer](num_images, num_classes, num_files)
        found = mixing(
            read(dealt, reader),
            num_images=num_images,
            num_classes=num_classes,
            batch_size=_BATCH.value,
        )
        print(
            f"| {dealer} | {reader} | {num_files} | {found.num_classes:g} | "
            f"{found.largest_share:.2f} | {found.epoch_correlation:.2f} |"
        )


if __name__ == "__main__":
    guard.run(main)
