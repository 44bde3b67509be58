"""Turns one record into one example: a uint8 image and its padded boxes."""

import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from retinanet_tpu import structures
from retinanet_tpu.data import category_map, random_ops, tf_example, transforms

# The uniform random numbers that one example's augmentation uses: 1 for the scale, 2
# for the position, 2 for the flips and 3 for the color. Those of `random_ops` follow.
NUM_UNIFORMS = 8


class Augmentation(NamedTuple):
    """The random changes that training makes to an image.

    A mosaic or a mixup is made after the other changes, of images that follow each
    other in the shuffled order. It has the boxes of all its images; the largest
    `max_boxes` of them are kept.

    Attributes:
      scale_jitter: The range of the size. 1 fits the image into the output.
      horizontal_flip: Mirrors an image left to right with probability 1/2.
      vertical_flip: Independently mirrors it top to bottom with probability 1/2.
      color_jitter: Brightness, contrast and saturation are multiplied by factors in
        1 +- color_jitter.
      random_ops: The number of random operations on an image: autocontrast, equalize,
        sharpening or blurring, shear, rotation or translation.
      random_magnitude: The largest strength of these operations, in [0, 1]. At 1 they
        shear by 0.3, rotate by 30 degrees and translate by a fourth of the image.
      random_erasing: The probability that a rectangle of 2 to 20 % of the image is
        filled with MEAN_COLOR.
      mosaic: The probability that an image is joined with the next three.
      mosaic_scale: The range of the size of the images in a mosaic, relative to their
        size alone.
      mixup: The probability that an image is blended with another one.
      last_mixed_step: The last training step with mosaics and mixups; None for all.
    """

    scale_jitter: tuple[float, float] = (1.0, 1.0)
    horizontal_flip: bool = True
    vertical_flip: bool = False
    color_jitter: float = 0.0
    random_ops: int = 0
    random_magnitude: float = 0.3
    random_erasing: float = 0.0
    mosaic: float = 0.0
    mosaic_scale: tuple[float, float] = (0.5, 1.0)
    mixup: float = 0.0
    last_mixed_step: int | None = None

    @property
    def mixes(self) -> bool:
        """Returns whether an example may show several images."""
        return self.mosaic > 0 or self.mixup > 0

    @property
    def num_random_op_uniforms(self) -> int:
        """Returns the number of random numbers that `random_ops` needs."""
        is_used = self.random_ops > 0 or self.random_erasing > 0
        return random_ops.num_uniforms(self.random_ops) if is_used else 0


class OutputSpec(NamedTuple):
    """The static shape of an example.

    Attributes:
      image_size: The height and width of the network's input, px.
      max_boxes: N of the padded labels. Of more boxes the largest are kept.
      keep_aspect_ratio: Whether images keep their aspect ratio, with padding below or
        at the right. Otherwise they are stretched to image_size.
    """

    image_size: tuple[int, int]
    max_boxes: int = 100
    keep_aspect_ratio: bool = True


class LoadedImage(NamedTuple):
    """An image at the size of the network's input, before padding.

    Attributes:
      image: uint8 [h, w, 3], RGB, at most of the output size.
      boxes_yxyx: float32 [N, 4], px of `image`.
      classes: int32 [N], the network's class indices.
      is_crowd: bool [N].
      image_id: int64 [].
      image_size: int32 [2], height and width of the original image, px.
      scales: float32 [2], (y, x) resized size / original size.
    """

    image: tf.Tensor
    boxes_yxyx: tf.Tensor
    classes: tf.Tensor
    is_crowd: tf.Tensor
    image_id: tf.Tensor
    image_size: tf.Tensor
    scales: tf.Tensor


