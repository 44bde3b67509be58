"""Matches anchors with annotated boxes by what the network predicts at them.

`matcher` and `adaptive_matcher` compare fixed anchors with objects. Here scores and
predicted boxes decide, so the matches of an image change in the course of training.
"""

import functools
from typing import NamedTuple

import tensorflow as tf

from retinanet_tpu import structures
from retinanet_tpu.boxes import box_ops, matcher
from retinanet_tpu.boxes.box_coder import BoxCoder
from retinanet_tpu.learning import channels

# Below the value of every candidate; those are above -1.
_NO_CANDIDATE = -2.0


class _Level(NamedTuple):
    """The anchors of a level and the predictions at them.

    Attributes:
      anchors_yxyx: float32 [A_l, 4], px.
      predicted_yxyx: float32 [B, A_l, 4], px; [1, A_l, 4] without predictions.
      logits: float [B, H_l, W_l, num_per_cell * K], or None without predictions.
      num_per_cell: The number of anchors of a cell.
      num_columns: W_l.
    """

    anchors_yxyx: tf.Tensor
    predicted_yxyx: tf.Tensor
    logits: tf.Tensor | None
    num_per_cell: int
    num_columns: int


class _Powers(NamedTuple):
    """The exponents of the alignment."""

    class_power: float
    iou_power: float


def match_by_task_alignment(
    labels: structures.Labels,
    anchors: matcher.AnchorGrid,
    predictions: structures.Predictions | None = None,
    *,
    num_candidates: int = 13,
    class_power: float = 1.0,
    iou_power: float = 6.0,
) -> tf.Tensor:
    """Matches by task-aligned assignment, which compares predictions with objects.

    The alignment of an anchor with an object is s^class_power * u^iou_power. s is the
    predicted score of the object's class. u is the IoU of the predicted box with the
    object. Each object chooses the `num_candidates` anchors of the highest alignment
    among those whose center is inside the object. An anchor that several objects choose
    is matched with the one of the highest u, or with the first of equal ones.

    Beyond the paper:
    - Anchors of alignment 0 come last, in the order of the anchor's own IoU with the
      object. So the choice is sensible and repeatable if no predicted box overlaps an
      object. Other ties go to the first anchor. An alignment below 1e-37 counts as 0.
    - An object that gets no anchor this way is matched with the anchor that overlaps it
      most, unless another such object has the same. So small objects between the
      centers of the cells are learned. The anchor may have been the only one of a third
      object, which then has none.
    - Crowd regions and padding are never matched. Background inside a crowd region is
      ignored.

    Unlike the other matchers, this one writes matrices of all anchors of a level and
    all boxes: the logits of the objects' classes, and the alignments. With 8 images,
    100 boxes and 640 px, each has 184 MB on P3, and more with a TPU's padding. No
    matrix has the anchors of all levels. Compiled for a TPU v3 with 91 classes, the
    matcher moves 3.4 GB and needs .6 GB of temporaries; `match_by_atss` moves .3 GB.

    Args:
      labels: The padded boxes of B images, px.
      anchors: A anchors.
      predictions: The predictions of the network for these images. None stands for
        equal scores and boxes equal to the anchors, as of an untrained network.
      num_candidates: The number of anchors that an object chooses.
      class_power: The exponent of the score.
      iou_power: The exponent of the IoU.
    Returns:
      int32 [B, A]: the index of the box, or BACKGROUND, or IGNORE.
    Source: TOOD, arXiv:2108.07755, section 3.2; the defaults are the authors'. Their
      normalized alignment, the target of their class loss, is not computed here.
    """
    objects_yxyx, crowds_yxyx = matcher.split_crowds(labels)
    levels = _levels(anchors, predictions)
    powers = _Powers(class_power, iou_power)
    objects = labels._replace(boxes_yxyx=objects_yxyx)
    chosen = _chosen_anchors(objects, levels, num_candidates, powers)

    anchors_yxyx = anchors.boxes_yxyx
    in_crowd = matcher.is_inside_crowd(anchors_yxyx, crowds_yxyx)
    background = tf.where(in_crowd, structures.IGNORE, structures.BACKGROUND)
    predicted_yxyx = tf.concat([level.predicted_yxyx for level in levels], axis=1)
    best_box = _best_choosing_box(chosen, predicted_yxyx, anchors_yxyx, objects_yxyx)
    matches = tf.where(best_box >= 0, best_box, background)
    is_matched = tf.reduce_any(
        matches[:, None, :] == tf.range(objects_yxyx.shape[1])[:, None], axis=-1
    )
    unmatched_yxyx = tf.where(is_matched[..., None], 0.0, objects_yxyx)
    return matcher.match_best_anchors(matches, unmatched_yxyx, anchors_yxyx)


