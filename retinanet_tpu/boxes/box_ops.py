"""Areas, overlaps and coordinate frames of boxes.

yxyx   (ymin, xmin, ymax, xmax), the frame inside this package
cyxhw  (center y, center x, height, width), the frame of anchors
xyxy   (xmin, ymin, xmax, ymax), the frame of drawing tools
xywh   (xmin, ymin, width, height), the frame of COCO files
"""

import tensorflow as tf


def area(boxes_yxyx: tf.Tensor) -> tf.Tensor:
    """Returns the areas of boxes [..., 4], float32 [...]; 0 if a side is negative."""
    ymin, xmin, ymax, xmax = tf.unstack(boxes_yxyx, axis=-1)
    return tf.maximum(ymax - ymin, 0.0) * tf.maximum(xmax - xmin, 0.0)


def intersection(a_yxyx: tf.Tensor, b_yxyx: tf.Tensor) -> tf.Tensor:
    """Returns the areas of the intersections, float32 [..., N, M].

    Args:
      a_yxyx: float32 [..., N, 4].
      b_yxyx: float32 [..., M, 4], in the unit of `a_yxyx`. Leading axes broadcast.
    """
    a = [side[..., :, None] for side in tf.unstack(a_yxyx, axis=-1)]
    b = [side[..., None, :] for side in tf.unstack(b_yxyx, axis=-1)]
    height = tf.minimum(a[2], b[2]) - tf.maximum(a[0], b[0])
    width = tf.minimum(a[3], b[3]) - tf.maximum(a[1], b[1])
    return tf.maximum(height, 0.0) * tf.maximum(width, 0.0)


def iou(a_yxyx: tf.Tensor, b_yxyx: tf.Tensor) -> tf.Tensor:
    """Returns the intersections over unions, float32 [..., N, M] in [0, 1].

    The IoU of a box without area is 0, also with itself.

    Args:
      a_yxyx: float32 [..., N, 4].
      b_yxyx: float32 [..., M, 4], in the unit of `a_yxyx`. Leading axes broadcast.
    """
    intersections = intersection(a_yxyx, b_yxyx)
    unions = area(a_yxyx)[..., :, None] + area(b_yxyx)[..., None, :] - intersections
    return tf.math.divide_no_nan(intersections, unions)


def paired_iou(a_yxyx: tf.Tensor, b_yxyx: tf.Tensor) -> tf.Tensor:
    """Returns the IoU of each pair of boxes, float32 [...].

    Args:
      a_yxyx: float32 [..., 4].
      b_yxyx: float32 [..., 4]. The box at the same index as in `a_yxyx`.
    """
    return iou(a_yxyx[..., None, :], b_yxyx[..., None, :])[..., 0, 0]


def clip(boxes_yxyx: tf.Tensor, sizes: tf.Tensor) -> tf.Tensor:
    """Returns the boxes clipped to images.

    Args:
      boxes_yxyx: float32 [..., 4], px.
      sizes: The heights and widths of the images, px. [2], or [..., 2] that broadcasts
        with the boxes.
    Returns:
      float32 [..., 4]. A box outside its image has an area of 0.
    """
    limits = tf.cast(sizes, boxes_yxyx.dtype)
    limits = tf.concat([limits, limits], axis=-1)
    return tf.maximum(tf.minimum(boxes_yxyx, limits), 0.0)


def yxyx_to_cyxhw(boxes_yxyx: tf.Tensor) -> tf.Tensor:
    """Returns the centers and sizes of yxyx boxes, [..., 4]."""
    ymin, xmin, ymax, xmax = tf.unstack(boxes_yxyx, axis=-1)
    center = [(ymin + ymax) * 0.5, (xmin + xmax) * 0.5]
    return tf.stack([*center, ymax - ymin, xmax - xmin], axis=-1)


def cyxhw_to_yxyx(boxes_cyxhw: tf.Tensor) -> tf.Tensor:
    """Returns the corners of cyxhw boxes, [..., 4]."""
    y, x, height, width = tf.unstack(boxes_cyxhw, axis=-1)
    h, w = height * 0.5, width * 0.5
    return tf.stack([y - h, x - w, y + h, x + w], axis=-1)


def swap_xy(boxes: tf.Tensor) -> tf.Tensor:
    """Returns boxes [..., 4] with x and y swapped: yxyx to xyxy, or xyxy to yxyx."""
    y1, x1, y2, x2 = tf.unstack(boxes, axis=-1)
    return tf.stack([x1, y1, x2, y2], axis=-1)
