"""Selects detections from candidates, in pixels of the original images."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from retinanet_tpu import structures
from retinanet_tpu.detections import decode

# Non-maximum suppression, such as `nms.NMS`.
SuppressFn = Callable[[decode.Candidates], structures.Detections]


def postprocess(
    candidates: decode.Candidates,
    suppress_fn: SuppressFn,
    *,
    category_ids: np.ndarray,
    scales: tf.Tensor,
    image_sizes: tf.Tensor,
) -> structures.Detections:
    """Returns the detections, in pixels of the original images and category ids.

    Args:
      candidates: The candidates of B images, in pixels of the network's input.
      suppress_fn: The non-maximum suppression.
      category_ids: int [K], the dataset's category id of each class index. It is
        negative for an index without a category; COCO's ids have such gaps.
      scales: float32 [B, 2], (y, x) size in the network's input / original size.
      image_sizes: int32 [B, 2], height and width of the original images, px.
    """
    ids_by_class = tf.constant(category_ids, tf.int32)
    ids = tf.gather(ids_by_class, candidates.classes)
    selected = suppress_fn(
        candidates._replace(scores=tf.where(ids >= 0, candidates.scores, 0.0))
    )
    is_detection = tf.sequence_mask(selected.num_detections, selected.scores.shape[1])
    return selected._replace(
        boxes_yxyx=decode.to_original(selected.boxes_yxyx, scales, image_sizes),
        classes=tf.where(is_detection, tf.gather(ids_by_class, selected.classes), 0),
    )
