"""Encodes boxes as offsets from anchors, and decodes them."""

import math

import tensorflow as tf

from retinanet_tpu.boxes import box_ops

# An untrained network may predict a dw of 100: exp(100) px would overflow and make the
# IoU NaN. 1000 / 16 is Detectron's bound: a 16 px anchor can still cover an image.
MAX_LOG_SCALE = math.log(1000 / 16)


def encode(boxes_yxyx: tf.Tensor, anchors_cyxhw: tf.Tensor) -> tf.Tensor:
    """Returns the offsets that move anchors onto boxes.

    Args:
      boxes_yxyx: float32 [..., 4], px. Boxes of positive size.
      anchors_cyxhw: float32 [..., 4], px. Anchors of positive size.
    Returns:
      float32 [..., 4]: (dy, dx) is the center offset / anchor size, (dh, dw) is the
      logarithm of the size ratio.
    Source: R-CNN, arXiv:1311.2524, appendix C.
    """
    y, x, h, w = tf.unstack(box_ops.yxyx_to_cyxhw(boxes_yxyx), axis=-1)
    anchor_y, anchor_x, anchor_h, anchor_w = tf.unstack(anchors_cyxhw, axis=-1)
    return tf.stack(
        [
            (y - anchor_y) / anchor_h,
            (x - anchor_x) / anchor_w,
            tf.math.log(h / anchor_h),
            tf.math.log(w / anchor_w),
        ],
        axis=-1,
    )


def decode(deltas: tf.Tensor, anchors_cyxhw: tf.Tensor) -> tf.Tensor:
    """Returns the boxes that offsets from anchors describe.

    The inverse of `encode`: decode(encode(b, a), a) == b for boxes of positive size.

    Args:
      deltas: float32 [..., 4], (dy, dx, dh, dw). dh and dw are limited to
        MAX_LOG_SCALE.
      anchors_cyxhw: float32 [..., 4], px.
    Returns:
      float32 [..., 4], yxyx, px.
    """
    dy, dx, dh, dw = tf.unstack(deltas, axis=-1)
    anchor_y, anchor_x, anchor_h, anchor_w = tf.unstack(anchors_cyxhw, axis=-1)
    boxes_cyxhw = tf.stack(
        [
            anchor_y + dy * anchor_h,
            anchor_x + dx * anchor_w,
            anchor_h * tf.exp(tf.minimum(dh, MAX_LOG_SCALE)),
            anchor_w * tf.exp(tf.minimum(dw, MAX_LOG_SCALE)),
        ],
        axis=-1,
    )
    return box_ops.cyxhw_to_yxyx(boxes_cyxhw)
