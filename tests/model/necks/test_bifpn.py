import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import errors, replicas
from retinanet_tpu.model import layers
from retinanet_tpu.model.necks import bifpn, fusion

CHANNELS = {2: 4, 3: 5, 4: 6, 5: 7}
# The nodes of a cell for P3 to P7: (level, ids of the inputs). The ids 0 to 4 are the
# inputs P3 to P7; then each node has the next one.
# Source: the configuration of the public TensorFlow code.
NODES = (
    (6, (3, 4)),
    (5, (2, 5)),
    (4, (1, 6)),
    (3, (0, 7)),
    (4, (1, 7, 8)),
    (5, (2, 6, 9)),
    (6, (3, 5, 10)),
    (7, (4, 11)),
)


def _features(size, dtype="float32"):
    def draw(level, channels):
        shape = [2, *(-(-side // 2**level) for side in size), channels]
        return tf.cast(tf.random.stateless_normal(shape, [level, 0]), dtype)

    return {level: draw(level, channels) for level, channels in CHANNELS.items()}


def _random(neck):
    """Returns the neck with random values of its variables."""
    rng = np.random.default_rng(0)
    for variable in neck.variables:
        if not replicas.variable_path(variable).endswith("kernel"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return neck


def _resize(x, height):
    """Returns NumPy features of a level above, at, or below the input's."""
    if height > x.shape[1]:
        return x.repeat(2, axis=1).repeat(2, axis=2)
    if height < x.shape[1]:  # SAME pads an even side below and right.
        x = np.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)], constant_values=-np.inf)
        shifted = [x[:, i : i + 2 * height, j:] for i in range(3) for j in range(3)]
        shifted = [y[:, ::2, ::2][:, :height, :height] for y in shifted]
        return np.max(shifted, axis=0)
    return x


def _norm(norm, x):
    scale = norm.gamma.numpy() / np.sqrt(norm.moving_variance.numpy() + 1e-4)
    return (x - norm.moving_mean.numpy()) * scale + norm.beta.numpy()


def _project(projection, x):
    if projection.conv is None:
        return x
    kernel = projection.conv.kernel.numpy()[0, 0]
    return _norm(projection.norm, x @ kernel + projection.conv.bias.numpy())


def _oracle(neck, features):
    """Returns the pyramid, computed from the list of nodes."""
    inputs = [features[level].numpy() for level in (3, 4, 5)]
    inputs.append(_resize(_project(neck.coarse, inputs[-1]), inputs[-1].shape[1] // 2))
    inputs.append(_resize(inputs[-1], inputs[-1].shape[1] // 2))
    for cell in neck.cells:
        values = list(inputs)
        for (level, ids), node in zip(NODES, [*cell.down, *cell.up], strict=True):
            height = inputs[level - 3].shape[1]
            terms = [
                _resize(_project(projection, values[i]), height)
                for i, projection in zip(ids, node.projections, strict=True)
            ]
            weights = np.maximum(node.fusion.weights.numpy(), 0)
            x = sum(w * term for w, term in zip(weights, terms, strict=True))
            x /= weights.sum() + 1e-4
            x = x / (1 + np.exp(-x))
            values.append(_norm(node.norm, node.conv(x).numpy()))
        inputs = [values[8], values[9], values[10], values[11], values[12]]
    return inputs


@pytest.mark.parametrize("num_cells", [1, 2])
def test_the_pyramid_equals_that_of_the_published_list_of_nodes(num_cells):
    neck = _random(bifpn.BiFPN(CHANNELS, num_channels=8, num_cells=num_cells))
    features = _features((128, 128))
    outputs = neck(features, is_training=False)
    for y, expected in zip(outputs, _oracle(neck, features), strict=True):
        np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [(128, 64), (100, 132)])
@pytest.mark.parametrize(("min_level", "max_level"), [(3, 7), (2, 8), (3, 4), (5, 7)])
def test_outputs_have_the_strides_of_their_levels(size, min_level, max_level):
    levels = range(min_level, max_level + 1)
    neck = bifpn.BiFPN(
        CHANNELS, num_channels=8, num_cells=2, min_level=min_level, max_level=max_level
    )
    outputs = neck(_features(size), is_training=False)
    assert [x.shape[1:] for x in outputs] == [
        (*(-(-side // 2**level) for side in size), 8) for level in levels
    ]
    assert neck.levels == tuple(levels)


def test_a_level_that_has_the_channels_already_is_not_projected():
    neck = bifpn.BiFPN({3: 8, 4: 6, 5: 8}, num_channels=8, num_cells=2)
    convs = {v.name for v in neck.variables if v.name.endswith("input0/conv/kernel:0")}
    assert convs == {
        "bifpn/cell0/down4/input0/conv/kernel:0",
        "bifpn/cell0/up4/input0/conv/kernel:0",
    }


@pytest.mark.parametrize(
    ("dtype", "jit_compile"), [("float32", True), ("bfloat16", False)]
)
def test_every_weight_has_a_finite_gradient(dtype, jit_compile):
    neck = bifpn.BiFPN(CHANNELS, num_channels=8, num_cells=1, max_level=6)
    features = _features((128, 128), dtype)

    @tf.function(jit_compile=jit_compile)
    def gradients():
        with tf.GradientTape() as tape:
            outputs = neck(features, is_training=True)
            assert {x.dtype for x in outputs} == {tf.as_dtype(dtype)}
            loss = sum(tf.reduce_sum(tf.cast(x, tf.float32) ** 3) for x in outputs)
        return tape.gradient(loss, neck.trainable_variables)

    for variable, gradient in zip(neck.trainable_variables, gradients(), strict=True):
        assert np.isfinite(gradient).all(), variable.name
        if not variable.name.endswith("bias:0"):  # A norm follows each bias.
            assert np.any(gradient), variable.name


def test_cells_can_have_ordinary_convolutions_and_sums():
    neck = bifpn.BiFPN(
        CHANNELS, num_channels=8, conv_fn=layers.Conv, fusion_fn=fusion.SumFusion
    )
    paths = {replicas.variable_path(v) for v in neck.variables}
    assert not any("pointwise" in path or "fusion" in path for path in paths)


@pytest.mark.parametrize(
    "settings", [{"min_level": 1}, {"max_level": 3}, {"num_cells": 0}]
)
def test_impossible_pyramids_are_an_error(settings):
    with pytest.raises(errors.UserError, match=r"BiFPN .*min_level.*max_level"):
        bifpn.BiFPN(CHANNELS, **settings)
