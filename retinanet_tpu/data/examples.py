"""One record -> one example: a uint8 image and its padded boxes."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from retinanet_tpu import structures
from retinanet_tpu.data import category_map, tf_example, transforms


class Augmentation(NamedTuple):
    """What training changes at random in an image."""

    scale_jitter: tuple[float, float] = (1.0, 1.0)  # range of size, 1 fits the canvas
    horizontal_flip: bool = True  # mirror every other image, left to right
    vertical_flip: bool = False  # and, independently, top to bottom
    color_jitter: float = (
        0.0  # brightness, contrast, saturation by factors within 1 +- this
    )


NUM_UNIFORMS = 8  # random numbers that an example's augmentation takes


class OutputSpec(NamedTuple):
    """The static shape of an example."""

    image_size: tuple[int, int]  # height and width of the network's input
    max_boxes: int = 100  # of more boxes the largest stay


def load_example(
    serialized: tf.Tensor,
    categories: category_map.Categories,
    canvas: OutputSpec,
    augmentation: Augmentation | None = None,
    draws: tf.Tensor | None = None,
) -> tuple[structures.Features, structures.Labels]:
    """Returns one example, unbatched.

    Args:
      serialized: string [], a tf.train.Example.
      categories: of the data directory.
      canvas: the shape to give it.
      augmentation: None shows the whole image, as evaluation does.
      draws: float32 [NUM_DRAWS] in [0, 1), the luck of the augmentation.

    Raises:
      tf.errors.InvalidArgumentError: when run, the record lacks a key, its image does
        not decode, or a category is unknown.
    """
    example = tf_example.parse(serialized)

    def window_fn(image_size: tf.Tensor) -> transforms.CropWindow:
        if augmentation is None:
            return transforms.crop_window(image_size, canvas.image_size)
        low, high = augmentation.scale_jitter
        return transforms.crop_window(
            image_size,
            canvas.image_size,
            scale=low + draws[0] * (high - low),
            position=draws[1:3],
        )

    picture, image_size, window = transforms.decode_and_resize(
        example.encoded, window_fn
    )
    original = tf.tile(tf.cast(image_size, tf.float32), [2])
    boxes_yxyx = transforms.transform_boxes(example.boxes_yxyx_norm * original, window)
    if augmentation is not None:
        picture, boxes_yxyx = _augmented(picture, boxes_yxyx, augmentation, draws)
    features = structures.Features(
        images=transforms.pad_to_size(picture, canvas.image_size),
        image_ids=example.image_id,
        image_sizes=image_size,
        scales=window.scales,
    )
    classes = _class_indexes(example, categories)
    labels = _padded_labels(boxes_yxyx, classes, example.is_crowd, canvas.max_boxes)
    return features, labels


def padding_example(
    canvas: OutputSpec,
) -> tuple[structures.Features, structures.Labels]:
    """Returns an image without boxes that only fills up a batch, unbatched."""
    empty = tf.zeros([0, 0, 3], tf.uint8)
    features = structures.Features(
        images=transforms.pad_to_size(empty, canvas.image_size),
        image_ids=tf.constant(structures.PADDING_IMAGE, tf.int64),
        # As if it filled the canvas: dividing by sizes and scales stays safe.
        image_sizes=tf.constant(canvas.image_size, tf.int32),
        scales=tf.ones([2]),
    )
    no_boxes = tf.zeros([0, 4])
    classes, crowds = tf.zeros([0], tf.int32), tf.zeros([0], tf.bool)
    return features, _padded_labels(no_boxes, classes, crowds, canvas.max_boxes)


def _augmented(
    picture: tf.Tensor,
    boxes_yxyx: tf.Tensor,
    augmentation: Augmentation,
    draws: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the resized image and its boxes, mirrored and recolored by chance."""
    if augmentation.horizontal_flip:
        picture, boxes_yxyx = _flipped_by_half(picture, boxes_yxyx, draws[3])
    if augmentation.vertical_flip:
        picture, boxes_yxyx = _flipped_by_half(
            picture, boxes_yxyx, draws[4], is_vertical=True
        )
    if augmentation.color_jitter:
        factors = 1.0 + augmentation.color_jitter * (2.0 * draws[5:8] - 1.0)
        picture = transforms.color_jitter(picture, *tf.unstack(factors))
    return picture, boxes_yxyx


def _flipped_by_half(picture, boxes_yxyx, draw, *, is_vertical=False):
    return tf.cond(
        draw < 0.5,
        lambda: transforms.flip(picture, boxes_yxyx, is_vertical=is_vertical),
        lambda: (picture, boxes_yxyx),
    )


def _class_indexes(
    example: tf_example.Example, categories: category_map.Categories
) -> tf.Tensor:
    """Returns int32 [N]: the network's index of each category id."""
    id_to_index = sorted(categories.id_to_index.items())
    ids = np.array([i for i, _ in id_to_index], np.int64)
    indexes = np.array([index for _, index in id_to_index], np.int32)
    places = tf.minimum(tf.searchsorted(ids, example.category_ids), len(ids) - 1)
    is_unknown = tf.gather(ids, places) != example.category_ids
    check = tf.debugging.Assert(
        tf.logical_not(tf.reduce_any(is_unknown)),
        [
            f"Category id not in {category_map.FILE_NAME} (the records and the file "
            "must come from one conversion):",
            tf.boolean_mask(example.category_ids, is_unknown),
            "of image",
            example.image_id,
        ],
    )
    with tf.control_dependencies([check]):
        return tf.gather(indexes, places)


def _padded_labels(
    boxes_yxyx: tf.Tensor, classes: tf.Tensor, is_crowd: tf.Tensor, max_boxes: int
) -> structures.Labels:
    seen = tf.where(transforms.is_nonempty(boxes_yxyx))[:, 0]
    keep = tf.gather(
        seen, transforms.largest_box_indices(tf.gather(boxes_yxyx, seen), max_boxes)
    )
    num_boxes = tf.size(keep)

    def pad(values: tf.Tensor) -> tf.Tensor:
        kept = tf.gather(values, keep)
        rows = [[0, max_boxes - num_boxes]] + [[0, 0]] * (values.shape.rank - 1)
        return tf.ensure_shape(tf.pad(kept, rows), [max_boxes, *values.shape[1:]])

    return structures.Labels(pad(boxes_yxyx), pad(classes), pad(is_crowd), num_boxes)
