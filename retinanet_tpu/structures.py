"""The records that cross folder boundaries.

Letters: B images of a batch, H W size of the network's input, N padded boxes, A anchors
of a cell, K classes, D padded detections. Boxes are corners (ymin, xmin, ymax, xmax).
"""

from typing import NamedTuple

import tensorflow as tf

BACKGROUND = -1  # The anchor matches no box: every class is trained towards 0.
IGNORE = -2  # The anchor carries no loss.
PADDING_IMAGE = -1  # The id of an image that only fills up a batch.


class Features(NamedTuple):
    """What the host sends to the device of each image, labels apart."""

    images: (
        tf.Tensor
    )  # uint8 [B, H, W, 3], RGB, the image top left, padded below and right
    image_ids: tf.Tensor  # int64 [B], ids of the annotation file, or PADDING_IMAGE
    image_sizes: tf.Tensor  # int32 [B, 2], height and width of the original, px
    scales: tf.Tensor  # float32 [B, 2], (y, x) resized size / original size


class Labels(NamedTuple):
    """The annotated boxes of a batch, in pixels of the network's input."""

    boxes_yxyx: tf.Tensor  # float32 [B, N, 4], 0 past num_boxes
    classes: tf.Tensor  # int32 [B, N] in 0..K-1, 0 past num_boxes
    is_crowd: (
        tf.Tensor
    )  # bool [B, N], a region of uncounted objects: ignored, never matched
    num_boxes: tf.Tensor  # int32 [B], crowds included


class Predictions(NamedTuple):
    """What the network says, a tensor a level, in the convolutions' own layout."""

    class_logits: tuple  # per level [B, H_l, W_l, A * K], anchor outer, class inner
    box_deltas: (
        tuple  # per level [B, H_l, W_l, A * 4], anchor outer, (dy, dx, dh, dw) inner
    )


class Detections(NamedTuple):
    """Objects found, best first."""

    boxes_yxyx: tf.Tensor  # float32 [B, D, 4], pixels of the original image
    scores: tf.Tensor  # float32 [B, D], falling; 0 past num_detections
    classes: (
        tf.Tensor
    )  # int32 [B, D] in 0..K-1 inside the program, category ids outside it
    num_detections: tf.Tensor  # int32 [B]
