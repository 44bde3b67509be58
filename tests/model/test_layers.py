import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import replicas
from retinanet_tpu.model import folding, initializers, layers, variable_paths


def _conv_oracle(x, kernel, stride):
    """Returns the convolution of images that are padded equally on all sides."""
    size = kernel.shape[0]
    pad = size // 2
    x = np.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)])
    rows = range(0, x.shape[1] - size + 1, stride)
    cols = range(0, x.shape[2] - size + 1, stride)
    patches = [[x[:, r : r + size, c : c + size] for c in cols] for r in rows]
    return np.einsum("rcbhwi,hwio->brco", np.array(patches), kernel)


def _norm(num_channels=3, **kwargs):
    norm = layers.BatchNorm(num_channels, name="norm", momentum=0.9, **kwargs)
    rng = np.random.default_rng(1)
    for variable in norm.variables:
        variable.assign(rng.uniform(0.5, 2, variable.shape))
    return norm


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
@pytest.mark.parametrize("norm_fn", [layers.BatchNorm, layers.NoNorm])
def test_a_separable_conv_is_never_folded(is_training, norm_fn):
    conv = layers.SeparableConv(3, 9, 3, name="conv", initial_bias=2.0)
    x, norm = _batch(), norm_fn(9, name="norm")
    expected = norm(conv(x), is_training=is_training)
    for y in (
        folding.conv_norm(conv, norm, x, is_training=is_training),
        folding.conv_norm_sum([(conv, norm, x)], is_training=is_training),
    ):
        np.testing.assert_allclose(y, expected, atol=1e-3)


def test_no_norm_only_adds_the_bias_also_if_folded():
    conv = layers.Conv(3, 9, 1, name="conv", initial_bias=2.0)
    x, norm = _batch(), layers.NoNorm(9, name="norm")
    for is_training in (True, False):
        y = folding.conv_norm_sum([(conv, norm, x)], is_training=is_training)
        np.testing.assert_allclose(y, conv(x), rtol=1e-5, atol=1e-5)
    assert not norm.variables


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


def test_training_normalizes_by_the_moments_of_the_batch():
    norm, x = _norm(), _batch()
    y = norm(x, is_training=True)
    x = x.astype(np.float64)
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    expected = (x - mean) / np.sqrt(variance + 1e-4) * norm.gamma + norm.beta
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_mean_of_1000_standard_deviations_keeps_the_variance(jit_compile):
    x = np.random.default_rng(0).normal(1000, 1, [8, 32, 32, 3]).astype(np.float32)
    norm = layers.BatchNorm(3, name="norm", momentum=0.0)
    norm.moving_mean.assign([999.5, 1000.0, 1003.0])
    bias = tf.constant([-0.5, 0.0, 3.0])

    @tf.function(jit_compile=jit_compile)
    def outputs_and_gradient(x, weight):
        with tf.GradientTape() as tape:
            tape.watch([x, bias])
            y = norm(x, is_training=True, bias=bias)
        return y, tape.gradient(y, [x, bias], output_gradients=weight)

    weight = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    y, (gradient, bias_gradient) = outputs_and_gradient(tf.constant(x), weight)
    x64, axes = x.astype(np.float64), (0, 1, 2)
    deviation = np.sqrt(x64.var(axes) + 1e-4)
    expected = (x64 - x64.mean(axes)) / deviation
    # The sum of numbers near 1000 rounds; one ulp of them is 6e-5.
    np.testing.assert_allclose(y, expected, atol=3e-3)
    np.testing.assert_allclose(norm.moving_variance, x64.var(axes), rtol=1e-4)
    np.testing.assert_allclose(norm.moving_mean, x64.mean(axes) + bias, rtol=3e-6)
    means = weight.mean(axes), (weight * expected).mean(axes)
    slope = (weight - means[0] - expected * means[1]) / deviation
    np.testing.assert_allclose(gradient, slope, atol=3e-3)
    assert bias_gradient is None or not np.any(np.abs(bias_gradient) > 1e-2)


def test_training_moves_the_statistics_towards_the_biased_moments():
    norm, x = _norm(), _batch()
    before = [norm.moving_mean.numpy(), norm.moving_variance.numpy()]
    norm(x, is_training=True)
    x = x.astype(np.float64)
    expected = 0.9 * before[0] + 0.1 * x.mean((0, 1, 2))
    np.testing.assert_allclose(norm.moving_mean, expected, rtol=1e-5)
    expected = 0.9 * before[1] + 0.1 * x.var((0, 1, 2))
    np.testing.assert_allclose(norm.moving_variance, expected, rtol=1e-5)


