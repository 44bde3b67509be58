import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import replicas
from retinanet_tpu.model import (
    folding,
    initializers,
    layers,
    norms,
    variable_paths,
)


def _conv_oracle(x, kernel, stride):
    """Returns the convolution of images that are padded equally on all sides."""
    size = kernel.shape[0]
    pad = size // 2
    x = np.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
    rows = range(0, x.shape[1] - size + 1, stride)
    cols = range(0, x.shape[2] - size + 1, stride)
    patches = [[x[:, r : r + size, c : c + size] for c in cols] for r in rows]
    return np.einsum("rcbhwi,hwio->brco", np.array(patches), kernel)


def _batch(shape=(4, 5, 6, 3)):
    return np.random.default_rng(0).normal(3, 2, shape).astype(np.float32)


@pytest.mark.parametrize("size", [(8, 6), (7, 9)])
@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 2), (3, 1), (3, 2), (7, 2)])
def test_conv_pads_all_sides_equally(size, kernel_size, stride):
    conv = layers.Conv(2, 3, kernel_size, name="conv", stride=stride)
    x = _batch((2, *size, 2))
    y = conv(x)
    assert y.shape == (2, -(-size[0] // stride), -(-size[1] // stride), 3)
    np.testing.assert_allclose(
        y, _conv_oracle(x, conv.kernel.numpy(), stride), atol=1e-4
    )


@pytest.mark.parametrize("in_channels, strides", [(8, [1, 1]), (16, [2, 2])])
def test_a_pointwise_conv_of_few_channels_convolves_every_second_pixel(
    in_channels, strides
):
    conv = layers.Conv(in_channels, 3, 1, name="conv", stride=2)
    convolve = tf.function(conv).get_concrete_function(
        tf.TensorSpec([3, 7, 9, in_channels])
    )
    (operation,) = (o for o in convolve.graph.get_operations() if o.type == "Conv2D")
    assert list(operation.get_attr("strides"))[1:3] == strides
    x = _batch((3, 7, 9, in_channels))
    expected = _conv_oracle(x, conv.kernel.numpy(), 2)
    np.testing.assert_allclose(convolve(x), expected, atol=1e-4)


@pytest.mark.parametrize("size", [(8, 6), (7, 9)])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_asymmetric_padding_is_that_of_same(size, kernel_size):
    conv = layers.Conv(
        2, 3, kernel_size, name="conv", stride=2, symmetric_padding=False
    )
    x = _batch((2, *size, 2))
    expected = tf.nn.conv2d(x, conv.kernel, 2, "SAME")
    np.testing.assert_array_equal(conv(x), expected)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("kernel_size", "stride"), [(3, 1), (3, 2), (5, 2)])
def test_a_depthwise_conv_convolves_each_channel(kernel_size, stride, symmetric):
    options = {"stride": stride, "symmetric_padding": symmetric}
    conv = layers.DepthwiseConv(3, kernel_size, name="conv", **options)
    single = layers.Conv(1, 1, kernel_size, name="single", **options)
    x = _batch((2, 8, 7, 3))
    y = conv(x)
    for channel in range(3):
        kernel = conv.kernel[:, :, channel]
        single.kernel.assign(kernel[..., None])
        expected = single(x[..., channel : channel + 1])
        np.testing.assert_allclose(y[..., channel : channel + 1], expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_depthwise_conv_keeps_the_dtype_and_has_gradients(dtype):
    conv = layers.DepthwiseConv(3, 3, name="conv", stride=2)
    x = tf.constant(_batch(), dtype)
    with tf.GradientTape() as tape:
        y = conv(x)
        loss = tf.reduce_sum(tf.cast(y, tf.float32))
    assert y.dtype == dtype
    assert np.isfinite(tape.gradient(loss, conv.kernel)).all()


def test_a_depthwise_kernel_has_the_variance_of_its_own_fan_in():
    kernel = layers.DepthwiseConv(512, 3, name="conv").kernel.numpy()
    assert kernel.var() == pytest.approx(1 / 9, rel=0.1)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_separable_conv_is_a_depthwise_and_a_pointwise_one(stride):
    conv = layers.SeparableConv(
        3, 5, 3, name="conv", stride=stride, symmetric_padding=False, initial_bias=2.0
    )
    x = _batch()
    strides = [1, stride, stride, 1]
    kernels = (conv.kernel, conv.pointwise.kernel)
    expected = tf.nn.separable_conv2d(x, *kernels, strides, "SAME")
    np.testing.assert_allclose(conv(x), expected + 2, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(conv.without_bias(x), expected, rtol=1e-4, atol=1e-5)
    paths = {replicas.variable_path(v) for v in conv.trainable_variables}
    pointwise = {f"conv/pointwise/{kind}" for kind in ("kernel", "bias")}
    assert paths == {"conv/kernel"} | pointwise


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("norm_fn", [norms.BatchNorm, norms.NoNorm])
def test_a_separable_conv_is_never_folded(is_training, norm_fn):
    conv = layers.SeparableConv(3, 9, 3, name="conv", initial_bias=2.0)
    x, norm = _batch(), norm_fn(9, name="norm")
    expected = norm(conv(x), is_training=is_training)
    for y in (
        folding.conv_norm(conv, norm, x, is_training=is_training),
        folding.conv_norm_sum([(conv, norm, x)], is_training=is_training),
    ):
        np.testing.assert_allclose(y, expected, atol=1e-3)


def test_squeeze_excite_multiplies_by_a_gate_of_the_means():
    layer = layers.SqueezeExcite(3, 2, name="squeeze_excite")
    layer.excite.bias.assign([0.0, 50.0, -50.0])
    x = _batch()
    means = x.mean((1, 2))
    hidden = np.maximum(means @ layer.squeeze.kernel.numpy()[0, 0], 0)
    logits = hidden @ layer.excite.kernel.numpy()[0, 0] + [0, 50, -50]
    expected = x / (1 + np.exp(-logits[:, None, None]))
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-6)


def test_conv_adds_its_bias_and_keeps_the_dtype():
    conv = layers.Conv(2, 3, 1, name="conv", initial_bias=2.0)
    y = conv(tf.zeros([1, 4, 4, 2], tf.bfloat16))
    assert y.dtype == tf.bfloat16
    np.testing.assert_array_equal(tf.cast(y, tf.float32), np.full((1, 4, 4, 3), 2.0))


@pytest.mark.parametrize(
    ("init_fn", "variance"),
    [
        (initializers.lecun_normal, 1 / (9 * 64)),
        (initializers.glorot_uniform, 2 / (9 * (64 + 128))),
        (lambda *args: initializers.normal(*args, stddev=0.01), 1e-4),
    ],
)
def test_initial_kernels_have_their_variance(init_fn, variance):
    values = init_fn(np.random.default_rng(0), (3, 3, 64, 128))
    assert values.dtype == np.float32
    assert abs(values.mean()) < 0.01 * variance**0.5
    np.testing.assert_allclose(values.var(), variance, rtol=0.02)


def test_lecun_normal_is_truncated_at_two_deviations():
    values = initializers.lecun_normal(np.random.default_rng(0), (1, 1, 100, 100))
    assert np.abs(values).max() <= 2 / (10 * 0.87962566) * (1 + 1e-6)


def test_kernels_depend_on_their_name_and_seed():
    def draw(name, seed):
        return layers.Conv(4, 4, 3, name=name, seed=seed).kernel.numpy()

    np.testing.assert_array_equal(draw("a", 0), draw("a", 0))
    assert not np.any(draw("a", 0) == draw("b", 0))
    assert not np.any(draw("a", 0) == draw("a", 1))


def _pair(name):
    with tf.name_scope(name):
        return [layers.Conv(2, 2, 1, name="conv"), norms.BatchNorm(2, name="norm1")]


def _frozen_paths(patterns):
    with variable_paths.frozen(patterns):
        modules = _pair("stage2") + _pair("stage20")
    variables = [v for module in modules for v in module.variables]
    return {
        replicas.variable_path(v)
        for v in variables
        if not v.trainable and "moving" not in replicas.variable_path(v)
    }


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("stage2", {"stage2/conv/kernel", "stage2/norm1/gamma", "stage2/norm1/beta"}),
        ("stage2/conv/kernel", {"stage2/conv/kernel"}),
        ("*/conv", {"stage2/conv/kernel", "stage20/conv/kernel"}),
        ("stage20/norm*", {"stage20/norm1/gamma", "stage20/norm1/beta"}),
        ("stage2/batch_norm", {"stage2/norm1/gamma", "stage2/norm1/beta"}),
        (
            "batch_norm",
            {f"stage{n}/norm1/{w}" for n in (2, 20) for w in ("gamma", "beta")},
        ),
    ],
)
def test_a_pattern_freezes_all_variables_below_it(pattern, paths):
    assert _frozen_paths([pattern]) == paths


@pytest.mark.parametrize("pattern", ["stage", "stage2/", "onv"])
def test_pattern_that_matches_nothing_is_an_error(pattern):
    with pytest.raises(ValueError, match="matches no variable"):
        _frozen_paths([pattern])


def test_the_error_of_a_misspelled_pattern_contains_similar_paths():
    with pytest.raises(ValueError, match=r"stage2/conv"):
        _frozen_paths(["stage2/cnov"])


def test_patterns_must_be_a_list():
    with pytest.raises(ValueError, match="list of patterns"):
        _frozen_paths("stage2")
