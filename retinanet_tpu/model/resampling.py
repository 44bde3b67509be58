"""Changes the resolution of features without parameters."""

import tensorflow as tf


def upsample(x: tf.Tensor, size: tuple[int, int], *, factor: int = 2) -> tf.Tensor:
    """Returns x with height and width multiplied by repetition, then cropped.

    Args:
      x: float [B, H, W, C], with static H, W and C.
      size: The height and width of the result, at most factor H and factor W.
      factor: The number of repetitions along each side.
    """
    # Not tf.image.resize, because XLA on CPU cannot compile its gradient.
    _, height, width, channels = x.shape
    batch = tf.shape(x)[0] if x.shape[0] is None else x.shape[0]
    # Not x[:, :, None], because TFLite has no slice of six dimensions.
    x = tf.reshape(x, [batch, height, 1, width, 1, channels])
    x = tf.broadcast_to(x, [batch, height, factor, width, factor, channels])
    x = tf.reshape(x, [batch, factor * height, factor * width, channels])
    return x[:, : size[0], : size[1]]
