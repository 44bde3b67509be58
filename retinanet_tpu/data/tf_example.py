"""Encodes and parses records: tf.train.Examples with the keys of the TF OD API."""

from typing import NamedTuple

import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.data import annotations

MAX_IMAGE_ID = 2**63 - 1  # Batches hold image ids as int64.

_BOX_KEYS = tuple(
    f"image/object/bbox/{side}" for side in ("ymin", "xmin", "ymax", "xmax")
)
_LABEL_KEY = "image/object/class/label"
_CROWD_KEY = "image/object/is_crowd"


class Example(NamedTuple):
    """The parts of one record that training reads.

    Attributes:
      encoded: string [], the content of the image file.
      image_id: int64 [].
      boxes_yxyx_norm: float32 [N, 4] in 0..1 of the image's height and width.
      category_ids: int64 [N], ids of the annotation file.
      is_crowd: bool [N].
    """

    encoded: tf.Tensor
    image_id: tf.Tensor
    boxes_yxyx_norm: tf.Tensor
    category_ids: tf.Tensor
    is_crowd: tf.Tensor


def check_image_id(image: annotations.AnnotatedImage) -> None:
    """Raises UserError if the image's id is not one that `parse` accepts."""
    if not 0 <= image.image_id <= MAX_IMAGE_ID:
        raise errors.UserError(
            f"Image {image.file_name} has the id {image.image_id}; records hold ids "
            f"from 0 to {MAX_IMAGE_ID}. Renumber the images of the annotation file."
        )


def encode(
    image: annotations.AnnotatedImage,
    encoded: bytes,
    *,
    image_format: str,
    names: dict[int, str],
) -> bytes:
    """Serializes an image and its boxes, the same bytes for the same input.

    Args:
      image: The annotated image. Height and width must be those of the pixels, and
        boxes in px.
      encoded: The content of the image file.
      image_format: The format of the image file, "jpeg" or "png".
      names: The category names by id.

    Returns:
      The serialized tf.train.Example.
    """
    objects = image.objects
    lefts = [o.box_xywh[0] for o in objects]
    tops = [o.box_xywh[1] for o in objects]
    rights = [o.box_xywh[0] + o.box_xywh[2] for o in objects]
    bottoms = [o.box_xywh[1] + o.box_xywh[3] for o in objects]
    ymin, xmin, ymax, xmax = _BOX_KEYS
    features = {
        "image/encoded": _bytes([encoded]),
        "image/format": _bytes([image_format.encode()]),
        "image/height": _ints([image.height]),
        "image/width": _ints([image.width]),
        "image/filename": _bytes([image.file_name.encode()]),
        "image/source_id": _bytes([str(image.image_id).encode()]),
        ymin: _fractions(tops, image.height),
        xmin: _fractions(lefts, image.width),
        ymax: _fractions(bottoms, image.height),
        xmax: _fractions(rights, image.width),
        _LABEL_KEY: _ints([o.category_id for o in objects]),
        "image/object/class/text": _bytes(
            [names[o.category_id].encode() for o in objects]
        ),
        _CROWD_KEY: _ints([int(o.is_crowd) for o in objects]),
        "image/object/area": _floats([o.area for o in objects]),
    }
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return example.SerializeToString(deterministic=True)


def parse(serialized: tf.Tensor) -> Example:
    """Reads one serialized tf.train.Example.

    Args:
      serialized: string [], the serialized tf.train.Example.

    Raises:
      tf.errors.InvalidArgumentError: At run time, if a key is missing, the lists of the
        boxes differ in length, or image/source_id is not an integer from 0 to
        MAX_IMAGE_ID.
    """
    text = tf.io.FixedLenFeature([], tf.string)
    numbers = _list_of(tf.int64)
    parsed = tf.io.parse_single_example(
        serialized,
        {
            "image/encoded": text,
            "image/source_id": text,
            _LABEL_KEY: numbers,
            _CROWD_KEY: numbers,
            **{key: _list_of(tf.float32) for key in _BOX_KEYS},
        },
    )
    source_id = parsed["image/source_id"]
    labels = parsed[_LABEL_KEY]
    num_boxes = tf.size(labels)
    crowds = parsed[_CROWD_KEY]
    # Some writers omit the crowd flags.
    num_omitted = tf.where(tf.size(crowds) > 0, 0, num_boxes)
    crowds = tf.pad(crowds, [[0, num_omitted]])
    lists = {_CROWD_KEY: crowds, **{key: parsed[key] for key in _BOX_KEYS}}
    sizes = tf.stack([tf.size(values) for values in lists.values()])
    # Each image is checked on the host, so two checks instead of one for each list.
    checks = [
        tf.debugging.Assert(
            tf.reduce_all(sizes == num_boxes),
            [
                f"{', '.join(lists)} and {_LABEL_KEY} differ in length in the record "
                "of image",
                source_id,
                sizes,
                num_boxes,
            ],
        ),
        tf.debugging.Assert(
            tf.strings.regex_full_match(source_id, "[0-9]{1,19}"),
            [
                f"image/source_id must be an integer from 0 to {MAX_IMAGE_ID}; got",
                source_id,
            ],
        ),
    ]
    with tf.control_dependencies(checks):
        image_id = tf.strings.to_number(source_id, tf.int64)
    return Example(
        encoded=parsed["image/encoded"],
        image_id=image_id,
        boxes_yxyx_norm=tf.stack([parsed[key] for key in _BOX_KEYS], axis=-1),
        category_ids=labels,
        is_crowd=tf.cast(crowds, tf.bool),
    )


def _list_of(dtype: tf.DType) -> tf.io.FixedLenSequenceFeature:
    return tf.io.FixedLenSequenceFeature([], dtype, allow_missing=True)


def _bytes(values: list[bytes]) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def _ints(values: list[int]) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def _floats(values: list[float]) -> tf.train.Feature:
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))


def _fractions(values: list[float], whole: int) -> tf.train.Feature:
    # Clipped, because left + width may exceed the image by a rounding error.
    return _floats([min(max(value / whole, 0.0), 1.0) for value in values])
