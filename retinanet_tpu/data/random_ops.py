"""Random operations on an image and its boxes: shape, color, sharpness and erasing.

Nothing else depends on this file but the settings `Augmentation.random_*` and one call
in `examples.load_image`.
"""

import math

import tensorflow as tf

from retinanet_tpu.data import transforms

# The three operations on colors, then the five on the shape: shear along x and y,
# rotation, translation along x and y.
NUM_OPS = 8
_NUM_COLOR_OPS = 3
# The uniform random numbers of erasing: 1 to choose it, 1 for the area, 1 for the
# aspect ratio and 2 for the place.
_NUM_ERASING = 5
# The largest changes of the shape, at magnitude 1: tangent, radians, share of the side.
# The first two are those of AutoAugment, arXiv:1805.09501, table 6.
_MAX_SHEAR = 0.3
_MAX_ANGLE = math.pi / 6
_MAX_SHIFT = 0.25
# The ranges of the erased share of the image, and of height / width of the rectangle.
_ERASED_SHARE = (0.02, 0.2)
_ERASED_ASPECT = (0.3, 1 / 0.3)


def num_uniforms(num_ops: int) -> int:
    """Returns the number of random numbers that `apply` needs.

    Args:
      num_ops: The number of operations.
    """
    return 2 * num_ops + _NUM_ERASING


