"""Statistics of the records of a split: images, boxes, classes."""

import collections
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from retinanet_tpu import errors, json_files
from retinanet_tpu.data import (
    annotations,
    category_map,
    pipeline,
    record_files,
    tf_example,
    tracing,
    transforms,
)

# COCO's limits: an area under the first is small, under the second medium; px^2.
SIZE_LIMITS = (32**2, 96**2)
SIZE_NAMES = ("small", "medium", "large")
# The most files that a sample is read from; opening a remote file takes a request.
_SAMPLED_FILES = 16
# Rounding to float32 shares of the sides and back moves a corner by less.
_OUTSIDE_PX = 0.5


class Split(NamedTuple):
    """The I images and N boxes of a split, boxes in the order of the images.

    Attributes:
      name: The name of the split.
      image_ids: int64 [I].
      image_sizes: int32 [I, 2], the height and width of the stored image, px.
      fingerprints: uint64 [I], equal for equal files.
      file_names: The I file names; empty where the record has none.
      boxes_yxyx: float32 [N, 4], px of the image.
      category_ids: int64 [N].
      is_crowd: bool [N].
      images: int64 [N], the index of the image of each box.
    """

    name: str
    image_ids: np.ndarray
    image_sizes: np.ndarray
    fingerprints: np.ndarray
    file_names: tuple[str, ...]
    boxes_yxyx: np.ndarray
    category_ids: np.ndarray
    is_crowd: np.ndarray
    images: np.ndarray

    @property
    def boxes_per_image(self) -> np.ndarray:
        """Returns int64 [I], the number of boxes of each image, crowds included."""
        return np.bincount(self.images, minlength=len(self.image_ids))

    @property
    def sides(self) -> np.ndarray:
        """Returns float32 [N, 2], the height and width of each box, px."""
        return self.boxes_yxyx[:, 2:] - self.boxes_yxyx[:, :2]

    @property
    def size_indexes(self) -> np.ndarray:
        """Returns int64 [N], the index in SIZE_NAMES by the area of each box."""
        return np.searchsorted(SIZE_LIMITS, self.sides.prod(axis=-1), side="right")

    @property
    def is_outside(self) -> np.ndarray:
        """Returns bool [N], whether a box reaches over the edge of its image."""
        limits = self.image_sizes[self.images]
        over = np.maximum(-self.boxes_yxyx[:, :2], self.boxes_yxyx[:, 2:] - limits)
        return (over > _OUTSIDE_PX).any(axis=-1)

    @property
    def is_usable(self) -> np.ndarray:
        """Returns bool [N], whether a pixel of the box lies in its image.

        Boxes with corners in the wrong order, or with NaN, have no pixel.
        """
        limits = np.tile(self.image_sizes[self.images], 2)
        clipped = np.clip(self.boxes_yxyx, 0, limits)
        return (clipped[:, 2:] - clipped[:, :2] >= transforms.MIN_SIDE).all(axis=-1)


@tracing.without_autograph
def read(
    data_dir: str,
    split: str,
    categories: category_map.Categories,
    *,
    num_images: int | None = None,
) -> Split:
    """Measures a split; images other than JPEGs are decoded for their size.

    Args:
      data_dir: The directory of `<split>-?????-of-?????.tfrecord`.
      split: The name of the split, e.g. "train".
      categories: The categories of the directory; boxes of unknown ids are kept.
      num_images: The most images, from the first records of up to 16 files; None reads
        all records.
    Raises:
      MissingFileError: The split has no files.
      UserError: A record is corrupt; contains the file and the record.
    """
    files = record_files.find(data_dir, split)
    if num_images is None:
        records = tf.data.TFRecordDataset(files)
    else:
        paths = tf.data.Dataset.from_tensor_slices(files[:_SAMPLED_FILES])
        records = paths.interleave(
            tf.data.TFRecordDataset, cycle_length=_SAMPLED_FILES
        ).take(num_images)
    measured = records.map(_measure, num_parallel_calls=tf.data.AUTOTUNE)
    try:
        rows = list(measured.as_numpy_iterator())
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
        raise pipeline.explain_failure(error, files, categories) or error from error
    return _join(split, rows)


@tracing.without_autograph
def has_object(data_dir: str, split: str, category_ids: Iterable[int]) -> bool:
    """Returns whether a split has a box, not a crowd, of any of the categories.

    Reads up to the first such box; in valid data one of the first records has one.

    Args:
      data_dir: The directory of the records.
      split: The name of the split.
      category_ids: The ids of the categories.
    Raises:
      MissingFileError: The split has no files.
    """
    ids = tf.constant(sorted(category_ids), tf.int64)

    def is_hit(serialized: tf.Tensor) -> tf.Tensor:
        example = tf_example.parse(serialized)
        is_category = example.category_ids[:, None] == ids
        return tf.reduce_any(is_category & ~example.is_crowd[:, None])

    records = tf.data.TFRecordDataset(record_files.find(data_dir, split))
    return next(iter(records.filter(is_hit)), None) is not None


