"""What the records of a split hold, counted and measured: images, boxes, classes."""

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
    transforms,
)

# COCO's: an area under the first is small, under the second medium, px^2 as annotated.
SIZE_LIMITS = (32**2, 96**2)
SIZE_NAMES = ("small", "medium", "large")
# Files that a sample is drawn from; opening each takes a request where storage is far.
_SAMPLED_FILES = 16
# Rounding to float32 shares and back moves a side by less.
_OUTSIDE_PX = 0.5


class Split(NamedTuple):
    """The images of a split and, image by image, their boxes."""

    name: str
    image_ids: np.ndarray  # int64 [I]
    image_sizes: np.ndarray  # int32 [I, 2], height and width of the image itself
    fingerprints: np.ndarray  # uint64 [I], equal for equal files
    file_names: tuple[str, ...]  # I of them, empty where the record has none
    boxes_yxyx: np.ndarray  # float32 [N, 4], px of the image
    category_ids: np.ndarray  # int64 [N]
    is_crowd: np.ndarray  # bool [N]
    images: np.ndarray  # int64 [N], which image a box is of

    @property
    def boxes_per_image(self) -> np.ndarray:
        """Returns int64 [I], crowds included."""
        return np.bincount(self.images, minlength=len(self.image_ids))

    @property
    def sides(self) -> np.ndarray:
        """Returns float32 [N, 2], height and width of each box, px."""
        return self.boxes_yxyx[:, 2:] - self.boxes_yxyx[:, :2]

    @property
    def size_indexes(self) -> np.ndarray:
        """Returns int64 [N], places in SIZE_NAMES by the area of the box."""
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

        Turned corners (ymin above ymax) leave none, nor do numbers that are not finite.
        """
        limits = np.tile(self.image_sizes[self.images], 2)
        cut = np.clip(self.boxes_yxyx, 0, limits)
        return (cut[:, 2:] - cut[:, :2] >= transforms.MIN_SIDE).all(axis=-1)


def read(
    data_dir: str,
    split: str,
    categories: category_map.Categories,
    *,
    num_images: int | None = None,
) -> Split:
    """Measures a split; images other than JPEGs are decoded for their size.

    Args:
      data_dir: the folder of `<split>-?????-of-?????.tfrecord`.
      split: "train", for instance.
      categories: of the folder's categories.json; ids that it lacks are kept.
      num_images: how many at most, from the heads of up to 16 files; None for all.
    Raises:
      MissingFileError: the split has no files.
      UserError: a record is damaged; says which.
    """
    files = record_files.find(data_dir, split)
    if num_images is None:
        records = tf.data.TFRecordDataset(files)
    else:
        paths = tf.data.Dataset.from_tensor_slices(files[:_SAMPLED_FILES])
        records = paths.interleave(
            tf.data.TFRecordDataset, cycle_length=_SAMPLED_FILES
        ).take(num_images)
    measured = records.map(_measured, num_parallel_calls=tf.data.AUTOTUNE)
    try:
        rows = list(measured.as_numpy_iterator())
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
        raise pipeline.explain_failure(error, files, categories) or error from error
    return _joined(split, rows)


def has_object(data_dir: str, split: str, category_ids: Iterable[int]) -> bool:
    """Returns whether a split holds a box, not a crowd, of one of some categories.

    Reads up to the first such box, which in sound data is in one of the first records.

    Raises:
      MissingFileError: the split has no files.
    """
    wanted = tf.constant(sorted(category_ids), tf.int64)

    def is_hit(serialized: tf.Tensor) -> tf.Tensor:
        example = tf_example.parse(serialized)
        is_wanted = (example.category_ids[:, None] == wanted) & ~example.is_crowd[
            :, None
        ]
        return tf.reduce_any(is_wanted)

    records = tf.data.TFRecordDataset(record_files.find(data_dir, split))
    return next(iter(records.filter(is_hit)), None) is not None


def class_counts(split: Split, categories: category_map.Categories) -> np.ndarray:
    """Returns int64 [K, 2]: boxes of each class and images that have one."""
    counts = np.zeros([categories.num_classes, 2], np.int64)
    for category in categories.categories:
        is_of_class = split.category_ids == category.id
        images = np.unique(split.images[is_of_class])
        counts[category.index] = is_of_class.sum(), len(images)
    return counts


def duplicates(split: Split) -> list[list[int]]:
    """Returns the images, by place in the split, that are one file, group by group."""
    groups = collections.defaultdict(list)
    for place, fingerprint in enumerate(split.fingerprints):
        groups[fingerprint].append(place)
    return [places for places in groups.values() if len(places) > 1]


def shared_images(split: Split, other: Split) -> np.ndarray:
    """Returns the places in `other` of images whose very bytes are in `split` too."""
    return np.flatnonzero(np.isin(other.fingerprints, split.fingerprints))


def shared_versions(split: Split, other: Split) -> list[int]:
    """Returns the places in `other` of augmented versions of images in `split`.

    Equal files, which `shared_images` returns, are left out.
    """
    sources = annotations.sources_of_versions(split.file_names)
    is_equal = np.isin(other.fingerprints, split.fingerprints)
    return [
        place
        for place, name in enumerate(other.file_names)
        if annotations.source_name(name) in sources and not is_equal[place]
    ]


def annotated_images(annotation_file: str) -> dict[tuple, int]:
    """Returns the image id of each annotated image, by what makes it recognizable.

    Of two splits, images of one name may differ, as folders do. So name, size and all
    boxes together are the key; images without boxes are left out.

    Args:
      annotation_file: COCO JSON, as retinanet-tpu convert writes it.
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

    Raises:
      UserError: it lacks images or annotations, or is no JSON.
    """
    content = json_files.read(annotation_file)
    lacking = {"images", "annotations"} - set(content)
    if lacking:
        raise errors.UserError(
            f"{annotation_file} lacks {sorted(lacking)}; write it again with "
            "retinanet-tpu convert."
        )
    return content


def _measured(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
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


def _joined(name: str, rows: list[dict[str, Any]]) -> Split:
    def joined(key, dtype, *shape):
        # The empty one keeps the shape where there are no rows.
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
