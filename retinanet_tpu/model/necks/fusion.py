"""How a neck adds features of the same shape."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from retinanet_tpu import replicas

# Keeps the sum of the weights of `AttentionFusion` above 0.
_EPSILON = 1e-4


class SumFusion(tf.Module):
    """Adds features."""

    def __init__(self, num_inputs: int, num_channels: int, *, name: str):
        """Makes no variables.

        Args:
          num_inputs: Unused.
          num_channels: Unused.
          name: The last part of the layer's path.
        """
        super().__init__(name)

    def __call__(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        """Returns the sum of the inputs.

        Args:
          inputs: float [B, H, W, C] each.
        """
        return functools.reduce(tf.add, inputs)  # TFLite cannot quantize an add_n.


class AttentionFusion(tf.Module):
    """Adds features with learned weights that are at least 0 and add up to 1.

    Input i has the weight relu(w_i) / (sum of relu(w_j) + 1e-4). All w start at 1.

    Source: "Fast normalized fusion" of EfficientDet, arXiv:1911.09070, section 3.3.
    """

    def __init__(
        self,
        num_inputs: int,
        num_channels: int,
        *,
        name: str,
        by_channel: bool = False,
    ):
        """Initializes the weights.

        Args:
          num_inputs: The number of inputs.
          num_channels: The number of channels of every input.
          name: The last part of the layer's path.
          by_channel: Whether each channel has its own weights.
        """
        super().__init__(name)
        shape = (num_inputs, num_channels) if by_channel else (num_inputs,)
        with self.name_scope:
            # The path does not end in /kernel, so there is no weight decay.
            self.weights = replicas.make_variable(
                np.ones(shape, np.float32), name="weights", trainable=True
            )

    @tf.Module.with_name_scope
    def __call__(self, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        """Returns the weighted sum of the inputs, in their dtype.

        Args:
          inputs: float [B, H, W, C] each.
        """
        weights = tf.nn.relu(self.weights)
        weights /= tf.reduce_sum(weights, 0) + _EPSILON
        weights = tf.unstack(tf.cast(weights, inputs[0].dtype))
        terms = [w * x for w, x in zip(weights, inputs, strict=True)]
        return functools.reduce(tf.add, terms)


Fusion = SumFusion | AttentionFusion
# Called with (num_inputs, num_channels, name=).
FusionFn = Callable[..., Fusion]