def apply(
    image: tf.Tensor,
    boxes_yxyx: tf.Tensor,
    uniforms: tf.Tensor,
    *,
    num_ops: int,
    magnitude: float,
    erasing: float,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Applies random operations one after the other, and perhaps erases a rectangle.

    Each operation is one of NUM_OPS, all equally probable. Its strength is uniform
    between -magnitude and magnitude. Autocontrast and equalize have no strength.

    Args:
      image: uint8 [h, w, 3], RGB.
      boxes_yxyx: float32 [N, 4], px of the image.
      uniforms: float32 [num_uniforms(num_ops)] in [0, 1).
      num_ops: The number of operations.
      magnitude: The largest strength, in [0, 1].
      erasing: The probability that a rectangle is erased.

    Returns:
      The image and the boxes, of the same types and shapes. Boxes of which little
      remains visible are zeros.

    Source: RandAugment, arXiv:1909.13719, a subset of the operations; for boxes,
      arXiv:1906.11172, section 3. Uniform strengths are ours.
    """
    for i in range(num_ops):
        op = tf.cast(tf.floor(uniforms[2 * i] * NUM_OPS), tf.int32)
        strength = magnitude * (2.0 * uniforms[2 * i + 1] - 1.0)
        image, boxes_yxyx = _apply_one(image, boxes_yxyx, op, strength)
    if not erasing:
        return image, boxes_yxyx
    chosen, *others = tf.unstack(uniforms[2 * num_ops :])
    return tf.cond(
        chosen < erasing,
        lambda: erase(image, boxes_yxyx, *others),
        lambda: (image, boxes_yxyx),
    )


def _apply_one(
    image: tf.Tensor, boxes_yxyx: tf.Tensor, op: tf.Tensor, strength: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Applies operation number `op` with a strength in [-1, 1]."""
    strengths = strength * tf.one_hot(op - _NUM_COLOR_OPS, NUM_OPS - _NUM_COLOR_OPS)
    return tf.switch_case(
        tf.minimum(op, _NUM_COLOR_OPS),
        [
            lambda: (autocontrast(image), boxes_yxyx),
            lambda: (equalize(image), boxes_yxyx),
            lambda: (sharpen(image, strength), boxes_yxyx),
            lambda: deform(image, boxes_yxyx, strengths),
        ],
    )


def autocontrast(image: tf.Tensor) -> tf.Tensor:
    """Stretches each channel linearly to 0..255.

    Args:
      image: uint8 [h, w, 3].

    Returns:
      uint8 [h, w, 3]; a channel of one value is kept.
    """
    pixels = tf.cast(image, tf.float32)
    low = tf.reduce_min(pixels, axis=[0, 1])
    spread = tf.reduce_max(pixels, axis=[0, 1]) - low
    stretched = (pixels - low) * (255.0 / tf.maximum(spread, 1.0))
    # The sum of 1e-4 keeps whole numbers whole in spite of rounding.
    return tf.where(spread > 0, tf.cast(stretched + 1e-4, tf.uint8), image)


def equalize(image: tf.Tensor) -> tf.Tensor:
    """Changes each channel so that all of its values become equally frequent.

    Args:
      image: uint8 [h, w, 3].

    Returns:
      uint8 [h, w, 3]; a channel of one value is kept.
    """
    indices = tf.cast(image, tf.int32) + tf.constant([0, 256, 512])
    counts = tf.math.bincount(tf.reshape(indices, [-1]), minlength=768, maxlength=768)
    counts = tf.reshape(counts, [3, 256])
    before = tf.cumsum(counts, axis=1, exclusive=True)
    # The pixels of the largest value are left out, so that they are mapped to 255.
    step = tf.reduce_max(before, axis=1, keepdims=True) // 255
    table = (before + step // 2) // tf.maximum(step, 1)
    table = tf.where(step > 0, tf.clip_by_value(table, 0, 255), tf.range(256))
    return tf.gather(tf.cast(tf.reshape(table, [-1]), tf.uint8), indices)


def sharpen(image: tf.Tensor, strength: tf.Tensor | float) -> tf.Tensor:
    """Adds the difference from the mean of 3 x 3 pixels, or blurs if it is negative.

    Args:
      image: uint8 [h, w, 3].
      strength: float32 [], the factor of the difference. -1 gives the mean.

    Returns:
      uint8 [h, w, 3].
    """
    pixels = tf.cast(image, tf.float32)
    mean = tf.nn.avg_pool2d(pixels[tf.newaxis], 3, 1, "SAME")[0]
    changed = pixels + strength * (pixels - mean)
    return tf.cast(tf.round(tf.clip_by_value(changed, 0.0, 255.0)), tf.uint8)


def deform(
    image: tf.Tensor, boxes_yxyx: tf.Tensor, strengths: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Shears, rotates about the center and translates an image and its boxes.

    A box becomes the box around its four moved corners, clipped to the image. The
    uncovered part of the image is filled with MEAN_COLOR.

    Args:
      image: uint8 [h, w, 3].
      boxes_yxyx: float32 [N, 4], px of the image.
      strengths: float32 [5] in [-1, 1]: of the shear along x and y, of the rotation
        (above 0 is clockwise) and of the translation along x and y.

    Returns:
      The image and the boxes, of the same types and shapes.

    Source: arXiv:1906.11172, section 3; dropping hidden boxes is ours.
    """
    size = tf.shape(image)[:2]
    # TensorFlow's layout optimizer logs an error for slices with a step of -1.
    sides_xy = tf.cast(tf.reverse(size, [0]), tf.float32)
    shear_x, shear_y, turn = tf.unstack(strengths[:3])
    cos, sin = tf.cos(_MAX_ANGLE * turn), tf.sin(_MAX_ANGLE * turn)
    rotation = tf.stack([[cos, -sin], [sin, cos]])
    shear = tf.stack([[1.0, _MAX_SHEAR * shear_x], [_MAX_SHEAR * shear_y, 1.0]])
    forward, center = rotation @ shear, sides_xy / 2
    target = center + _MAX_SHIFT * strengths[3:] * sides_xy
    # The operation maps indices of the output to indices of the input. Pixel i has its
    # center at i + 0.5.
    inverse = tf.linalg.inv(forward)
    offset = center - 0.5 - tf.linalg.matvec(inverse, target - 0.5)
    rows = tf.concat([inverse, offset[:, tf.newaxis]], axis=1)
    mean = tf.constant(transforms.MEAN_COLOR, tf.float32)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=(tf.cast(image, tf.float32) - mean)[tf.newaxis],
        transforms=tf.concat([tf.reshape(rows, [1, 6]), tf.zeros([1, 2])], axis=1),
        output_shape=size,
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )[0]
    ymin, xmin, ymax, xmax = tf.unstack(boxes_yxyx, axis=1)
    corners_x = tf.stack([xmin, xmax, xmin, xmax], axis=1)
    corners_y = tf.stack([ymin, ymin, ymax, ymax], axis=1)
    corners_xy = tf.stack([corners_x, corners_y], axis=2) - center
    corners_xy = tf.linalg.matvec(forward, corners_xy) + target
    low, high = tf.reduce_min(corners_xy, axis=1), tf.reduce_max(corners_xy, axis=1)
    around = tf.concat([tf.reverse(low, [1]), tf.reverse(high, [1])], axis=1)
    clipped = tf.clip_by_value(around, 0.0, tf.tile(tf.cast(size, tf.float32), [2]))
    # An empty box at the edge would become a box again.
    whole = tf.where(
        transforms.is_nonempty(boxes_yxyx), transforms.areas(around), math.inf
    )
    boxes_yxyx = transforms.drop_hidden(clipped, transforms.areas(clipped), whole)
    return tf.cast(tf.round(moved + mean), tf.uint8), boxes_yxyx


def erase(
    image: tf.Tensor,
    boxes_yxyx: tf.Tensor,
    area: tf.Tensor | float,
    aspect: tf.Tensor | float,
    top: tf.Tensor | float,
    left: tf.Tensor | float,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Fills a rectangle with MEAN_COLOR.

    The paper keeps all labels. Here a box of which less than a fifth remains is
    dropped, because a hidden small object cannot be detected.

    Args:
      image: uint8 [h, w, 3].
      boxes_yxyx: float32 [N, 4], px of the image.
      area: float32 [] in [0, 1), the place in the range of areas.
      aspect: float32 [] in [0, 1), the place in the range of aspect ratios.
      top: float32 [] in [0, 1), the place of the rectangle along y.
      left: float32 [] in [0, 1), the place of the rectangle along x.

    Returns:
      The image and the boxes, of the same types and shapes.

    Source: Random Erasing, arXiv:1708.04896, algorithm 1, filled as its RE-M. A
      rectangle that does not fit is cut here, not drawn again.
    """
    sides = tf.cast(tf.shape(image)[:2], tf.float32)
    share = _ERASED_SHARE[0] + area * (_ERASED_SHARE[1] - _ERASED_SHARE[0])
    ratio = _ERASED_ASPECT[0] * (_ERASED_ASPECT[1] / _ERASED_ASPECT[0]) ** aspect
    pixels = share * tf.reduce_prod(sides)
    size = tf.round(tf.sqrt(tf.stack([pixels * ratio, pixels / ratio])))
    size = tf.clip_by_value(size, 1.0, sides)
    start = tf.minimum(tf.floor([top, left] * (sides - size + 1.0)), sides - size)
    end = start + size
    rows, columns = tf.range(sides[0]), tf.range(sides[1])
    is_row = (rows >= start[0]) & (rows < end[0])
    is_column = (columns >= start[1]) & (columns < end[1])
    is_erased = (is_row[:, tf.newaxis] & is_column)[..., tf.newaxis]
    image = tf.where(is_erased, tf.constant(transforms.MEAN_COLOR, tf.uint8), image)
    hidden = tf.clip_by_value(boxes_yxyx, tf.tile(start, [2]), tf.tile(end, [2]))
    whole = transforms.areas(boxes_yxyx)
    return image, transforms.drop_hidden(
        boxes_yxyx, whole - transforms.areas(hidden), whole
    )
