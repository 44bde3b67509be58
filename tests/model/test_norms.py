import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import replicas
from retinanet_tpu.model import folding, layers, norms, variable_paths


@pytest.fixture(params=["operations", "xla", "cpu_kernels"])
def traced(request):
    """Returns a function that traces its argument for one of the ways to normalize."""

    def trace(fn):
        is_for_cpu = request.param == "cpu_kernels"
        fn = replicas.trace_for_cpu(fn) if is_for_cpu else fn
        return tf.function(fn, autograph=False, jit_compile=request.param == "xla")

    return trace


def _norm(num_channels=3, **kwargs):
    norm = norms.BatchNorm(num_channels, name="norm", momentum=0.9, **kwargs)
    rng = np.random.default_rng(1)
    for variable in norm.variables:
        variable.assign(rng.uniform(0.5, 2, variable.shape))
    return norm


def _batch(shape=(4, 5, 6, 3)):
    return np.random.default_rng(0).normal(3, 2, shape).astype(np.float32)


def _trains(norm):
    return lambda x: norm(x, is_training=True)


@pytest.mark.parametrize("shape", [(4, 5, 6, 3), (50, 3)])
def test_training_normalizes_by_the_moments_of_the_batch(traced, shape):
    norm, x = _norm(), _batch(shape)
    y = traced(_trains(norm))(x)
    x = x.astype(np.float64)
    axes = tuple(range(x.ndim - 1))
    mean, variance = x.mean(axes), x.var(axes)
    expected = (x - mean) / np.sqrt(variance + 1e-4) * norm.gamma + norm.beta
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_a_mean_of_1000_standard_deviations_keeps_the_variance(traced):
    x = np.random.default_rng(0).normal(1000, 1, [8, 32, 32, 3]).astype(np.float32)
    norm = norms.BatchNorm(3, name="norm", momentum=0.0)
    norm.moving_mean.assign([999.5, 1000.0, 1003.0])
    bias = tf.constant([-0.5, 0.0, 3.0])

    @traced
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
    np.testing.assert_allclose(bias_gradient, np.zeros(3), atol=1e-2)


@pytest.mark.parametrize("shape", [(4, 5, 6, 3), (50, 3), (1, 1, 1, 3)])
def test_training_moves_the_statistics_towards_the_biased_moments(traced, shape):
    norm, x = _norm(), _batch(shape)
    before = [norm.moving_mean.numpy(), norm.moving_variance.numpy()]
    traced(_trains(norm))(x)
    axes = tuple(range(x.ndim - 1))
    x = x.astype(np.float64)
    expected = 0.9 * before[0] + 0.1 * x.mean(axes)
    np.testing.assert_allclose(norm.moving_mean, expected, rtol=1e-5)
    expected = 0.9 * before[1] + 0.1 * x.var(axes)
    np.testing.assert_allclose(norm.moving_variance, expected, rtol=1e-5)


def test_evaluation_normalizes_by_the_moving_statistics_without_updates():
    norm, x = _norm(), _batch()
    mean, variance = norm.moving_mean.numpy(), norm.moving_variance.numpy()
    y = norm(x, is_training=False)
    expected = (x - mean) / np.sqrt(variance + 1e-4) * norm.gamma + norm.beta
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_array_equal(norm.moving_mean, mean)
    np.testing.assert_array_equal(norm.moving_variance, variance)


def test_gradient_equals_that_of_two_passes(traced):
    norm, x = _norm(), tf.constant(_batch())
    weight = _batch()[::-1]

    def two_passes(x):
        mean, variance = tf.nn.moments(x, [0, 1, 2])
        return tf.nn.batch_normalization(x, mean, variance, norm.beta, norm.gamma, 1e-4)

    def gradients_of(normalize):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.square(normalize(x)) * weight)
        return tape.gradient(loss, [x, norm.gamma, norm.beta])

    expected = gradients_of(two_passes)
    actual = traced(lambda: gradients_of(_trains(norm)))()
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-3, atol=1e-3)


def test_constant_channel_stays_finite(traced):
    norm = _norm()

    @traced
    def output_and_gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = norm(x, is_training=True)
        return y, tape.gradient(y, x)

    for result in output_and_gradient(tf.fill([2, 4, 4, 3], 100.1)):
        assert np.isfinite(result).all()


def test_moments_of_low_precision_inputs_are_float32(traced):
    norm, x = _norm(), tf.cast(_batch([8, 16, 16, 3]), tf.bfloat16)
    y = traced(_trains(norm))(x)
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


def test_no_norm_only_adds_the_bias_also_if_folded():
    conv = layers.Conv(3, 9, 1, name="conv", initial_bias=2.0)
    x, norm = _batch(), norms.NoNorm(9, name="norm")
    for is_training in (True, False):
        y = folding.conv_norm_sum([(conv, norm, x)], is_training=is_training)
        np.testing.assert_allclose(y, conv(x), rtol=1e-5, atol=1e-5)
    assert not norm.variables


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
