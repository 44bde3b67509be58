"""Representations of a box relative to its anchor: what the outputs of a network mean.

  AnchorOffsets      offsets of the center and the size from the anchor's
  SideDistances      distances of the sides from the anchor's center
  SideDistributions  a distribution of each of these distances

`Anchors.box_coder` chooses one for a run; whatever has the anchors has it too. All have
the same structure. Four values represent a box. `encode` returns the values of a box,
`decode` is its inverse, and `activate` returns the values that a network predicts.

Boxes, anchors and values are sequences of four tensors, whose shapes broadcast. So the
caller chooses the layout: maps [B, A, H, W] in the losses, because a TPU stores the
last axis in tiles of 128, and rows of candidates in detection.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import tensorflow as tf

# An untrained network may predict a dw of 100: exp(100) px would overflow and make the
# IoU NaN. 1000 / 16 is Detectron's bound: a 16 px anchor can still cover an image.
MAX_LOG_SCALE = math.log(1000 / 16)

# Four tensors: (y, x, height, width) of boxes and anchors, or the values of a coder.
Four: TypeAlias = Sequence[tf.Tensor | np.ndarray | float]


@dataclasses.dataclass(frozen=True)
class AnchorOffsets:
    """Offsets (dy, dx, dh, dw) of the center and the logarithm of the size.

    Source: R-CNN, arXiv:1311.2524, appendix C.
    """

    # Names the last convolution of the head, so that a checkpoint of another
    # representation is recognized.
    output_name = "deltas"
    num_channels = 4

    def encode(self, boxes_cyxhw: Four, anchors_cyxhw: Four) -> Four:
        """Returns the offsets that move anchors onto boxes.

        Args:
          boxes_cyxhw: float32, px. Boxes of positive size.
          anchors_cyxhw: float32, px. Anchors of positive size.
        Returns:
          float32: (dy, dx) is the center offset / anchor size, (dh, dw) is the
          logarithm of the size ratio.
        """
        y, x, height, width = boxes_cyxhw
        anchor_y, anchor_x, anchor_height, anchor_width = anchors_cyxhw
        return (
            (y - anchor_y) / anchor_height,
            (x - anchor_x) / anchor_width,
            tf.math.log(height / anchor_height),
            tf.math.log(width / anchor_width),
        )

    def activate(self, outputs: tf.Tensor, axis: int = -1) -> Four:
        """Returns the offsets that a network predicts: its outputs.

        Args:
          outputs: float32 with num_channels along the axis.
          axis: The axis of the channels.
        """
        return tuple(tf.unstack(outputs, axis=axis))

    def decode(self, values: Four, anchors_cyxhw: Four) -> Four:
        """Returns the boxes with these offsets, the inverse of `encode`.

        Args:
          values: float32, (dy, dx, dh, dw). dh and dw are limited to MAX_LOG_SCALE.
          anchors_cyxhw: float32, px.
        Returns:
          float32: (y, x, height, width), px.
        """
        dy, dx, dh, dw = values
        anchor_y, anchor_x, anchor_height, anchor_width = anchors_cyxhw
        return (
            anchor_y + dy * anchor_height,
            anchor_x + dx * anchor_width,
            anchor_height * tf.exp(tf.minimum(dh, MAX_LOG_SCALE)),
            anchor_width * tf.exp(tf.minimum(dw, MAX_LOG_SCALE)),
        )


class _Sides:
    """The distances (top, left, bottom, right) of the sides from the anchor's center.

    The unit is the anchor's height or width.
    """

    def encode(self, boxes_cyxhw: Four, anchors_cyxhw: Four) -> Four:
        """Returns the distances of the sides of boxes from the centers of anchors.

        Args:
          boxes_cyxhw: float32, px.
          anchors_cyxhw: float32, px. Anchors of positive size.
        Returns:
          float32: (top, left, bottom, right) / anchor size. A distance is negative if
          the center is outside of the box.
        """
        y, x, height, width = boxes_cyxhw
        anchor_y, anchor_x, anchor_height, anchor_width = anchors_cyxhw
        dy, dx = (y - anchor_y) / anchor_height, (x - anchor_x) / anchor_width
        h, w = 0.5 * height / anchor_height, 0.5 * width / anchor_width
        return h - dy, w - dx, h + dy, w + dx

    def decode(self, values: Four, anchors_cyxhw: Four) -> Four:
        """Returns the boxes with these distances, the inverse of `encode`.

        Args:
          values: float32, (top, left, bottom, right) / anchor size.
          anchors_cyxhw: float32, px.
        Returns:
          float32: (y, x, height, width), px.
        """
        top, left, bottom, right = values
        anchor_y, anchor_x, anchor_height, anchor_width = anchors_cyxhw
        return (
            anchor_y + 0.5 * (bottom - top) * anchor_height,
            anchor_x + 0.5 * (right - left) * anchor_width,
            (top + bottom) * anchor_height,
            (left + right) * anchor_width,
        )


@dataclasses.dataclass(frozen=True)
class SideDistances(_Sides):
    """Distances (top, left, bottom, right) of the sides from the anchor's center.

    The unit is the anchor's height or width. A predicted distance is exp(output) / 2:
    it is positive, so the box contains the center, and an output of 0 is the anchor.

    Source: FCOS, arXiv:1904.01355, section 3.1. The unit is ours: FCOS has no anchors,
      and learns a factor of the exponential for each level.
    """

    output_name = "distances"
    num_channels = 4

    def activate(self, outputs: tf.Tensor, axis: int = -1) -> Four:
        """Returns the distances that a network predicts.

        Args:
          outputs: float32 with num_channels along the axis, limited to MAX_LOG_SCALE.
          axis: The axis of the channels.
        """
        distances = 0.5 * tf.exp(tf.minimum(outputs, MAX_LOG_SCALE))
        return tuple(tf.unstack(distances, axis=axis))


@dataclasses.dataclass(frozen=True)
class SideDistributions(_Sides):
    """Distributions of the distances of the sides from the anchor's center.

    The values are those of `SideDistances`. A predicted distance is the expectation of
    a softmax over num_bins + 1 distances, which divide 0 to reach equally. `encode`
    does not limit distances to this range.

    Attributes:
      num_bins: The number of intervals between the distances.
      reach: The greatest distance, in heights or widths of the anchor. The sides of
        larger boxes cannot be predicted.
    Source: Generalized Focal Loss, arXiv:2006.04388, section 3.2. There, anchors have 8
      strides, and 16 bins of a stride end at 2 sizes.
    """

    num_bins: int = 16
    reach: float = 2.0

    output_name = "distributions"

    @property
    def num_channels(self) -> int:
        """Returns the number of channels of an anchor; side outer, bin inner."""
        return 4 * (self.num_bins + 1)

    @property
    def bin_width(self) -> float:
        """Returns the distance from bin to bin, in heights or widths of the anchor."""
        return self.reach / self.num_bins

    def activate(self, outputs: tf.Tensor, axis: int = -1) -> Four:
        """Returns the distances that a network predicts.

        Args:
          outputs: float32 logits with num_channels along the axis.
          axis: The axis of the channels.
        """
        axis %= outputs.shape.rank
        trailing = [1] * (outputs.shape.rank - axis - 1)
        distances = np.linspace(0, self.reach, self.num_bins + 1, dtype=np.float32)
        distances = distances.reshape([-1, *trailing])
        values = []
        for logits in tf.split(outputs, 4, axis=axis):
            greatest = tf.stop_gradient(tf.reduce_max(logits, axis, keepdims=True))
            # Not tf.nn.softmax, which moves the bins to the last axis.
            weights = tf.exp(logits - greatest)
            total = tf.reduce_sum(weights, axis)
            values.append(tf.reduce_sum(weights * distances, axis) / total)
        return tuple(values)


# Not a protocol, so that a wrong setting is found when the gin file is read.
BoxCoder: TypeAlias = AnchorOffsets | SideDistances | SideDistributions
