"""Matches anchors with annotated boxes by a threshold that each box computes itself.

As in `matcher`, the IoU matrix of all anchors and boxes is only computed inside
reductions, so XLA never writes it. The threshold needs only the cells around the center
of a box.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from retinanet_tpu import structures
from retinanet_tpu.boxes import box_ops, matcher

# The cells around a center that are searched for the nearest ones, in each direction.
# The 9 nearest cells are at most 4 away, also on a level of one row.
_REACH = 4
# Two equal distances may differ by rounding: both cells are then candidates.
_TOLERANCE = 1.0 + 1e-5


class _Level(NamedTuple):
    """The anchors of a level.

    Attributes:
      boxes_yxyx: float32 [A_l, 4], px, in the order anchor of a cell, row, column.
      centers: The y of the anchors of each row, and the x of each column, px.
      sizes_hw: float32 [num_per_cell, 2], px.
    """

    boxes_yxyx: tf.Tensor
    centers: tuple[np.ndarray, np.ndarray]
    sizes_hw: np.ndarray


class _Window(NamedTuple):
    """The cells around the center of each box.

    Attributes:
      centers: float32 [B, N, n, 1] and [B, N, 1, m], y and x, px.
      squared_distances: float32 [B, N, n, m], from the center of the box, px^2.
    """

    centers: tuple[tf.Tensor, tf.Tensor]
    squared_distances: tf.Tensor


def match_by_atss(
    labels: structures.Labels,
    anchors: matcher.AnchorGrid,
    predictions: structures.Predictions | None = None,
    *,
    num_cells: int = 9,
) -> tf.Tensor:
    """Matches by adaptive training sample selection (ATSS).

    The candidates of a box are the anchors of its `num_cells` nearest cells on each
    level; cells at the same distance count all. The threshold of the box is the mean
    plus the standard deviation of their IoU. A candidate is positive if its IoU is at
    least the threshold and its center is inside the box. A candidate of several boxes
    is matched with the one of the highest IoU.

    Beyond the paper, the best anchor of a box is matched with it at any IoU above 0, so
    that an object between the centers of the cells is not lost. Crowd regions and
    padding are never matched. Background inside a crowd region is ignored.

    Args:
      labels: The padded boxes of B images, px.
      anchors: A anchors.
      predictions: Not used.
      num_cells: The number of cells per level, 1 to 9.
    Returns:
      int32 [B, A]: the index of the box, or BACKGROUND, or IGNORE.
    Source: arXiv:1912.02424, algorithm 1.
    """
    del predictions
    objects_yxyx, crowds_yxyx = matcher.split_crowds(labels)
    levels = _levels(anchors)
    windows = [_window(objects_yxyx, level) for level in levels]
    radii = [_squared_radius(window, num_cells) for window in windows]
    thresholds = _thresholds(objects_yxyx, levels, windows, radii)
    best_box = tf.concat(
        [
            _best_box(objects_yxyx, level.boxes_yxyx, radius, thresholds)
            for level, radius in zip(levels, radii, strict=True)
        ],
        axis=1,
    )
    anchors_yxyx = anchors.boxes_yxyx
    in_crowd = matcher.is_inside_crowd(anchors_yxyx, crowds_yxyx)
    background = tf.where(in_crowd, structures.IGNORE, structures.BACKGROUND)
    matches = tf.where(best_box >= 0, best_box, background)
    return matcher.match_best_anchors(matches, objects_yxyx, anchors_yxyx)


def _levels(anchors: matcher.AnchorGrid) -> list[_Level]:
    levels = []
    ends = np.cumsum(anchors.lengths)
    for boxes, size in zip(
        np.split(anchors.boxes_cyxhw, ends[:-1]), anchors.sizes, strict=True
    ):
        cells = boxes.reshape(anchors.num_per_cell, *size, 4)
        centers = cells[0, :, 0, 0], cells[0, 0, :, 1]
        boxes_yxyx = box_ops.cyxhw_to_yxyx(boxes)
        levels.append(_Level(boxes_yxyx, centers, cells[:, 0, 0, 2:]))
    return levels


def _window(objects_yxyx: tf.Tensor, level: _Level) -> _Window:
    """Returns the nearest cells of a level."""
    y, x, _, _ = tf.unstack(box_ops.yxyx_to_cyxhw(objects_yxyx)[..., None], axis=-2)
    rows = _nearest(y, level.centers[0])[..., :, None]
    columns = _nearest(x, level.centers[1])[..., None, :]
    distances = (rows - y[..., None]) ** 2 + (columns - x[..., None]) ** 2
    return _Window((rows, columns), distances)


def _nearest(positions: tf.Tensor, centers: np.ndarray) -> tf.Tensor:
    """Returns float32 [B, N, n]: the centers around positions [B, N, 1], px."""
    count = min(2 * _REACH + 1, len(centers))
    stride = (centers[-1] - centers[0]) / max(len(centers) - 1, 1)
    index = tf.round((positions - centers[0]) / max(stride, 1.0))
    first = tf.clip_by_value(index - _REACH, 0.0, float(len(centers) - count))
    return centers[0] + stride * (first + tf.range(count, dtype=tf.float32))


def _squared_radius(window: _Window, num_cells: int) -> tf.Tensor:
    """Returns float32 [B, N]: the largest squared distance of a candidate, px^2."""
    rows, columns = window.squared_distances.shape[2:]
    flat = tf.reshape(
        window.squared_distances, [-1, _num_boxes(window), rows * columns]
    )
    nearest = tf.math.top_k(-flat, min(num_cells, rows * columns)).values
    return -nearest[..., -1] * _TOLERANCE


def _num_boxes(window: _Window) -> int:
    return window.squared_distances.shape[1]


def _thresholds(
    objects_yxyx: tf.Tensor,
    levels: list[_Level],
    windows: list[_Window],
    radii: list[tf.Tensor],
) -> tf.Tensor:
    """Returns float32 [B, N]: mean + standard deviation of the candidates' IoU."""
    ious, weights = [], []
    for level, window, radius in zip(levels, windows, radii, strict=True):
        iou = _window_ious(objects_yxyx, level, window)
        is_near = window.squared_distances <= radius[..., None, None]
        count = iou.shape[2] * iou.shape[3] * iou.shape[4]
        shape = [-1, _num_boxes(window), count]
        ious.append(tf.reshape(iou, shape))
        weight = tf.cast(is_near, tf.float32)[..., None] + tf.zeros_like(iou)
        weights.append(tf.reshape(weight, shape))
    iou, weight = tf.concat(ious, -1), tf.concat(weights, -1)
    count = tf.reduce_sum(weight, -1)
    mean = tf.reduce_sum(weight * iou, -1) / count
    squares = tf.reduce_sum(weight * (iou - mean[..., None]) ** 2, -1)
    return mean + tf.sqrt(squares / tf.maximum(count - 1.0, 1.0))


