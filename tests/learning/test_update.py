import types

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import replicas
from retinanet_tpu.estimator import spec, train_step
from retinanet_tpu.estimator.cluster import strategy
from retinanet_tpu.estimator.engines import distribute
from retinanet_tpu.learning import loss_scale, optimizers, update
from retinanet_tpu.model import norms

RATE = 0.5


def make_network():
    """Returns a network of two weights and a statistic."""
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


def test_checkpoint_names_contain_the_kind_and_path_of_a_variable():
    network = make_network()
    scale = loss_scale.DynamicLossScale()
    weight_update = make_update(network, averaging_decay=0.9, loss_scale=scale)
    assert list(weight_update.variables) == [
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
    weight_update = make_update(make_network(), averaging_decay=averaging_decay)
    assert not [
        name for name in weight_update.variables if name.startswith("averages/")
    ]


@pytest.mark.parametrize(("max_norm", "factor"), [(None, 1), (20.0, 1), (6.5, 0.5)])
def test_gradients_are_clipped_and_the_unclipped_norm_is_returned(max_norm, factor):
    network = make_network()
    weight_update = make_update(network, max_gradient_norm=max_norm)
    gradients = [tf.constant([3.0, 4.0]), tf.constant(12.0)]
    scalars = weight_update.apply(gradients, tf.constant(0, tf.int64))
    assert scalars["gradient-norm"] == 13
    assert scalars["learning-rate"] == RATE
    kernel, bias, _ = values(network.variables)
    np.testing.assert_allclose(kernel, [1 - 1.5 * factor, 2 - 2 * factor], rtol=1e-6)
    np.testing.assert_allclose(bias, 3 - 6 * factor, rtol=1e-6)


def test_gradients_are_clipped_after_the_reduction_over_replicas():
    # Before the reduction, (6, 0) and (0, 8) would become (1, 0) and (0, 1).
    two = strategy.make_strategy("cpu", num_devices=2)
    with two.scope():
        kernel = replicas.make_variable([0.0, 0.0], name="kernel", trainable=True)
        network = types.SimpleNamespace(
            variables=(kernel,), trainable_variables=(kernel,)
        )
        state = train_step.TrainState(
            network, make_update(network, max_gradient_norm=1.0)
        )

    def model_fn(features, network):
        loss = tf.reduce_sum(features * network.trainable_variables[0])
        return spec.TPUEstimatorSpec(spec.ModeKeys.TRAIN, loss=loss)

    rows = tf.data.Dataset.from_tensors([[6.0, 0.0], [0.0, 8.0]]).unbatch().repeat()
    batches = two.distribute_datasets_from_function(lambda _: rows)
    step_fn = train_step.make_step_fn(state, model_fn, dict)
    loop = distribute.DistributeLoop(two, step_fn, jit_compile=False)
    result = loop(iter(batches), 0, 1)
    assert result.scalars["gradient-norm"] == 5
    for copy in two.experimental_local_results(kernel):
        np.testing.assert_allclose(copy, [-RATE * 0.6, -RATE * 0.8], rtol=1e-6)


def test_averages_follow_all_variables_after_the_step():
    network = make_network()
    weight_update = make_update(network, averaging_decay=0.3)
    averages = [
        weight_update.variables[f"averages/head/{n}"] for n in ("kernel", "moving_mean")
    ]
    kernel, _, mean = network.variables
    expected = [np.array([1.0, 2.0]), np.array([5.0])]
    for step in range(5):
        mean.assign([5.0 - step])  # As the forward pass would.
        weight_update.apply(
            [tf.ones([2]), tf.constant(1.0)], tf.constant(step, tf.int64)
        )
        decay = min(0.3, (1 + step) / (10 + step))
        for i, variable in enumerate((kernel, mean)):
            expected[i] = decay * expected[i] + (1 - decay) * variable.numpy()
        for average, value in zip(averages, expected, strict=True):
            np.testing.assert_allclose(average, value, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_an_overflow_changes_only_the_loss_scale(bad):
    network = make_network()
    weight_update = make_update(
        network,
        averaging_decay=0.5,
        max_gradient_norm=1.0,
        loss_scale=loss_scale.DynamicLossScale(initial=1024.0),
    )
    steady = [
        v for name, v in weight_update.variables.items() if "loss_scale" not in name
    ]
    # After one update slots and averages differ from their first values.
    weight_update.apply([tf.ones([2]), tf.constant(1.0)], tf.constant(0, tf.int64))
    before = values([*network.variables, *steady])

    step = tf.function(weight_update.apply, jit_compile=True)
    gradients = [tf.constant([1.0, bad]), tf.constant(1.0)]
    scalars = step(gradients, tf.constant(1, tf.int64))
    assert scalars["gradient-norm"] == 0
    for old, new in zip(before, values([*network.variables, *steady]), strict=True):
        np.testing.assert_array_equal(new, old)
    assert weight_update.variables["loss_scale/scale"].numpy() == 512


def test_the_loss_scale_does_not_change_the_update():
    moved = []
    for scale in (None, loss_scale.DynamicLossScale(initial=1024.0)):
        network = make_network()
        weight_update = make_update(network, max_gradient_norm=2.0, loss_scale=scale)
        kernel, bias = network.trainable_variables
        with tf.GradientTape() as tape:
            loss = weight_update.scale(tf.reduce_sum(kernel**2) + bias**2)
        gradients = tape.gradient(loss, [kernel, bias])
        scalars = weight_update.apply(gradients, tf.constant(0, tf.int64))
        moved.append([*values([kernel, bias]), scalars["gradient-norm"].numpy()])
    for plain, scaled in zip(*moved, strict=True):
        np.testing.assert_allclose(scaled, plain, rtol=1e-6)


class Normalized(tf.Module):
    """A float16 matrix followed by batch normalization."""

    def __init__(self):
        super().__init__("network")
        with tf.name_scope("layer"):
            self.kernel = replicas.make_variable(
                tf.ones([2, 2]), name="kernel", trainable=True
            )
            self.norm = norms.BatchNorm(2, name="norm", momentum=0.5)

    def __call__(self, x):
        product = tf.cast(x, tf.float16) @ tf.cast(self.kernel, tf.float16)
        return self.norm(product, is_training=True)


def half_precision_step(num_replicas):
    """Returns the training step of each replica, and the state that it changes."""
    mirrored = strategy.make_strategy("cpu", num_devices=num_replicas)
    with mirrored.scope():
        network = Normalized()
        scale = loss_scale.DynamicLossScale(initial=4.0)
        settings = {"averaging_decay": 0.5, "loss_scale": scale}
        state = train_step.TrainState(network, make_update(network, **settings))

    def model_fn(features, network):
        loss = tf.reduce_sum(tf.cast(network(features), tf.float32) ** 2)
        return spec.TPUEstimatorSpec(spec.ModeKeys.TRAIN, loss=loss)

    step_fn = train_step.make_step_fn(state, model_fn, dict)
    # Compiled, as on GPUs. Several logical CPUs do not support that.
    step_fn = tf.function(step_fn, jit_compile=num_replicas == 1 or None)

    @tf.function
    def run(rows):
        batch = mirrored.experimental_distribute_values_from_function(
            lambda context: rows[context.replica_id_in_sync_group]
        )
        mirrored.run(step_fn, args=(batch, tf.constant(0, tf.int64)))

    return run, state


def copies(state):
    """Returns the values of all replicas by name, without the loss scale's."""
    return {
        name: [copy.numpy() for copy in getattr(variable, "values", [variable])]
        for name, variable in state.variables().items()
        if "loss_scale" not in name
    }


@pytest.mark.long
@pytest.mark.parametrize("num_replicas", [1, 2])
@pytest.mark.parametrize("bad", [60000.0, np.nan])
def test_an_overflow_on_one_replica_does_not_change_the_statistics(num_replicas, bad):
    run, state = half_precision_step(num_replicas)
    rows = np.arange(4 * num_replicas, dtype=np.float32).reshape(num_replicas, 2, 2)
    run(tf.constant(rows))
    before, mean = copies(state), "weights/layer/norm/moving_mean"
    assert before[mean][0].any()
    rows[-1] = bad  # float16 can hold 60,000, but not the sum of two of them.
    run(tf.constant(rows))
    after = copies(state)
    for name, values_before in before.items():
        np.testing.assert_array_equal(after[name], values_before, err_msg=name)
    rows[-1] = 3
    run(tf.constant(rows))
    updated = copies(state)[mean][0]
    assert np.isfinite(updated).all() and (updated != before[mean][0]).any()
