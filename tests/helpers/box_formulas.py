"""The representations of boxes by plain float64 formulas, with gradients."""

import numpy as np
import tensorflow as tf

from retinanet_tpu.boxes import box_coder

CODERS = {
    "offsets": box_coder.AnchorOffsets(),
    "distances": box_coder.SideDistances(),
    "distributions": box_coder.SideDistributions(num_bins=5, reach=1.6),
}


def values(coder, outputs):
    """Returns the values [..., 4] of a network's outputs [..., num_channels]."""
    outputs = tf.cast(outputs, tf.float64)
    if isinstance(coder, box_coder.AnchorOffsets):
        return outputs
    if isinstance(coder, box_coder.SideDistances):
        return tf.exp(outputs) / 2
    bins = coder.num_bins + 1
    sides = tf.reshape(outputs, [*outputs.shape[:-1], 4, bins])
    distances = np.arange(bins) * coder.reach / coder.num_bins
    return tf.reduce_sum(tf.nn.softmax(sides) * distances, axis=-1)


def decode(coder, values, anchors_cyxhw):
    """Returns the boxes [..., 4], yxyx, of values [..., 4]."""
    a, b, c, d = tf.unstack(tf.cast(values, tf.float64), axis=-1)
    y, x, h, w = np.moveaxis(np.float64(anchors_cyxhw), -1, 0)
    if isinstance(coder, box_coder.AnchorOffsets):
        y, x, h, w = y + a * h, x + b * w, h * tf.exp(c), w * tf.exp(d)
        return tf.stack([y - h / 2, x - w / 2, y + h / 2, x + w / 2], axis=-1)
    return tf.stack([y - a * h, x - b * w, y + c * h, x + d * w], axis=-1)


def boxes(coder, outputs, anchors_cyxhw):
    """Returns the boxes [..., 4], yxyx, of a network's outputs [..., num_channels]."""
    return decode(coder, values(coder, outputs), anchors_cyxhw)


def distribution_focal_loss(coder, outputs, target_values):
    """Returns the loss [...] of each anchor by equation 6 of arXiv:2006.04388."""
    bins = coder.num_bins + 1
    logits = np.reshape(np.float64(outputs), [-1, bins])
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    losses = []
    targets = np.ravel(np.float64(target_values)) * coder.num_bins / coder.reach
    for p, y in zip(probabilities, targets, strict=True):
        y = min(max(y, 0), coder.num_bins)
        i = min(int(y), coder.num_bins - 1)
        losses.append(-(i + 1 - y) * np.log(p[i]) - (y - i) * np.log(p[i + 1]))
    return np.reshape(losses, np.shape(target_values)).mean(axis=-1)