def _levels(
    anchors: matcher.AnchorGrid, predictions: structures.Predictions | None
) -> list[_Level]:
    anchors_cyxhw = tf.split(anchors.boxes_cyxhw, anchors.lengths)
    levels = []
    for index, (cyxhw, size) in enumerate(
        zip(anchors_cyxhw, anchors.sizes, strict=True)
    ):
        anchors_yxyx = box_ops.cyxhw_to_yxyx(cyxhw)
        predicted_yxyx, logits = anchors_yxyx[None], None
        if predictions is not None:
            outputs = tf.cast(predictions.box_outputs[index], tf.float32)
            predicted_yxyx = _predicted_boxes(outputs, cyxhw, anchors.box_coder)
            logits = predictions.class_logits[index]
        levels.append(
            _Level(anchors_yxyx, predicted_yxyx, logits, anchors.num_per_cell, size[1])
        )
    return levels


def _predicted_boxes(
    outputs: tf.Tensor, anchors_cyxhw: tf.Tensor, box_coder: BoxCoder
) -> tf.Tensor:
    """Returns float32 [B, A_l, 4], yxyx, px, from float32 [B, H_l, W_l, A * C]."""
    planes = channels.planes(outputs, box_coder.num_channels)
    maps = box_coder.activate(planes, axis=2)
    # In the order of the anchors: anchor of a cell, row, column.
    values = [tf.reshape(x, [-1, anchors_cyxhw.shape[0]]) for x in maps]
    boxes_cyxhw = box_coder.decode(values, tf.unstack(anchors_cyxhw, axis=-1))
    return box_ops.cyxhw_to_yxyx(tf.stack(boxes_cyxhw, axis=-1))


def _chosen_anchors(
    objects: structures.Labels,
    levels: list[_Level],
    num_candidates: int,
    powers: _Powers,
) -> tf.Tensor:
    """Returns int32 [B, N, n]: the anchors that each object chooses, or -1.

    Args:
      objects: The labels; crowds and padding have no area.
      levels: The levels.
      num_candidates: The largest number n.
      powers: The exponents of the alignment.
    """
    values, indices, first_anchor = [], [], 0
    for level in levels:
        of_level = _values(objects, level, powers)
        value, index = _in_best_rows(of_level, num_candidates, level.num_columns)
        values.append(value)
        indices.append(first_anchor + index)
        first_anchor += of_level.shape[-1]
    # In the order of the anchors, which top_k keeps for equal values.
    all_values, all_indices = tf.concat(values, axis=-1), tf.concat(indices, axis=-1)
    best = tf.math.top_k(all_values, min(num_candidates, all_values.shape[-1]))
    chosen = tf.gather(all_indices, best.indices, batch_dims=2)
    return tf.where(best.values > _NO_CANDIDATE, chosen, -1)


