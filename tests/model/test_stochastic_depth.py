import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu.model import stochastic_depth

IDS = np.arange(20_000, dtype=np.int64)


def _dropped(ids=IDS, *, step=0, layer=0, rate=0.2):
    """Returns for each image whether it is dropped."""
    seeds = stochastic_depth.image_seeds(tf.constant(ids), tf.constant(step, tf.int64))
    x = tf.ones([len(ids), 1])
    y = stochastic_depth.drop(x, rate=rate, layer=layer, seeds=seeds).numpy()[:, 0]
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)
    return y == 0


@pytest.mark.parametrize("rate", [0.1, 0.5])
@pytest.mark.parametrize("step", [0, 1, 2**20])
@pytest.mark.parametrize("layer", [0, 7])
def test_the_share_of_dropped_images_is_the_rate(rate, step, layer):
    share = _dropped(step=step, layer=layer, rate=rate).mean()
    assert share == pytest.approx(rate, abs=4 * (rate * (1 - rate) / len(IDS)) ** 0.5)


@pytest.mark.parametrize("other", [{"step": 1}, {"layer": 1}, {"ids": IDS + 1}])
def test_steps_layers_and_images_drop_independently(other):
    correlation = np.corrcoef(_dropped(), _dropped(**other))[0, 1]
    assert abs(correlation) < 4 / len(IDS) ** 0.5


def test_an_image_is_dropped_alike_in_any_batch():
    whole = _dropped(IDS[:64], step=5)
    halves = [_dropped(IDS[:32], step=5), _dropped(IDS[32:64], step=5)]
    np.testing.assert_array_equal(whole, np.concatenate(halves))


def test_ids_of_padding_and_of_more_than_32_bits_have_seeds():
    assert len(_dropped(np.array([-1, 2**40 + 3]))) == 2


def test_without_seeds_or_rate_nothing_changes():
    x = tf.ones([2, 3])
    assert stochastic_depth.drop(x, rate=0.5, layer=0, seeds=None) is x
    seeds = tf.constant([1, 2], tf.uint32)
    assert stochastic_depth.drop(x, rate=0.0, layer=0, seeds=seeds) is x


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dtype_is_kept(dtype):
    x = tf.ones([2, 3, 3, 4], dtype)
    seeds = tf.constant([1, 2], tf.uint32)
    y = stochastic_depth.drop(x, rate=0.5, layer=0, seeds=seeds)
    assert (y.dtype, y.shape) == (x.dtype, x.shape)