def test_evaluation_normalizes_by_the_moving_statistics_without_updates():
    norm, x = _norm(), _batch()
    mean, variance = norm.moving_mean.numpy(), norm.moving_variance.numpy()
    y = norm(x, is_training=False)
    expected = (x - mean) / np.sqrt(variance + 1e-4) * norm.gamma + norm.beta
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_array_equal(norm.moving_mean, mean)
    np.testing.assert_array_equal(norm.moving_variance, variance)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_gradient_equals_that_of_two_passes(jit_compile):
    norm, x = _norm(), tf.constant(_batch())
    weight = _batch()[::-1]

    def two_passes(x):
        mean, variance = tf.nn.moments(x, [0, 1, 2])
        return tf.nn.batch_normalization(x, mean, variance, norm.beta, norm.gamma, 1e-4)

    @tf.function(jit_compile=jit_compile)
    def gradients(normalize):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.square(normalize(x)) * weight)
        return tape.gradient(loss, [x, norm.gamma, norm.beta])

    expected = gradients(two_passes)
    actual = gradients(lambda x: norm(x, is_training=True))
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-3, atol=1e-3)


def test_constant_channel_stays_finite():
    norm = _norm()
    x = tf.fill([2, 4, 4, 3], 100.1)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = norm(x, is_training=True)
    assert np.isfinite(y).all()
    assert np.isfinite(tape.gradient(y, x)).all()


def test_moments_of_low_precision_inputs_are_float32():
    norm, x = _norm(), tf.cast(_batch([8, 16, 16, 3]), tf.bfloat16)
    y = norm(x, is_training=True)
    assert y.dtype == tf.bfloat16
    x = tf.cast(x, tf.float32).numpy()
    expected = (x - x.mean((0, 1, 2))) / x.std((0, 1, 2)) * norm.gamma + norm.beta
    np.testing.assert_allclose(tf.cast(y, tf.float32), expected, rtol=2**-8, atol=1e-3)


def _two_replicas():
    # Collectives, the default, number exchanges per process: two strategies clash.
    reduction = tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], reduction)


def _on_two_replicas(norm, x):
    """Returns y and dy/dx of all replicas concatenated, and the sum of dy/dgamma."""
    strategy = tf.distribute.get_strategy()
    halves = tf.split(x, strategy.num_replicas_in_sync)
    inputs = strategy.experimental_distribute_values_from_function(
        lambda context: halves[context.replica_id_in_sync_group]
    )

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = norm(x, is_training=True)
            loss = tf.reduce_sum(y**3)
        return y, *tape.gradient(loss, [x, norm.gamma])

    results = tf.function(lambda x: strategy.run(step, [x]))(inputs)
    y, dx, dgamma = (strategy.experimental_local_results(r) for r in results)
    return tf.concat(y, 0), tf.concat(dx, 0), tf.add_n(dgamma)


def test_two_replicas_normalize_as_one_with_the_whole_batch():
    x = _batch()
    strategy = _two_replicas()
    single = _norm()
    expected = _on_two_replicas(single, x)
    with strategy.scope():
        double = _norm()
        actual = _on_two_replicas(double, x)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4)
    for name in ("moving_mean", "moving_variance"):
        for replica in strategy.experimental_local_results(getattr(double, name)):
            np.testing.assert_allclose(replica, getattr(single, name), rtol=1e-5)


def test_unsynchronized_replicas_normalize_their_own_half():
    x = _batch()
    strategy = _two_replicas()
    expected = [_norm()(half, is_training=True) for half in tf.split(x, 2)]
    with strategy.scope():
        y, _, _ = _on_two_replicas(_norm(is_synchronized=False), x)
    np.testing.assert_allclose(y, tf.concat(expected, 0), atol=1e-5)


def _pair(name):
    with tf.name_scope(name):
        return [layers.Conv(2, 2, 1, name="conv"), layers.BatchNorm(2, name="norm1")]


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


def test_frozen_norm_does_not_update_its_statistics():
    with variable_paths.frozen(["norm"]):
        norm = _norm()
    x = _batch()
    before = norm.moving_mean.numpy()
    np.testing.assert_array_equal(norm(x, is_training=True), norm(x, is_training=False))
    np.testing.assert_array_equal(norm.moving_mean, before)


def test_variables_can_be_frozen_under_a_strategy():
    strategy = _two_replicas()
    with strategy.scope(), variable_paths.frozen(["norm/gamma"]):
        norm = _norm()
    assert [replicas.variable_path(v) for v in norm.trainable_variables] == [
        "norm/beta"
    ]
    assert len(norm.variables) == 4
