"""The activation functions that gin can choose.

All of them use operations that TFLite fuses or quantizes.
"""

from collections.abc import Callable

import tensorflow as tf

# From a tensor to one of the same shape and dtype.
ActivationFn = Callable[[tf.Tensor], tf.Tensor]


def relu(x: tf.Tensor) -> tf.Tensor:
    """Returns max(x, 0).

    Args:
      x: float, of any shape.
    """
    return tf.nn.relu(x)


def relu6(x: tf.Tensor) -> tf.Tensor:
    """Returns x limited to [0, 6], which eight bits represent well.

    Args:
      x: float, of any shape.
    Source: MobileNets, arXiv:1704.04861.
    """
    return tf.nn.relu6(x)


def swish(x: tf.Tensor) -> tf.Tensor:
    """Returns x sigmoid(x), also named SiLU.

    Args:
      x: float, of any shape.
    Source: arXiv:1710.05941.
    """
    # Not tf.nn.silu, whose custom gradient hides the multiplication from TFLite.
    return x * tf.sigmoid(x)


def hard_sigmoid(x: tf.Tensor) -> tf.Tensor:
    """Returns relu6(x + 3) / 6, a sigmoid of straight lines.

    Args:
      x: float, of any shape.
    Source: MobileNetV3, arXiv:1905.02244, section 5.2.
    """
    return tf.nn.relu6(x + 3) * (1 / 6)


def hard_swish(x: tf.Tensor) -> tf.Tensor:
    """Returns x relu6(x + 3) / 6.

    Args:
      x: float, of any shape.
    Source: MobileNetV3, arXiv:1905.02244, section 5.2.
    """
    return x * hard_sigmoid(x)


def linear(x: tf.Tensor) -> tf.Tensor:
    """Returns x.

    Args:
      x: float, of any shape.
    """
    return x