def _window_ious(objects_yxyx: tf.Tensor, level: _Level, window: _Window) -> tf.Tensor:
    """Returns float32 [B, N, n, m, num_per_cell]: the IoU with the window's anchors."""
    sides = tf.unstack(objects_yxyx[:, :, None, None, None], axis=-1)
    areas = box_ops.area(objects_yxyx)[:, :, None, None, None]
    height, width = level.sizes_hw.T
    y, x = (center[..., None] for center in window.centers)
    shared_height = tf.minimum(sides[2], y + height / 2) - tf.maximum(
        sides[0], y - height / 2
    )
    shared_width = tf.minimum(sides[3], x + width / 2) - tf.maximum(
        sides[1], x - width / 2
    )
    shared = tf.maximum(shared_height, 0.0) * tf.maximum(shared_width, 0.0)
    return shared / (areas + height * width - shared)


def _best_box(
    objects_yxyx: tf.Tensor,
    anchors_yxyx: tf.Tensor,
    squared_radius: tf.Tensor,
    thresholds: tf.Tensor,
) -> tf.Tensor:
    """Returns int32 [B, A_l]: the accepting box of the highest IoU, or -1."""
    limits = tf.stack([thresholds, squared_radius], axis=-1)
    ious = box_ops.iou(anchors_yxyx, objects_yxyx)
    anchors = anchors_yxyx[:, None]
    is_accepted = _accepts(objects_yxyx[:, None], limits[:, None], anchors, ious)
    best = tf.argmax(tf.where(is_accepted, ious, -1.0), axis=-1, output_type=tf.int32)
    # Computed again for the best box: a maximum would be a second user of the matrix.
    box = matcher.gather_by_one_hot(objects_yxyx, best)
    limit = matcher.gather_by_one_hot(limits, best)
    iou = box_ops.paired_iou(anchors_yxyx, box)
    return tf.where(_accepts(box, limit, anchors_yxyx, iou), best, -1)


def _accepts(
    boxes_yxyx: tf.Tensor, limits: tf.Tensor, anchors_yxyx: tf.Tensor, ious: tf.Tensor
) -> tf.Tensor:
    """Returns whether boxes accept anchors, bool [...].

    Args:
      boxes_yxyx: float32 [..., 4].
      limits: float32 [..., 2], the threshold of the IoU and the squared radius, px^2.
      anchors_yxyx: float32 [..., 4].
      ious: float32 [...], their IoU.
    """
    y, x, _, _ = tf.unstack(box_ops.yxyx_to_cyxhw(anchors_yxyx), axis=-1)
    box_y, box_x, _, _ = tf.unstack(box_ops.yxyx_to_cyxhw(boxes_yxyx), axis=-1)
    ymin, xmin, ymax, xmax = tf.unstack(boxes_yxyx, axis=-1)
    threshold, squared_radius = tf.unstack(limits, axis=-1)
    is_near = (y - box_y) ** 2 + (x - box_x) ** 2 <= squared_radius
    is_inside = (ymin < y) & (y < ymax) & (xmin < x) & (x < xmax)
    return is_near & is_inside & (ious >= threshold)
