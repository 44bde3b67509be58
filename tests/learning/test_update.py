import types

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import replicas
from retinanet_tpu.estimator import spec, strategy, train_loop, training
from retinanet_tpu.learning import loss_scale, optimizers, update

RATE = 0.5


def make_network():
    """Returns two weights and a statistic, as a network with batch norm has them."""
    with tf.name_scope("head"):
        kernel = replicas.make_variable([1.0, 2.0], name="kernel", trainable=True)
        bias = replicas.make_variable(3.0, name="bias", trainable=True)
        mean = replicas.make_variable([5.0], name="moving_mean")
    return types.SimpleNamespace(
        variables=(kernel, bias, mean), trainable_variables=(kernel, bias)
    )


def make_update(network, **settings):
    sgd = optimizers.SGD(lambda step: tf.constant(RATE), momentum=0.9)
    return update.WeightUpdate(network, optimizer=sgd, **settings)


def values(variables):
    return [np.array(variable.numpy()) for variable in variables]


def test_the_checkpoint_names_say_what_a_variable_is():
    network = make_network()
    scale = loss_scale.DynamicLossScale()
    made = make_update(network, averaging_decay=0.9, loss_scale=scale)
    assert list(made.variables) == [
        "slots/head/kernel/momentum",
        "slots/head/bias/momentum",
        "averages/head/kernel",
        "averages/head/bias",
        "averages/head/moving_mean",
        "loss_scale/scale",
        "loss_scale/num_finite",
    ]


@pytest.mark.parametrize("averaging_decay", [None, 0])
def test_without_a_decay_there_are_no_averages(averaging_decay):
    made = make_update(make_network(), averaging_decay=averaging_decay)
    assert not [name for name in made.variables if name.startswith("averages/")]


@pytest.mark.parametrize(("max_norm", "factor"), [(None, 1), (20.0, 1), (6.5, 0.5)])
def test_gradients_are_clipped_by_their_norm_which_is_told_unclipped(max_norm, factor):
    network = make_network()
    made = make_update(network, max_gradient_norm=max_norm)
    gradients = [tf.constant([3.0, 4.0]), tf.constant(12.0)]
    scalars = made.apply(gradients, tf.constant(0, tf.int64))
    assert scalars["gradient-norm"] == 13
    assert scalars["learning-rate"] == RATE
    kernel, bias, _ = values(network.variables)
    np.testing.assert_allclose(kernel, [1 - 1.5 * factor, 2 - 2 * factor], rtol=1e-6)
    np.testing.assert_allclose(bias, 3 - 6 * factor, rtol=1e-6)


def test_clipping_comes_after_the_reduction_over_replicas():
    # Clipped one by one, (6, 0) and (0, 8) would become (1, 0) and (0, 1).
    two = strategy.make_strategy("cpu", num_devices=2)
    with two.scope():
        kernel = replicas.make_variable([0.0, 0.0], name="kernel", trainable=True)
        network = types.SimpleNamespace(
            variables=(kernel,), trainable_variables=(kernel,)
        )
        state = training.TrainState(
            network, make_update(network, max_gradient_norm=1.0)
        )

    def model_fn(features, network):
        loss = tf.reduce_sum(features * network.trainable_variables[0])
        return spec.TPUEstimatorSpec(spec.ModeKeys.TRAIN, loss=loss)

    rows = tf.data.Dataset.from_tensors([[6.0, 0.0], [0.0, 8.0]]).unbatch().repeat()
    batches = two.distribute_datasets_from_function(lambda _: rows)
    step_fn = training.make_step_fn(state, model_fn, dict)
    loop = train_loop.TrainLoop(two, step_fn, jit_compile=False)
    result = loop(iter(batches), 0, 1)
    assert result.scalars["gradient-norm"] == 5
    for copy in two.experimental_local_results(kernel):
        np.testing.assert_allclose(copy, [-RATE * 0.6, -RATE * 0.8], rtol=1e-6)


def test_averages_follow_all_variables_after_the_step():
    network = make_network()
    made = make_update(network, averaging_decay=0.3)
    averages = [made.variables[f"averages/head/{n}"] for n in ("kernel", "moving_mean")]
    kernel, _, mean = network.variables
    expected = [np.array([1.0, 2.0]), np.array([5.0])]
    for step in range(5):
        mean.assign([5.0 - step])  # What the forward pass of this step left.
        made.apply([tf.ones([2]), tf.constant(1.0)], tf.constant(step, tf.int64))
        decay = min(0.3, (1 + step) / (10 + step))
        for i, variable in enumerate((kernel, mean)):
            expected[i] = decay * expected[i] + (1 - decay) * variable.numpy()
        for average, value in zip(averages, expected, strict=True):
            np.testing.assert_allclose(average, value, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_an_overflow_moves_nothing_but_the_scale(bad):
    network = make_network()
    made = make_update(
        network,
        averaging_decay=0.5,
        max_gradient_norm=1.0,
        loss_scale=loss_scale.DynamicLossScale(initial=1024.0),
    )
    steady = [v for name, v in made.variables.items() if "loss_scale" not in name]
    # Moves slots and averages, so that they have something to lose.
    made.apply([tf.ones([2]), tf.constant(1.0)], tf.constant(0, tf.int64))
    before = values([*network.variables, *steady])

    step = tf.function(made.apply, jit_compile=True)
    gradients = [tf.constant([1.0, bad]), tf.constant(1.0)]
    scalars = step(gradients, tf.constant(1, tf.int64))
    assert scalars["gradient-norm"] == 0
    for old, new in zip(before, values([*network.variables, *steady]), strict=True):
        np.testing.assert_array_equal(new, old)
    assert made.variables["loss_scale/scale"].numpy() == 512


def test_the_loss_scale_leaves_no_trace_in_the_update():
    moved = []
    for scale in (None, loss_scale.DynamicLossScale(initial=1024.0)):
        network = make_network()
        made = make_update(network, max_gradient_norm=2.0, loss_scale=scale)
        kernel, bias = network.trainable_variables
        with tf.GradientTape() as tape:
            loss = made.scale(tf.reduce_sum(kernel**2) + bias**2)
        gradients = tape.gradient(loss, [kernel, bias])
        scalars = made.apply(gradients, tf.constant(0, tf.int64))
        moved.append([*values([kernel, bias]), scalars["gradient-norm"].numpy()])
    for plain, scaled in zip(*moved, strict=True):
        np.testing.assert_allclose(scaled, plain, rtol=1e-6)
