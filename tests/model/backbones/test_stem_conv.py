import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu.model import layers
from retinanet_tpu.model.backbones import stem_conv


@pytest.mark.parametrize("size", [(16, 16), (16, 12), (15, 16)])
@pytest.mark.parametrize("symmetric_padding", [True, False])
def test_blocks_of_pixels_give_the_result_of_the_plain_convolution(
    size, symmetric_padding
):
    kwargs = {"name": "conv", "stride": 2, "symmetric_padding": symmetric_padding}
    stem = stem_conv.StemConv(3, 4, 7, **kwargs)
    plain = layers.Conv(3, 4, 7, **kwargs)
    x = tf.random.stateless_normal([2, *size, 3], [0, 0])
    np.testing.assert_allclose(stem(x), plain(x), atol=1e-5)
