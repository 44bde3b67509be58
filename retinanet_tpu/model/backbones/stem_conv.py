"""The first convolution of ResNet and SpineNet."""

import tensorflow as tf

from retinanet_tpu.model import layers


class StemConv(layers.Conv):
    """The 7x7 convolution of stride 2, as a 4x4 convolution over blocks of 2x2 pixels.

    It has the same products and sums, and some zeros. A TPU stores channels in tiles of
    128. With 3 channels it moves 1.5 GB for 8 images of 640 px, with 12 of them 1.2 GB.
    Source: as in the public MLPerf ResNet-50 for TPUs.
    """

    @tf.Module.with_name_scope
    def without_bias(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the convolution of x without the bias."""
        if any(side % 2 for side in x.shape[1:3]):
            return super().without_bias(x)
        *_, in_channels, out_channels = self.kernel.shape
        # Not space_to_depth, for which a TPU copies the image twice.
        blocks = tf.concat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
        # The first window begins 3 px before the image, or 2 px as in TensorFlow.
        zeros, pad = ([1, 0], [2, 1]) if self.symmetric_padding else ([0, 1], [1, 2])
        kernel = tf.pad(self.kernel, [zeros, zeros, [0, 0], [0, 0]])
        kernel = tf.reshape(kernel, [4, 2, 4, 2, in_channels, out_channels])
        kernel = tf.transpose(kernel, [0, 2, 1, 3, 4, 5])
        kernel = tf.reshape(kernel, [4, 4, 4 * in_channels, out_channels])
        blocks = tf.pad(blocks, [[0, 0], pad, pad, [0, 0]])
        return tf.nn.conv2d(blocks, tf.cast(kernel, x.dtype), 1, "VALID")
