"""The records that cross folder boundaries.

Letters in shapes:
  B  images of a batch
  H  height of the network's input
  W  width of the network's input
  N  annotated boxes of an image, padded
  A  anchors of a cell
  K  classes
  D  detections of an image, padded

Boxes are corners (ymin, xmin, ymax, xmax).
"""

from typing import NamedTuple

import tensorflow as tf

BACKGROUND = -1  # The anchor matches no box: the target of every class is 0.
IGNORE = -2  # The anchor does not contribute to the loss.
PADDING_IMAGE = -1  # The id of an image that only fills up a batch.


class Features(NamedTuple):
    """The inputs that the host sends to the device, apart from the labels.

    Attributes:
      images: uint8 [B, H, W, 3], RGB. Each image is at the top left; below it and to
        its right is padding.
      image_ids: int64 [B], the ids of the annotation file, or PADDING_IMAGE.
      image_sizes: int32 [B, 2], the height and width of the original image, in pixels.
      scales: float32 [B, 2], (y, x), the resized size divided by the original size.
    """

    images: tf.Tensor
    image_ids: tf.Tensor
    image_sizes: tf.Tensor
    scales: tf.Tensor


class Labels(NamedTuple):
    """The annotated boxes of a batch, in pixels of the network's input.

    Attributes:
      boxes_yxyx: float32 [B, N, 4], 0 from num_boxes on.
      classes: int32 [B, N] in 0..K-1, 0 from num_boxes on.
      is_crowd: bool [B, N], True for a region of uncounted objects. Such a box is
        never matched, and anchors in it are ignored.
      num_boxes: int32 [B], the number of boxes, including crowds.
    """

    boxes_yxyx: tf.Tensor
    classes: tf.Tensor
    is_crowd: tf.Tensor
    num_boxes: tf.Tensor


class Predictions(NamedTuple):
    """The outputs of the network: one tensor per level, in the layout of convolutions.

    Attributes:
      class_logits: A tensor [B, H_l, W_l, A * K] for each level l; the anchor is the
        outer index, the class the inner one.
      box_outputs: A tensor [B, H_l, W_l, A * C] for each level l; the anchor is the
        outer index, the C channels of a `box_coder.BoxCoder` the inner one.
    """

    class_logits: tuple[tf.Tensor, ...]
    box_outputs: tuple[tf.Tensor, ...]


class Detections(NamedTuple):
    """The detected objects of a batch, in falling order of their scores.

    Attributes:
      boxes_yxyx: float32 [B, D, 4], in pixels of the original image.
      scores: float32 [B, D], falling; 0 from num_detections on.
      classes: int32 [B, D], in 0..K-1 inside the program, category ids outside it.
      num_detections: int32 [B], the number of detections.
    """

    boxes_yxyx: tf.Tensor
    scores: tf.Tensor
    classes: tf.Tensor
    num_detections: tf.Tensor
