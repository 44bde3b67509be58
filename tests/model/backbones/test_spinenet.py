import functools
import math

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import errors, replicas
from retinanet_tpu.model import activations, heads, layers, stochastic_depth
from retinanet_tpu.model.backbones import permuted_block, spinenet
from retinanet_tpu.model.necks import identity

# variant: (trainable parameters, parameters with moving statistics, trainable weights)
# Source: the networks of tf-models-official 2.20.0, levels 3 to 7.
PUBLISHED = {
    "49S": (9_089_215, 9_146_351, 390),
    "49": (21_831_488, 21_920_192, 390),
    "96": (36_262_976, 36_385_728, 531),
    "143": (60_247_616, 60_413_888, 672),
    "143L": (100_796_257, 101_011_093, 672),
    "190": (126_587_664, 126_849_216, 813),
}


@pytest.fixture
def sizes(monkeypatch):
    """Makes scalars instead of variables; returns (trainable, size) of each."""
    made = []

    def make(initial_value, *, name, trainable):
        made.append((trainable, initial_value.size))
        return tf.Variable(0.0, name=name, trainable=trainable)

    monkeypatch.setattr(replicas, "make_variable", make)
    monkeypatch.setattr(
        layers.Conv,
        "_initial_kernel",
        lambda self, rng, shape, init_fn: np.zeros(shape),
    )
    return made


def _zero_kernel(self, rng, shape, init_fn):
    return np.zeros(shape, np.float32)


def _make_zeros(initial_value, *, name, trainable):
    return tf.Variable(tf.zeros(initial_value.shape), name=name, trainable=trainable)


@pytest.fixture
def zeros(monkeypatch):
    """Makes variables of zeros."""
    monkeypatch.setattr(replicas, "make_variable", _make_zeros)
    monkeypatch.setattr(layers.Conv, "_initial_kernel", _zero_kernel)


@pytest.mark.parametrize("variant", spinenet.VARIANTS)
def test_parameters_equal_those_of_model_garden(variant, sizes):
    spinenet.SpineNet(variant=variant)
    trainable = [size for is_trainable, size in sizes if is_trainable]
    total = sum(size for _, size in sizes)
    assert (sum(trainable), total, len(trainable)) == PUBLISHED[variant]


def test_the_whole_network_has_the_published_28_5_million_parameters(sizes):
    backbone = spinenet.SpineNet(variant="49")
    neck = identity.Identity(backbone.channels)
    heads.Heads(neck.num_channels, neck.levels, num_classes=91, num_anchors=9)
    trainable = sum(size for is_trainable, size in sizes if is_trainable)
    assert trainable == 28_543_383
    assert round(trainable / 1e6, 1) == 28.5


@pytest.mark.usefixtures("zeros")
@pytest.mark.parametrize(
    ("size", "min_level", "max_level"),
    [
        ((100, 132), 3, 7),
        pytest.param((128, 128), 3, 7, marks=pytest.mark.slow),
        pytest.param((128, 256), 2, 6, marks=pytest.mark.slow),
    ],
)
def test_features_have_the_strides_of_their_levels(size, min_level, max_level):
    backbone = spinenet.SpineNet(
        variant="49S", min_level=min_level, max_level=max_level
    )
    features = backbone(tf.zeros([2, *size, 3]), is_training=False)
    assert list(features) == list(range(min_level, max_level + 1))
    assert backbone.channels == dict.fromkeys(features, 128)
    for level, x in features.items():
        assert x.shape == (2, *(math.ceil(side / 2**level) for side in size), 128)


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize(
    ("levels", "numbers"),
    [((3, 7), range(2, 17)), ((2, 7), range(2, 18)), ((3, 4), [*range(2, 11), 12, 13])],
)
def test_blocks_that_no_level_needs_are_left_out(levels, numbers):
    backbone = spinenet.SpineNet(min_level=levels[0], max_level=levels[1])
    assert [block.settings.number for block in backbone.blocks] == list(numbers)


@pytest.mark.usefixtures("sizes")
def test_stochastic_depth_rises_linearly_and_every_branch_drops_independently():
    backbone = spinenet.SpineNet(variant="96", min_level=2, drop_rate=0.16)
    residuals = [block for group in backbone.stem_blocks for block in group]
    assert {block.drop_rate for block in residuals} == {0.0}
    rates = [block.residuals[-1].drop_rate for block in backbone.blocks]
    np.testing.assert_allclose(rates, 0.01 * np.arange(1, 17))
    residuals += [block for group in backbone.blocks for block in group.residuals]
    assert len({block.index for block in residuals}) == len(residuals) == 36