def load_example(
    serialized: tf.Tensor,
    categories: category_map.Categories,
    output: OutputSpec,
    augmentation: Augmentation | None = None,
    uniforms: tf.Tensor | None = None,
) -> tuple[structures.Features, structures.Labels]:
    """Returns one example, unbatched.

    Args:
      serialized: string [], a serialized tf.train.Example.
      categories: The classes of the data directory.
      output: The static shape of the example.
      augmentation: The random changes. None keeps the whole image, as in evaluation.
      uniforms: float32 [NUM_UNIFORMS + num_random_op_uniforms] in [0, 1), the random
        numbers that decide the augmentation.

    Raises:
      ValueError: An augmentation without random numbers.
      tf.errors.InvalidArgumentError: At run time, if the record lacks a key, its image
        cannot be decoded, or a category is unknown.
    """
    loaded = load_image(serialized, categories, output, augmentation, uniforms)
    return pad(loaded, output)


def load_image(
    serialized: tf.Tensor,
    categories: category_map.Categories,
    output: OutputSpec,
    augmentation: Augmentation | None = None,
    uniforms: tf.Tensor | None = None,
) -> LoadedImage:
    """Returns the image of one record, with all of its boxes.

    Args:
      serialized: string [], a serialized tf.train.Example.
      categories: The classes of the data directory.
      output: The size of the network's input; all boxes are kept.
      augmentation: The random changes of a single image; None for none.
      uniforms: float32 [NUM_UNIFORMS + num_random_op_uniforms] in [0, 1).

    Raises:
      ValueError: An augmentation without random numbers.
      tf.errors.InvalidArgumentError: At run time, see `load_example`.
    """
    if augmentation is not None and uniforms is None:
        raise ValueError("An augmentation needs `uniforms`.")
    example = tf_example.parse(serialized)
    fit = functools.partial(
        transforms.crop_window,
        output_size=output.image_size,
        keep_aspect_ratio=output.keep_aspect_ratio,
    )

    def window_fn(image_size: tf.Tensor) -> transforms.CropWindow:
        if augmentation is None or uniforms is None:
            return fit(image_size)
        low, high = augmentation.scale_jitter
        return fit(
            image_size,
            scale=low + uniforms[0] * (high - low),
            position=uniforms[1:3],
        )

    image, original_size, window = transforms.decode_and_resize(
        example.encoded, window_fn
    )
    sides = tf.cast(original_size, tf.float32)
    boxes_yxyx = example.boxes_yxyx_norm * tf.concat([sides, sides], axis=0)
    boxes_yxyx = transforms.transform_boxes(boxes_yxyx, window)
    if augmentation is not None and uniforms is not None:
        image, boxes_yxyx = _flip_and_recolor(image, boxes_yxyx, augmentation, uniforms)
        if augmentation.num_random_op_uniforms:
            image, boxes_yxyx = random_ops.apply(
                image,
                boxes_yxyx,
                uniforms[NUM_UNIFORMS:],
                num_ops=augmentation.random_ops,
                magnitude=augmentation.random_magnitude,
                erasing=augmentation.random_erasing,
            )
    return LoadedImage(
        image=image,
        boxes_yxyx=boxes_yxyx,
        classes=_class_indexes(example, categories),
        is_crowd=example.is_crowd,
        image_id=example.image_id,
        image_size=original_size,
        scales=window.scales,
    )


def pad(
    loaded: LoadedImage, output: OutputSpec
) -> tuple[structures.Features, structures.Labels]:
    """Returns an example of static shape, unbatched.

    Args:
      loaded: The image; boxes of less than a pixel are dropped.
      output: The static shape of the example.
    """
    features = structures.Features(
        images=transforms.pad_to_size(loaded.image, output.image_size),
        image_ids=loaded.image_id,
        image_sizes=loaded.image_size,
        scales=loaded.scales,
    )
    labels = _padded_labels(
        loaded.boxes_yxyx, loaded.classes, loaded.is_crowd, output.max_boxes
    )
    return features, labels


