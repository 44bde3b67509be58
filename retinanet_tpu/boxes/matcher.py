"""Matches anchors with annotated boxes.

The IoU matrix of a batch has 245 MB at 640 px (8 images, 100 boxes). It should never
be written to memory. XLA computes it inside a reduction if that reduction is its only
user. Each reduction below therefore builds its own matrix, in its own axis order: XLA
would merge two matrices of the same order into one, and write it and read it back.
Compiled for a TPU v3, `match` moves 0.06 GB.
"""

import tensorflow as tf

from retinanet_tpu import errors, structures
from retinanet_tpu.boxes import box_ops

# COCO compares a detection that is more than half inside a crowd region with that
# region. Such an anchor is no background, nor a match.
MAX_CROWD_OVERLAP = 0.5


def match(
    labels: structures.Labels,
    anchors_yxyx: tf.Tensor,
    *,
    positive_iou_threshold: float = 0.5,
    negative_iou_threshold: float = 0.4,
) -> tf.Tensor:
    """Matches each anchor with the box of the highest IoU.

    The best anchor of a box is matched with it at any IoU above 0. An anchor that is
    the best of several boxes is matched with the first of them. Crowd regions and
    padding are never matched. Background inside a crowd region is ignored.

    Args:
      labels: The padded boxes of B images, px.
      anchors_yxyx: float32 [A, 4], px.
      positive_iou_threshold: The lowest IoU of a positive anchor.
      negative_iou_threshold: The IoU below which an anchor is background. Anchors
        between the two thresholds are ignored.
    Returns:
      int32 [B, A]: the index of the box, or BACKGROUND, or IGNORE.
    Raises:
      UserError: The thresholds are not
        0 < negative_iou_threshold <= positive_iou_threshold <= 1.
    Source: RetinaNet, arXiv:1708.02002, section 4 "Anchors"; the best anchor of a box
      as in Faster R-CNN, arXiv:1506.01497, section 3.1.2; crowds as in COCO's scoring.
    """
    if not 0 < negative_iou_threshold <= positive_iou_threshold <= 1:
        raise errors.UserError(
            "match needs 0 < negative_iou_threshold <= positive_iou_threshold <= 1, "
            f"got negative_iou_threshold={negative_iou_threshold}, "
            f"positive_iou_threshold={positive_iou_threshold}."
        )
    is_valid = tf.sequence_mask(labels.num_boxes, labels.boxes_yxyx.shape[1])
    is_object = is_valid & ~labels.is_crowd
    # The IoU of a box without area is 0, so it can neither win nor tie above 0.
    objects_yxyx = tf.where(is_object[..., None], labels.boxes_yxyx, 0.0)
    crowds_yxyx = tf.where(
        (is_valid & labels.is_crowd)[..., None], labels.boxes_yxyx, 0.0
    )

    best_box = tf.argmax(
        box_ops.iou(anchors_yxyx, objects_yxyx), axis=-1, output_type=tf.int32
    )
    # The best IoU is computed again from the best box: a maximum beside the argmax
    # would be a second user of the matrix.
    best_iou = box_ops.paired_iou(
        anchors_yxyx, gather_by_one_hot(objects_yxyx, best_box)
    )
    in_crowd = tf.reduce_any(
        box_ops.intersection(anchors_yxyx, crowds_yxyx)
        > MAX_CROWD_OVERLAP * box_ops.area(anchors_yxyx)[:, None],
        axis=-1,
    )
    matches = tf.where(
        (best_iou >= negative_iou_threshold) | in_crowd,
        structures.IGNORE,
        structures.BACKGROUND,
    )
    matches = tf.where(best_iou >= positive_iou_threshold, best_box, matches)
    forced = _best_anchor_matches(objects_yxyx, anchors_yxyx)
    return tf.where(forced >= 0, forced, matches)


def gather_by_one_hot(values: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
    """Returns the rows at `indices`, [B, A, D], equal to the bit.

    A gather of 76,725 rows is slow on a TPU, and a one-hot matrix product rounds
    float32 to bfloat16 there. A masked sum has one term that is not 0, so it is exact.
    XLA fuses it: the [B, A, N] mask is never written.

    Args:
      values: [B, N, D], of any number type.
      indices: int32 [B, A]. A negative index selects zeros.
    """
    is_selected = indices[..., None] == tf.range(values.shape[1])
    columns = [
        tf.reduce_sum(tf.where(is_selected, column[:, None, :], 0), axis=-1)
        for column in tf.unstack(values, axis=-1)
    ]
    return tf.stack(columns, axis=-1)


def _best_anchor_matches(objects_yxyx: tf.Tensor, anchors_yxyx: tf.Tensor) -> tf.Tensor:
    """Returns int32 [B, A]: the first box whose best anchor this is, or -1."""
    num_boxes, num_anchors = objects_yxyx.shape[1], anchors_yxyx.shape[0]
    best_anchor = tf.argmax(
        box_ops.iou(objects_yxyx, anchors_yxyx), axis=-1, output_type=tf.int32
    )
    best_iou = box_ops.paired_iou(objects_yxyx, tf.gather(anchors_yxyx, best_anchor))
    best_anchor = tf.where(best_iou > 0, best_anchor, -1)
    # XLA fuses a comparison and a minimum; it would run a scatter box by box.
    is_best = best_anchor[:, None, :] == tf.range(num_anchors)[:, None]
    first = tf.reduce_min(tf.where(is_best, tf.range(num_boxes), num_boxes), axis=-1)
    return tf.where(first < num_boxes, first, -1)
