"""Matches anchors with annotated boxes.

The IoU matrix of a batch has 245 MB at 640 px (8 images, 100 boxes). It should never
be written to memory. XLA computes it inside a reduction if that reduction is its only
user. Each reduction below therefore builds its own matrix, in its own axis order: XLA
would merge two matrices of the same order into one, and write it and read it back.
Compiled for a TPU v3, `match_by_iou` moves 0.06 GB.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from retinanet_tpu import errors, structures
from retinanet_tpu.boxes import box_ops
from retinanet_tpu.boxes.anchors import Anchors
from retinanet_tpu.boxes.box_coder import BoxCoder

# COCO compares a detection that is more than half inside a crowd region with that
# region. Such an anchor is no background, nor a match.
MAX_CROWD_OVERLAP = 0.5


class AnchorGrid(NamedTuple):
    """The anchors of an image size, in the order level, anchor of a cell, row, column.

    Attributes:
      boxes_cyxhw: float32 [A, 4], px.
      sizes: (rows, columns) of each level's grid of cells.
      num_per_cell: The number of anchors of a cell.
      box_coder: The representation of the boxes that are predicted from the anchors.
    """

    boxes_cyxhw: np.ndarray
    sizes: tuple[tuple[int, int], ...]
    num_per_cell: int
    box_coder: BoxCoder

    @property
    def boxes_yxyx(self) -> tf.Tensor:
        """Returns float32 [A, 4], px."""
        return box_ops.cyxhw_to_yxyx(self.boxes_cyxhw)

    @property
    def lengths(self) -> list[int]:
        """Returns the number of anchors of each level."""
        return [rows * columns * self.num_per_cell for rows, columns in self.sizes]


def make_grid(anchors: Anchors, image_size: tuple[int, int]) -> AnchorGrid:
    """Returns the anchors of an image size.

    Args:
      anchors: The anchors.
      image_size: The height and width of the network's input, px.
    Raises:
      UserError: A side is not a multiple of the coarsest level's stride.
    """
    count = anchors.num_per_cell
    levels = [
        boxes.reshape(-1, count, 4).swapaxes(0, 1).reshape(-1, 4)
        for boxes in anchors.boxes_cyxhw(image_size)
    ]
    return AnchorGrid(
        np.concatenate(levels),
        anchors.grid_sizes(image_size),
        count,
        anchors.box_coder,
    )


def match_by_iou(
    labels: structures.Labels,
    anchors: AnchorGrid,
    predictions: structures.Predictions | None = None,
    *,
    positive_iou_threshold: float = 0.5,
    negative_iou_threshold: float = 0.4,
    crowds_are_objects: bool = False,
) -> tf.Tensor:
    """Matches each anchor with the box of the highest IoU.

    The best anchor of a box is matched with it at any IoU above 0. An anchor that is
    the best of several boxes is matched with the first of them. Padding is never
    matched. Neither are crowd regions by default; background inside them is ignored.

    Args:
      labels: The padded boxes of B images, px.
      anchors: A anchors.
      predictions: Not used.
      positive_iou_threshold: The lowest IoU of a positive anchor.
      negative_iou_threshold: The IoU below which an anchor is background. Anchors
        between the two thresholds are ignored.
      crowds_are_objects: Whether a crowd region is matched like an object, as MLPerf's
        reference trains on Open Images.
    Returns:
      int32 [B, A]: the index of the box, or BACKGROUND, or IGNORE.
    Raises:
      UserError: The thresholds are not
        0 < negative_iou_threshold <= positive_iou_threshold <= 1.
    Source: RetinaNet, arXiv:1708.02002, section 4 "Anchors"; the best anchor of a box
      as in Faster R-CNN, arXiv:1506.01497, section 3.1.2; crowds as in COCO's scoring.
    """
    del predictions
    if not 0 < negative_iou_threshold <= positive_iou_threshold <= 1:
        raise errors.UserError(
            "match_by_iou needs 0 < negative_iou_threshold <= positive_iou_threshold "
            f"<= 1, got negative_iou_threshold={negative_iou_threshold}, "
            f"positive_iou_threshold={positive_iou_threshold}."
        )
    if crowds_are_objects:
        labels = labels._replace(is_crowd=tf.zeros_like(labels.is_crowd))
    objects_yxyx, crowds_yxyx = split_crowds(labels)
    anchors_yxyx = anchors.boxes_yxyx
    best_box = tf.argmax(
        box_ops.iou(anchors_yxyx, objects_yxyx), axis=-1, output_type=tf.int32
    )
    # The best IoU is computed again from the best box: a maximum beside the argmax
    # would be a second user of the matrix.
    best_iou = box_ops.paired_iou(
        anchors_yxyx, gather_by_one_hot(objects_yxyx, best_box)
    )
    in_crowd = is_inside_crowd(anchors_yxyx, crowds_yxyx)
    matches = tf.where(
        (best_iou >= negative_iou_threshold) | in_crowd,
        structures.IGNORE,
        structures.BACKGROUND,
    )
    matches = tf.where(best_iou >= positive_iou_threshold, best_box, matches)
    return match_best_anchors(matches, objects_yxyx, anchors_yxyx)


def split_crowds(labels: structures.Labels) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the objects and the crowd regions, float32 [B, N, 4] each, yxyx, px.

    The other boxes are 0. The IoU of a box without area is 0, so it can neither win nor
    tie above 0.

    Args:
      labels: The padded boxes of B images.
    """
    is_valid = tf.sequence_mask(labels.num_boxes, labels.boxes_yxyx.shape[1])
    is_object, is_crowd = is_valid & ~labels.is_crowd, is_valid & labels.is_crowd
    return (
        tf.where(is_object[..., None], labels.boxes_yxyx, 0.0),
        tf.where(is_crowd[..., None], labels.boxes_yxyx, 0.0),
    )