def _in_best_rows(
    values: tf.Tensor, num_best: int, num_columns: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the values and the indices of the rows that have the best values.

    Sorting all values would take far longer. The rows of the highest maxima have all of
    the highest values, because each of them has one.

    Args:
      values: float32 [B, N, A_l].
      num_best: The number of values that are needed.
      num_columns: The number of values of a row.
    Returns:
      float32 and int32 [B, N, at least min(num_best, A_l)], in the indices' order.
    """
    _, num_boxes, length = values.shape
    num_rows = length // num_columns
    rows = tf.reshape(values, [-1, num_boxes, num_rows, num_columns])
    best = tf.math.top_k(tf.reduce_max(rows, axis=-1), min(num_best, num_rows))
    best_rows = tf.sort(best.indices, axis=-1)
    indices = best_rows[..., None] * num_columns + tf.range(num_columns)
    shape = [-1, num_boxes, best_rows.shape[-1] * num_columns]
    best_values = tf.gather(rows, best_rows, batch_dims=2)
    return tf.reshape(best_values, shape), tf.reshape(indices, shape)


def _values(objects: structures.Labels, level: _Level, powers: _Powers) -> tf.Tensor:
    """Returns float32 [B, N, A_l]: the alignments of candidates, or _NO_CANDIDATE."""
    boxes_yxyx = objects.boxes_yxyx
    alignments = box_ops.iou(boxes_yxyx, level.predicted_yxyx) ** powers.iou_power
    if level.logits is not None:
        scores = tf.sigmoid(_class_logits(objects.classes, level.logits, level))
        alignments *= scores**powers.class_power
    values = _or_anchor_iou(alignments, box_ops.iou(boxes_yxyx, level.anchors_yxyx))
    y, x, _, _ = tf.unstack(box_ops.yxyx_to_cyxhw(level.anchors_yxyx), axis=-1)
    ymin, xmin, ymax, xmax = tf.unstack(boxes_yxyx[..., None], axis=-2)
    is_inside = (ymin < y) & (y < ymax) & (xmin < x) & (x < xmax)
    return tf.where(is_inside, values, _NO_CANDIDATE)


def _class_logits(classes: tf.Tensor, logits: tf.Tensor, level: _Level) -> tf.Tensor:
    """Returns float32 [B, N, A_l]: the logits of the objects' classes."""
    num_anchors = level.num_per_cell
    num_classes = logits.shape[-1] // num_anchors
    is_class = tf.one_hot(classes, num_classes, dtype=logits.dtype)
    is_anchor = tf.eye(num_anchors, dtype=logits.dtype)
    # A matrix product selects the channels, because a TPU is slow to gather columns. It
    # rounds float32 to bfloat16 there, which may exchange almost equal alignments. The
    # zeros of the other anchors save splitting the channels, which moves all logits.
    selectors = tf.einsum("bnk,ac->bnack", is_class, is_anchor)
    num_boxes = classes.shape[1]
    selectors = tf.reshape(selectors, [-1, num_boxes, num_anchors, logits.shape[-1]])
    selected = tf.einsum("bnad,byxd->bnayx", selectors, logits)
    flat = tf.reshape(selected, [-1, num_boxes, level.anchors_yxyx.shape[0]])
    return tf.cast(flat, tf.float32)


def _or_anchor_iou(values: tf.Tensor, anchor_ious: tf.Tensor) -> tf.Tensor:
    """Returns the values above 0, and anchor_ious - 1 in place of the others.

    Args:
      values: float32 [...], in [0, 1] or NaN.
      anchor_ious: float32 [...], in [0, 1].
    """
    # Devices differ in whether they round numbers below 1.2e-38 to 0.
    return tf.where(values > 1e-37, values, anchor_ious - 1.0)


def _best_choosing_box(
    chosen: tf.Tensor,
    predicted_yxyx: tf.Tensor,
    anchors_yxyx: tf.Tensor,
    objects_yxyx: tf.Tensor,
) -> tf.Tensor:
    """Returns int32 [B, A]: the choosing box of the highest predicted IoU, or -1."""
    anchor = tf.range(anchors_yxyx.shape[0])
    indices = tf.unstack(chosen, axis=-1)
    # XLA fuses the comparisons with the reductions below, as in `matcher`: each has its
    # own matrix, in its own axis order.
    is_chosen = _any([anchor[:, None] == index[:, None, :] for index in indices])
    is_taken = _any([anchor == index[..., None] for index in indices])
    values = _or_anchor_iou(
        box_ops.iou(predicted_yxyx, objects_yxyx),
        box_ops.iou(anchors_yxyx, objects_yxyx),
    )
    best = tf.argmax(
        tf.where(is_chosen, values, _NO_CANDIDATE), axis=-1, output_type=tf.int32
    )
    return tf.where(tf.reduce_any(is_taken, axis=1), best, -1)


def _any(conditions: list[tf.Tensor]) -> tf.Tensor:
    return functools.reduce(tf.logical_or, conditions)