def padding_example(
    output: OutputSpec,
) -> tuple[structures.Features, structures.Labels]:
    """Returns an unbatched image without boxes that only fills up a batch.

    Args:
      output: The static shape of the example.
    """
    empty = tf.zeros([0, 0, 3], tf.uint8)
    features = structures.Features(
        images=transforms.pad_to_size(empty, output.image_size),
        image_ids=tf.constant(structures.PADDING_IMAGE, tf.int64),
        # Not 0: later steps divide by sizes and scales.
        image_sizes=tf.constant(output.image_size, tf.int32),
        scales=tf.ones([2]),
    )
    no_boxes = tf.zeros([0, 4])
    no_classes = tf.zeros([0], tf.int32)
    no_crowds = tf.zeros([0], tf.bool)
    return features, _padded_labels(no_boxes, no_classes, no_crowds, output.max_boxes)


def _flip_and_recolor(
    image: tf.Tensor,
    boxes_yxyx: tf.Tensor,
    augmentation: Augmentation,
    uniforms: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the resized image and its boxes after random flips and color jitter."""
    if augmentation.horizontal_flip:
        image, boxes_yxyx = _flip_half_of_the_time(image, boxes_yxyx, uniforms[3])
    if augmentation.vertical_flip:
        image, boxes_yxyx = _flip_half_of_the_time(
            image, boxes_yxyx, uniforms[4], is_vertical=True
        )
    if augmentation.color_jitter:
        factors = 1.0 + augmentation.color_jitter * (2.0 * uniforms[5:8] - 1.0)
        image = transforms.color_jitter(image, *tf.unstack(factors))
    return image, boxes_yxyx


def _flip_half_of_the_time(
    image: tf.Tensor,
    boxes_yxyx: tf.Tensor,
    uniform: tf.Tensor,
    *,
    is_vertical: bool = False,
) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.cond(
        uniform < 0.5,
        lambda: transforms.flip(image, boxes_yxyx, is_vertical=is_vertical),
        lambda: (image, boxes_yxyx),
    )


def _class_indexes(
    example: tf_example.Example, categories: category_map.Categories
) -> tf.Tensor:
    """Returns int32 [N]: the network's index of each category id."""
    id_to_index = sorted(categories.id_to_index.items())
    ids = np.array([i for i, _ in id_to_index], np.int64)
    indexes = np.array([index for _, index in id_to_index], np.int32)
    positions = tf.minimum(tf.searchsorted(ids, example.category_ids), len(ids) - 1)
    is_unknown = tf.gather(ids, positions) != example.category_ids
    unknown = tf.reduce_max(tf.where(is_unknown, example.category_ids, -1))
    # Strings, because Assert prints numbers of 64 bits in a branch, which costs time.
    check = tf.debugging.Assert(
        tf.logical_not(tf.reduce_any(is_unknown)),
        [
            f"Category id not in {category_map.FILE_NAME} (the records and the file "
            "must come from one conversion):",
            tf.strings.as_string(unknown),
            "of image",
            tf.strings.as_string(example.image_id),
        ],
    )
    with tf.control_dependencies([check]):
        return tf.gather(indexes, positions)


def _padded_labels(
    boxes_yxyx: tf.Tensor, classes: tf.Tensor, is_crowd: tf.Tensor, max_boxes: int
) -> structures.Labels:
    """Returns the labels of the largest boxes that are not empty."""
    keep = transforms.largest_box_indices(boxes_yxyx, max_boxes)
    num_boxes = tf.size(keep)
    num_padding = max_boxes - num_boxes

    def pad(values: tf.Tensor) -> tf.Tensor:
        padding = tf.zeros([num_padding, *values.shape[1:]], values.dtype)
        padded = tf.concat([tf.gather(values, keep), padding], axis=0)
        return tf.ensure_shape(padded, [max_boxes, *values.shape[1:]])

    return structures.Labels(pad(boxes_yxyx), pad(classes), pad(is_crowd), num_boxes)
