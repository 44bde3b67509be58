"""Joins several images into one: mosaic and mixup."""

from collections.abc import Sequence

import tensorflow as tf

from retinanet_tpu.data import examples, transforms

# The images of a mosaic. The examples of a group are mixed with each other.
GROUP_SIZE = 4
# The uniform random numbers of one example: 1 to choose a mosaic, 1 for its scale, 2
# for its center, and 1 to choose a mixup.
NUM_UNIFORMS = 5
# The range of the center of a mosaic, as a share of the output's sides.
_CENTER = (0.25, 0.75)


def mix(
    group: Sequence[examples.LoadedImage],
    output_size: tuple[int, int],
    augmentation: examples.Augmentation,
    uniforms: tf.Tensor,
) -> examples.LoadedImage:
    """Returns the first image of a group, perhaps joined with the others.

    Args:
      group: GROUP_SIZE images.
      output_size: The height and width of the network's input, px.
      augmentation: The probabilities.
      uniforms: float32 [NUM_UNIFORMS] in [0, 1). A mosaic is made if the first number
        is below its probability, and a mixup if the last one is.

    Returns:
      The image with the boxes of all that it shows, and the id and size of the first.
    """
    first, second = group[0], group[1]
    low, high = augmentation.mosaic_scale
    scale = low + uniforms[1] * (high - low)
    center = _CENTER[0] + uniforms[2:4] * (_CENTER[1] - _CENTER[0])
    mixed = tf.cond(
        uniforms[0] < augmentation.mosaic,
        lambda: mosaic(group, output_size, scale, center),
        lambda: first,
    )
    return tf.cond(
        uniforms[4] < augmentation.mixup,
        lambda: mixup(mixed, second, output_size),
        lambda: mixed,
    )


def mosaic(
    group: Sequence[examples.LoadedImage],
    output_size: tuple[int, int],
    scale: tf.Tensor | float,
    center: tf.Tensor | tuple[float, float],
) -> examples.LoadedImage:
    """Joins four images at a point: one in each quadrant, cropped at the output's edge.

    A quadrant that is larger than its image is filled with MEAN_COLOR. Boxes are
    clipped. A box of which less than a fifth is visible becomes empty.

    Args:
      group: The images at the top left, top right, bottom left and bottom right.
      output_size: The height and width of the output, px.
      scale: float32 [], the factor of the size of each image.
      center: float32 [2], the point (y, x) as a share of the output's sides, in (0, 1).

    Returns:
      An image of the output size, with all boxes and the id and size of the first.

    Source: YOLOv4, arXiv:2004.10934, section 3.4.
    """
    output = tf.constant(output_size)
    middle = tf.cast(tf.round(center * tf.cast(output, tf.float32)), tf.int32)
    middle = tf.clip_by_value(middle, 1, output - 1)
    images, boxes = [], []
    for index, loaded in enumerate(group):
        is_after = tf.constant([index >= 2, index % 2 == 1])  # Below, at the right.
        size = tf.where(is_after, output - middle, middle)
        image, boxes_yxyx = _placed(loaded, scale, size, is_after)
        images.append(image)
        origin = tf.where(is_after, middle, 0)
        boxes.append(boxes_yxyx + tf.tile(tf.cast(origin, tf.float32), [2]))
    rows = [tf.concat(images[:2], axis=1), tf.concat(images[2:], axis=1)]
    return group[0]._replace(
        image=tf.ensure_shape(tf.concat(rows, axis=0), [*output_size, 3]),
        boxes_yxyx=tf.concat(boxes, axis=0),
        classes=tf.concat([loaded.classes for loaded in group], axis=0),
        is_crowd=tf.concat([loaded.is_crowd for loaded in group], axis=0),
    )


def mixup(
    first: examples.LoadedImage,
    second: examples.LoadedImage,
    output_size: tuple[int, int],
) -> examples.LoadedImage:
    """Blends two images equally; all boxes count in full.

    Args:
      first: An image, whose id and size are kept.
      second: Another image.
      output_size: The height and width of the output, px.

    Returns:
      An image of the output size.

    Source: mixup, arXiv:1710.09412; for detection, arXiv:1902.04103, section 3.1.
    """
    padded = [
        tf.cast(transforms.pad_to_size(loaded.image, output_size), tf.float32)
        for loaded in (first, second)
    ]
    return first._replace(
        image=tf.cast((padded[0] + padded[1]) / 2, tf.uint8),
        boxes_yxyx=tf.concat([first.boxes_yxyx, second.boxes_yxyx], axis=0),
        classes=tf.concat([first.classes, second.classes], axis=0),
        is_crowd=tf.concat([first.is_crowd, second.is_crowd], axis=0),
    )


def _placed(
    loaded: examples.LoadedImage,
    scale: tf.Tensor | float,
    size: tf.Tensor,
    is_after: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns a quadrant of a mosaic and its boxes, px of the quadrant.

    Args:
      loaded: The image. One of its corners lies on the center of the mosaic.
      scale: float32 [], the factor of its size.
      size: int32 [2], the height and width of the quadrant, px.
      is_after: bool [2], whether the quadrant is below and at the right of the center.
    """
    before = tf.shape(loaded.image)[:2]
    resized = tf.cast(tf.round(scale * tf.cast(before, tf.float32)), tf.int32)
    resized = tf.maximum(resized, 1)
    pixels = tf.image.resize(tf.cast(loaded.image, tf.float32), resized)
    # Towards the center lies the edge of the image that is shown in any case.
    shift = tf.where(is_after, 0, size - resized)
    start, end = tf.maximum(shift, 0), tf.minimum(shift + resized, size)
    (top, left), (bottom, right) = tf.unstack(start - shift), tf.unstack(end - shift)
    visible = tf.cast(tf.round(pixels[top:bottom, left:right]), tf.uint8)
    padding = tf.stack([start, size - end], axis=1)
    image = _padded(visible, padding, size)
    factors = tf.cast(resized, tf.float32) / tf.cast(before, tf.float32)
    moved = loaded.boxes_yxyx * tf.tile(factors, [2])
    moved += tf.tile(tf.cast(shift, tf.float32), [2])
    low = tf.tile(tf.cast(start, tf.float32), [2])
    high = tf.tile(tf.cast(end, tf.float32), [2])
    clipped = tf.clip_by_value(moved, low, high)
    return image, transforms.drop_hidden(
        clipped, transforms.areas(clipped), transforms.areas(moved)
    )


def _padded(image: tf.Tensor, padding: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Returns uint8 [*size, 3]: an image with MEAN_COLOR around it."""
    inside = tf.ones_like(image[..., :1], tf.bool)
    is_inside = tf.pad(inside, tf.concat([padding, [[0, 0]]], axis=0))
    padded = tf.pad(image, tf.concat([padding, [[0, 0]]], axis=0))
    mean = tf.constant(transforms.MEAN_COLOR, tf.uint8)
    return tf.reshape(tf.where(is_inside, padded, mean), tf.concat([size, [3]], axis=0))
