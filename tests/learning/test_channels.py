import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import replicas
from retinanet_tpu.learning import channels


@pytest.mark.parametrize("num_anchors", [1, 9])
@pytest.mark.parametrize("is_for_cpu", [False, True])
def test_maps_are_repeated_for_the_channels_of_their_anchor(num_anchors, is_for_cpu):
    maps = np.random.default_rng(0).integers(-2, 5, [2, num_anchors, 3, 4])
    fn = replicas.trace_for_cpu(channels.repeat) if is_for_cpu else channels.repeat
    expected = np.repeat(np.moveaxis(maps, 1, -1), 4, axis=-1)
    np.testing.assert_array_equal(fn(tf.constant(maps), 4), expected)


def test_split_is_the_inverse_of_interleave():
    maps = list(np.random.default_rng(0).normal(size=[4, 2, 9, 3, 5]))
    joined = channels.interleave(maps)
    assert joined.shape == (2, 3, 5, 36)
    np.testing.assert_array_equal(channels.split(joined, 4), maps)