def class_counts(split: Split, categories: category_map.Categories) -> np.ndarray:
    """Returns int64 [K, 2]: the numbers of boxes of each class and of their images."""
    counts = np.zeros([categories.num_classes, 2], np.int64)
    for category in categories.categories:
        is_of_class = split.category_ids == category.id
        images = np.unique(split.images[is_of_class])
        counts[category.index] = is_of_class.sum(), len(images)
    return counts


def duplicates(split: Split) -> list[list[int]]:
    """Returns groups of indices of images whose files are equal."""
    groups = collections.defaultdict(list)
    for index, fingerprint in enumerate(split.fingerprints):
        groups[fingerprint].append(index)
    return [indices for indices in groups.values() if len(indices) > 1]


def shared_images(split: Split, other: Split) -> np.ndarray:
    """Returns int64 [n], the indices in `other` of image files that `split` has too."""
    return np.flatnonzero(np.isin(other.fingerprints, split.fingerprints))


def shared_versions(split: Split, other: Split) -> list[int]:
    """Returns the indices in `other` of augmented versions of images in `split`.

    Equal files, which `shared_images` returns, are left out.
    """
    sources = annotations.sources_of_versions(split.file_names)
    is_equal = np.isin(other.fingerprints, split.fingerprints)
    return [
        index
        for index, name in enumerate(other.file_names)
        if annotations.source_name(name) in sources and not is_equal[index]
    ]


def annotated_images(annotation_file: str) -> dict[tuple, int]:
    """Returns the image id of each annotated image, by its name, size and boxes.

    Two splits may have different images of one name, in different folders. So name,
    size and all boxes together are the key; images without boxes are left out.

    Args:
      annotation_file: The path of a COCO JSON, as retinanet-tpu convert writes it.
    """
    content = read_annotations(annotation_file)
    boxes = collections.defaultdict(list)
    for item in content["annotations"]:
        boxes[item["image_id"]].append((item["category_id"], *item["bbox"]))
    keys = ("file_name", "height", "width")
    return {
        (*(image.get(key) for key in keys), tuple(sorted(boxes[image["id"]]))): image[
            "id"
        ]
        for image in content["images"]
        if boxes[image["id"]]
    }


def read_annotations(annotation_file: str) -> dict[str, Any]:
    """Reads a COCO JSON.

    Args:
      annotation_file: Its path.
    Raises:
      UserError: It lacks images or annotations, or is not JSON.
    """
    content = json_files.read(annotation_file)
    missing = {"images", "annotations"} - set(content)
    if missing:
        raise errors.UserError(
            f"{annotation_file} lacks {sorted(missing)}; write it again with "
            "retinanet-tpu convert."
        )
    return content


def _measure(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    example = tf_example.parse(serialized)
    name = tf.io.parse_single_example(
        serialized, {"image/filename": tf.io.FixedLenFeature([], tf.string, "")}
    )["image/filename"]

    def decoded_size():
        pixels = tf.io.decode_image(example.encoded, expand_animations=False)
        return tf.shape(pixels)[:2]

    size = tf.cond(
        tf.io.is_jpeg(example.encoded),
        lambda: tf.image.extract_jpeg_shape(example.encoded)[:2],
        decoded_size,
    )
    return {
        "image_id": example.image_id,
        "size": size,
        "fingerprint": tf.fingerprint([example.encoded])[0],
        "name": name,
        "boxes": example.boxes_yxyx_norm * tf.tile(tf.cast(size, tf.float32), [2]),
        "category_ids": example.category_ids,
        "is_crowd": example.is_crowd,
    }


def _join(name: str, rows: list[dict[str, Any]]) -> Split:
    def joined(key, dtype, *shape):
        # The empty array keeps the shape where there are no rows.
        parts = [np.zeros([0, *shape], dtype)]
        parts += [np.reshape(row[key], [-1, *shape]) for row in rows]
        return np.concatenate(parts).astype(dtype)

    counts = [len(row["category_ids"]) for row in rows]
    fingerprints = [row["fingerprint"].view(np.uint64)[0] for row in rows]
    return Split(
        name=name,
        image_ids=joined("image_id", np.int64),
        image_sizes=joined("size", np.int32, 2),
        fingerprints=np.array(fingerprints, np.uint64),
        file_names=tuple(row["name"].decode(errors="replace") for row in rows),
        boxes_yxyx=joined("boxes", np.float32, 4),
        category_ids=joined("category_ids", np.int64),
        is_crowd=joined("is_crowd", bool),
        images=np.repeat(np.arange(len(rows)), counts).astype(np.int64),
    )
