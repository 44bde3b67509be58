import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu.learning import loss_scale


def scale_of(scale):
    return scale.variables["loss_scale/scale"].numpy()


def test_unscaled_gradients_equal_those_of_the_plain_loss():
    scale = loss_scale.DynamicLossScale(initial=1024.0)
    w = tf.Variable(3.0)
    with tf.GradientTape() as tape:
        scaled = scale.scale(w * w)
    assert scaled.numpy() == 9 * 1024
    gradients, is_finite = scale.unscale([tape.gradient(scaled, w)])
    assert gradients[0].numpy() == 6
    assert is_finite.numpy()


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_one_infinite_or_nan_value_makes_all_gradients_not_finite(value):
    scale = loss_scale.DynamicLossScale()
    gradients = [tf.zeros([2, 2]), tf.constant([0, value], tf.float16)]
    unscaled, is_finite = scale.unscale(gradients)
    assert not is_finite.numpy()
    assert all(gradient.dtype == tf.float32 for gradient in unscaled)


def test_scale_grows_after_finite_steps_and_shrinks_after_an_overflow():
    scale = loss_scale.DynamicLossScale(initial=8.0, growth_interval=3, factor=2.0)
    update = tf.function(scale.update, jit_compile=True)
    scales = []
    for is_finite in (True, True, False, True, True, True, True, True, True, False):
        update(tf.constant(is_finite))
        scales.append(scale_of(scale))
    assert scales == [8, 8, 4, 4, 4, 8, 8, 8, 16, 8]


def test_scale_stays_between_one_and_infinity():
    scale = loss_scale.DynamicLossScale(initial=1.0, growth_interval=1, factor=2.0**100)
    scale.update(tf.constant(False))
    assert scale_of(scale) == 1
    for _ in range(3):
        scale.update(tf.constant(True))
    assert scale_of(scale) == 2.0**100


def test_variables_contain_the_state_for_the_checkpoint():
    scale = loss_scale.DynamicLossScale()
    assert list(scale.variables) == ["loss_scale/scale", "loss_scale/num_finite"]
    assert scale_of(scale) == 2**15


def test_replicas_update_their_scales_equally():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        scale = loss_scale.DynamicLossScale(initial=8.0)

    @tf.function
    def run():
        strategy.run(scale.update, args=(tf.constant(False),))

    run()
    copies = strategy.experimental_local_results(scale.variables["loss_scale/scale"])
    assert [float(copy) for copy in copies] == [4, 4]


@pytest.mark.parametrize(
    "arguments", [dict(initial=0.5), dict(growth_interval=0), dict(factor=1.0)]
)
def test_settings_out_of_range_are_rejected(arguments):
    with pytest.raises(ValueError, match="DynamicLossScale needs"):
        loss_scale.DynamicLossScale(**arguments)
