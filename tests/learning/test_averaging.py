import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import replicas
from retinanet_tpu.learning import averaging


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.1), (8, 0.5), (90, 0.91), (10**6, 0.99)]
)
def test_decay_rises_to_its_limit(step, expected):
    np.testing.assert_allclose(averaging.decay_at(step, 0.99), expected, rtol=1e-6)


def make_variables():
    return [
        replicas.make_variable(
            tf.constant([1.0, 2]), name="head/kernel", trainable=True
        ),
        replicas.make_variable(tf.constant(5.0), name="bn/moving_mean"),
    ]


def test_averages_start_as_copies_named_by_path():
    averages = averaging.create_averages(make_variables())
    assert list(averages) == ["head/kernel", "bn/moving_mean"]
    np.testing.assert_array_equal(averages["head/kernel"], [1, 2])
    assert not any(average.trainable for average in averages.values())


def test_averages_follow_the_recurrence():
    variables = make_variables()
    averages = list(averaging.create_averages(variables).values())
    rng = np.random.default_rng(0)
    expected = [variable.numpy().astype(np.float64) for variable in variables]

    @tf.function(jit_compile=True)
    def update(step):
        averaging.update(averages, variables, step, decay=0.5)

    for step in range(20):
        decay = min(0.5, (1 + step) / (10 + step))
        for i, variable in enumerate(variables):
            variable.assign(tf.constant(rng.normal(size=variable.shape), tf.float32))
            expected[i] = decay * expected[i] + (1 - decay) * variable.numpy()
        update(tf.constant(step, tf.int64))
    for average, value in zip(averages, expected, strict=True):
        np.testing.assert_allclose(average, value, rtol=1e-5, atol=1e-6)


def test_replicas_keep_equal_averages():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        variables = make_variables()
        averages = list(averaging.create_averages(variables).values())

    @tf.function
    def run():
        def replica_fn():
            variables[1].assign_add(10.0)
            averaging.update(averages, variables, tf.constant(8), decay=0.99)

        strategy.run(replica_fn)

    run()
    copies = strategy.experimental_local_results(averages[1])
    assert [float(copy) for copy in copies] == [10, 10]