def is_inside_crowd(anchors_yxyx: tf.Tensor, crowds_yxyx: tf.Tensor) -> tf.Tensor:
    """Returns bool [B, A]: whether more than MAX_CROWD_OVERLAP is inside one crowd.

    Args:
      anchors_yxyx: float32 [A, 4], px.
      crowds_yxyx: float32 [B, N, 4], px.
    """
    return tf.reduce_any(
        box_ops.intersection(anchors_yxyx, crowds_yxyx)
        > MAX_CROWD_OVERLAP * box_ops.area(anchors_yxyx)[:, None],
        axis=-1,
    )


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


def match_best_anchors(
    matches: tf.Tensor, objects_yxyx: tf.Tensor, anchors_yxyx: tf.Tensor
) -> tf.Tensor:
    """Matches the best anchor of each object with it at any IoU above 0.

    An anchor that is the best of several objects is matched with the first of them.

    Args:
      matches: int32 [B, A], the other matches.
      objects_yxyx: float32 [B, N, 4], px.
      anchors_yxyx: float32 [A, 4], px.
    Returns:
      int32 [B, A].
    """
    num_boxes, num_anchors = objects_yxyx.shape[1], anchors_yxyx.shape[0]
    best_anchor = tf.argmax(
        box_ops.iou(objects_yxyx, anchors_yxyx), axis=-1, output_type=tf.int32
    )
    best_iou = box_ops.paired_iou(objects_yxyx, tf.gather(anchors_yxyx, best_anchor))
    best_anchor = tf.where(best_iou > 0, best_anchor, -1)
    # XLA fuses a comparison and a minimum; it would run a scatter box by box.
    is_best = best_anchor[:, None, :] == tf.range(num_anchors)[:, None]
    first = tf.reduce_min(tf.where(is_best, tf.range(num_boxes), num_boxes), axis=-1)
    return tf.where(first < num_boxes, first, matches)
