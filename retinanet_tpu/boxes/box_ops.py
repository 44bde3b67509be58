"""Areas, overlaps and coordinate frames of boxes.

yxyx is (ymin, xmin, ymax, xmax), cyxhw is (center y, center x, height, width), xyxy is
what drawing tools want, xywh (corner and size) what COCO files hold.
"""

import tensorflow as tf


def area(boxes_yxyx: tf.Tensor) -> tf.Tensor:
    """Returns float32 [...], the area of boxes [..., 4]; 0 if a side is negative."""
    ymin, xmin, ymax, xmax = tf.unstack(boxes_yxyx, axis=-1)
    return tf.maximum(ymax - ymin, 0.0) * tf.maximum(xmax - xmin, 0.0)


def intersection(a_yxyx: tf.Tensor, b_yxyx: tf.Tensor) -> tf.Tensor:
    """Returns float32 [..., N, M], the area that boxes share.

    Args:
      a_yxyx: float32 [..., N, 4].
      b_yxyx: float32 [..., M, 4], in the unit of `a_yxyx`; leading axes broadcast.
    """
    a = [side[..., :, None] for side in tf.unstack(a_yxyx, axis=-1)]
    b = [side[..., None, :] for side in tf.unstack(b_yxyx, axis=-1)]
    height = tf.minimum(a[2], b[2]) - tf.maximum(a[0], b[0])
    width = tf.minimum(a[3], b[3]) - tf.maximum(a[1], b[1])
    return tf.maximum(height, 0.0) * tf.maximum(width, 0.0)


def iou(a_yxyx: tf.Tensor, b_yxyx: tf.Tensor) -> tf.Tensor:
    """Returns float32 [..., N, M] in [0, 1], intersection over union.

    A box without area overlaps nothing, not even itself.

    Args:
      a_yxyx: float32 [..., N, 4].
      b_yxyx: float32 [..., M, 4], in the unit of `a_yxyx`; leading axes broadcast.
    """
    shared = intersection(a_yxyx, b_yxyx)
    union = area(a_yxyx)[..., :, None] + area(b_yxyx)[..., None, :] - shared
    return tf.math.divide_no_nan(shared, union)


def paired_iou(a_yxyx: tf.Tensor, b_yxyx: tf.Tensor) -> tf.Tensor:
    """Returns float32 [...], the IoU of each box of `a_yxyx` with its mate [..., 4]."""
    return iou(a_yxyx[..., None, :], b_yxyx[..., None, :])[..., 0, 0]


def clip(boxes_yxyx: tf.Tensor, sizes: tf.Tensor) -> tf.Tensor:
    """Returns the boxes cut to an image that begins at (0, 0).

    Args:
      boxes_yxyx: float32 [..., 4], px.
      sizes: (height, width), px, [2] or [..., 2] that broadcasts with the boxes.
    Returns:
      float32 [..., 4]; a box outside the image keeps no area.
    """
    limits = tf.cast(sizes, boxes_yxyx.dtype)
    limits = tf.concat([limits, limits], axis=-1)
    return tf.maximum(tf.minimum(boxes_yxyx, limits), 0.0)


def yxyx_to_cyxhw(boxes_yxyx: tf.Tensor) -> tf.Tensor:
    """Returns [..., 4] centers and sizes of corner boxes."""
    ymin, xmin, ymax, xmax = tf.unstack(boxes_yxyx, axis=-1)
    center = [(ymin + ymax) * 0.5, (xmin + xmax) * 0.5]
    return tf.stack([*center, ymax - ymin, xmax - xmin], axis=-1)


def cyxhw_to_yxyx(boxes_cyxhw: tf.Tensor) -> tf.Tensor:
    """Returns [..., 4] corners of boxes given by center and size."""
    y, x, height, width = tf.unstack(boxes_cyxhw, axis=-1)
    h, w = height * 0.5, width * 0.5
    return tf.stack([y - h, x - w, y + h, x + w], axis=-1)


def swap_xy(boxes: tf.Tensor) -> tf.Tensor:
    """Returns [..., 4] with x and y exchanged: yxyx to xyxy, and back."""
    y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
    return tf.stack([x1, y1, x2, y2], axis=-1)