@pytest.mark.parametrize("level_change", [-2, -1, 0, 1, 3])
def test_resampling_changes_level_and_channels(level_change):
    source = permuted_block.Input(0, 8, 4, level_change)
    resample = permuted_block.Resampling(source, 16, name="input1")
    assert (resample.downsample is not None) == (level_change > 0)
    sides = tuple(math.ceil(side / 2.0**level_change) for side in (11, 16))
    y = resample(tf.ones([2, 11, 16, 8]), sides, is_training=False)
    assert y.shape == (2, *sides, 16)


def _block(drop_rate=0.0):
    settings = permuted_block.BlockSettings(
        number=5,
        channels=8,
        is_bottleneck=True,
        repeats=1,
        activation_fn=activations.swish,
        drop_rate=drop_rate,
    )
    inputs = [permuted_block.Input(0, 8, 4, 2), permuted_block.Input(1, 8, 4, -1)]
    return permuted_block.PermutedBlock(settings, inputs, added=2)


def _outputs(dtype="float32", batch=4):
    shapes = [[batch, 16, 16, 8], [batch, 2, 2, 8], [batch, 4, 4, 32]]
    return {
        i: tf.cast(tf.random.stateless_normal(shape, [i, 0]), dtype)
        for i, shape in enumerate(shapes)
    }


@pytest.mark.parametrize(
    ("dtype", "jit_compile"),
    [
        ("bfloat16", True),
        ("float32", False),
        pytest.param("float32", True, marks=pytest.mark.slow),
        pytest.param("bfloat16", False, marks=pytest.mark.slow),
    ],
)
def test_gradients_reach_every_weight_of_a_block(dtype, jit_compile):
    block, outputs = _block(), _outputs(dtype)

    @tf.function(jit_compile=jit_compile)
    def gradients():
        with tf.GradientTape() as tape:
            y = block(outputs, (4, 4), is_training=True)
            loss = tf.reduce_sum(tf.cast(y, tf.float32) ** 2)
        return y, tape.gradient(loss, block.trainable_variables)

    y, grads = gradients()
    assert y.dtype == dtype
    for variable, grad in zip(block.trainable_variables, grads, strict=True):
        assert grad is not None and np.isfinite(grad).all(), variable.name
        assert np.abs(grad).max() > 0, variable.name


def test_a_dropped_block_passes_its_input_on():
    block, outputs = _block(drop_rate=0.5), _outputs(batch=64)
    seeds = stochastic_depth.image_seeds(tf.range(64, dtype=tf.int64), tf.constant(0))
    run = functools.partial(block, outputs, (4, 4), is_training=False)
    dropped, kept = run(seeds=seeds).numpy(), run().numpy()
    assert not np.allclose(dropped, kept)
    # The residual block is dropped in about half of the images.
    x = outputs[2] + sum(
        resample(outputs[i], (4, 4), is_training=False)
        for i, resample in enumerate(block.resamplings)
    )
    swish = activations.swish
    is_input = np.isclose(dropped, swish(swish(x)), atol=1e-5).all((1, 2, 3))
    assert 16 <= is_input.sum() <= 48


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"variant": "50"}, r"variant '50' is not one of \['49S'"),
        ({"min_level": 1}, r"levels 1..7 must rise within 2..7"),
        ({"min_level": 5, "max_level": 4}, r"levels 5..4"),
    ],
)
def test_an_impossible_setting_is_an_error(kwargs, message):
    with pytest.raises(errors.UserError, match=message):
        spinenet.SpineNet(**kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_gradients_reach_every_weight_of_the_network(jit_compile):
    backbone = spinenet.SpineNet(variant="49S")
    x = tf.random.stateless_normal([2, 128, 128, 3], [0, 0])
    seeds = tf.constant([3, 4], tf.uint32)

    @tf.function(jit_compile=jit_compile)
    def gradients():
        with tf.GradientTape() as tape:
            features = backbone(x, is_training=True, seeds=seeds)
            loss = sum(tf.reduce_sum(y**2) for y in features.values())
        return tape.gradient(loss, backbone.trainable_variables)

    for grad in gradients():
        assert np.isfinite(grad).all()
