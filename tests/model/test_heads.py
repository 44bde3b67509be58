import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import replicas
from retinanet_tpu.boxes import box_coder
from retinanet_tpu.model import activations, heads, initializers, layers, norms


def _heads(**kwargs):
    sizes = {"num_classes": 3, "num_anchors": 2, "num_convs": 2, "num_channels": 8}
    return heads.Heads(4, (3, 4), **{**sizes, **kwargs})


def _pyramid(seed=0):
    return [
        tf.random.stateless_normal([2, 8, 4, 4], [seed, 3]),
        tf.random.stateless_normal([2, 4, 2, 4], [seed, 4]),
    ]


def test_predictions_have_the_grid_of_each_level():
    predictions = _heads()(_pyramid(), is_training=False)
    assert [x.shape for x in predictions.class_logits] == [(2, 8, 4, 6), (2, 4, 2, 6)]
    assert [x.shape for x in predictions.box_outputs] == [(2, 8, 4, 8), (2, 4, 2, 8)]


@pytest.mark.parametrize(
    ("coder", "name", "num_channels"),
    [
        (box_coder.SideDistances(), "distances", 8),
        (box_coder.SideDistributions(num_bins=3), "distributions", 32),
    ],
)
def test_the_representation_determines_channels_and_name(coder, name, num_channels):
    made = _heads(box_coder=coder)
    assert {x.shape[-1] for x in made(_pyramid(), is_training=False).box_outputs} == {
        num_channels
    }
    paths = {replicas.variable_path(v) for v in made.variables}
    assert f"heads/box/{name}/kernel" in paths
    assert not any("deltas" in path for path in paths)


@pytest.mark.parametrize("prior", [0.01, 0.2])
def test_untrained_heads_predict_the_prior_of_every_class(prior):
    predictions = _heads(prior=prior)(_pyramid(), is_training=True)
    for logits in predictions.class_logits:
        np.testing.assert_allclose(tf.sigmoid(logits), prior, rtol=0.01)
    for deltas in predictions.box_outputs:
        np.testing.assert_allclose(deltas, 0, atol=0.01)


def test_levels_share_convolutions_but_not_normalizations():
    paths = {replicas.variable_path(v) for v in _heads().trainable_variables}
    for tower, last in (("class", "logits"), ("box", "deltas")):
        names = {p.split("/")[2] for p in paths if p.startswith(f"heads/{tower}/")}
        norms = {f"norm{i}_level{level}" for i in (1, 2) for level in (3, 4)}
        assert names == {"conv1", "conv2", last} | norms


def test_levels_have_their_own_statistics():
    one, two = _heads(), _heads()
    fine, coarse = _pyramid()
    one([fine, coarse], is_training=True)
    two([fine, 3 * coarse + 1], is_training=True)
    is_same = [
        np.array_equal(a.moving_mean, b.moving_mean)
        for a, b in zip(one.class_tower.norms[0], two.class_tower.norms[0], strict=True)
    ]
    assert is_same == [True, False]


def test_separable_heads_have_a_separable_last_convolution():
    separable = _heads(
        conv_fn=layers.SeparableConv,
        init_fn=initializers.lecun_normal,
        activation_fn=activations.swish,
    )
    shapes = {replicas.variable_path(v): v.shape for v in separable.trainable_variables}
    assert shapes["heads/class/conv1/kernel"] == (3, 3, 4, 1)
    assert shapes["heads/class/conv1/pointwise/kernel"] == (1, 1, 4, 8)
    assert shapes["heads/box/deltas/kernel"] == (3, 3, 8, 1)
    assert shapes["heads/box/deltas/pointwise/bias"] == (8,)
    for logits in separable(_pyramid(), is_training=True).class_logits:
        np.testing.assert_allclose(tf.sigmoid(logits), 0.01, rtol=0.01)


def test_the_activation_follows_each_normalization():
    one = _heads(num_convs=1, activation_fn=activations.swish)
    tower, x = one.class_tower, _pyramid()[0]
    inner = tower.norms[0][0](tower.convs[0](x), is_training=True)
    np.testing.assert_allclose(
        one([x], is_training=True).class_logits[0],
        tower.last_conv(inner * tf.sigmoid(inner)),
        rtol=1e-5,
    )


def test_levels_can_share_normalizations_or_have_none():
    shared = {v.name.split("/")[2] for v in _heads(shares_norms=True).variables}
    assert shared == {"conv1", "conv2", "norm1", "norm2", "logits", "deltas"}
    without = {v.name.split("/")[2] for v in _heads(own_norm_fn=norms.NoNorm).variables}
    assert without == {"conv1", "conv2", "logits", "deltas"}
