from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import errors, replicas
from retinanet_tpu.learning import optimizers, schedules

NAMES = "head/kernel", "head/bias"
SHAPES = (3, 4), (4,)
NUM_STEPS = 20
RATE = partial(
    schedules.piecewise, values=(0.1, 0.02), boundaries=(10,), warmup_steps=5
)


def make_variables():
    rng = np.random.default_rng(0)
    return [
        replicas.make_variable(
            tf.constant(rng.normal(size=shape), tf.float32), name=name, trainable=True
        )
        for name, shape in zip(NAMES, SHAPES, strict=True)
    ]


def gradients_of(step):
    rng = np.random.default_rng(step + 1)
    return [np.float32(rng.normal(size=shape)) for shape in SHAPES]


class KerasRate(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return RATE(tf.cast(step, tf.int64))

    def get_config(self):
        return {}


def keras_result(optimizer):
    variables = [
        keras.Variable(v.numpy(), name=v.name.split("/")[-1][:-2])
        for v in make_variables()
    ]
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.build(variables)
    for step in range(NUM_STEPS):
        gradients = [tf.constant(g) for g in gradients_of(step)]
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
    return [variable.numpy() for variable in variables]


def our_result(optimizer):
    variables = make_variables()
    slots = optimizer.create_slots(variables)

    @tf.function(jit_compile=True)
    def update(gradients, step):
        optimizer.apply(gradients, variables, slots, step)

    for step in range(NUM_STEPS):
        gradients = [tf.constant(g) for g in gradients_of(step)]
        update(gradients, tf.constant(step, tf.int64))
    return [variable.numpy() for variable in variables]


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_agrees_with_keras(nesterov):
    ours = our_result(optimizers.SGD(RATE, nesterov=nesterov))
    theirs = keras_result(keras.optimizers.SGD(KerasRate(), 0.9, nesterov=nesterov))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_adamw_agrees_with_keras():
    ours = our_result(optimizers.AdamW(RATE, weight_decay=0.1))
    theirs = keras_result(keras.optimizers.AdamW(KerasRate(), weight_decay=0.1))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("decayed", "num_decayed"), [("kernel$", 1), ("bias|kernel", 2), ("^$", 0)]
)
def test_weight_decay_is_selected_by_path(decayed, num_decayed):
    optimizer = optimizers.AdamW(
        partial(schedules.constant, base=0.5), weight_decay=0.1, decayed=decayed
    )
    variables = make_variables()
    before = [variable.numpy() for variable in variables]
    slots = optimizer.create_slots(variables)
    optimizer.apply([tf.zeros(s) for s in SHAPES], variables, slots, tf.constant(0))
    for i, variable in enumerate(variables):
        factor = 0.95 if i < num_decayed else 1.0
        np.testing.assert_allclose(variable, before[i] * factor, rtol=1e-6)


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda rate, **more: optimizers.SGD(rate, **more),
        lambda rate, **more: optimizers.AdamW(rate, weight_decay=0.1, **more),
    ],
)
def test_a_rate_factor_is_a_lower_rate_of_the_paths_with_a_pattern(make_optimizer):
    lower = our_result(make_optimizer(lambda step: 0.25 * RATE(step)))
    whole = our_result(make_optimizer(RATE))
    factors = {"^head/k": 0.25, "kernel": 7.0}  # The first one that is found applies.
    kernel, bias = our_result(make_optimizer(RATE, rate_factors=factors))
    np.testing.assert_allclose(kernel, lower[0], rtol=1e-5)
    np.testing.assert_array_equal(bias, whole[1])


def test_a_decay_of_the_rate_by_depth_is_a_list_of_patterns():
    factors = {"^backbone/(stem|stage2)/": 0.125, "^backbone/stage3/": 0.25}
    factors |= {"^backbone/": 0.5}
    paths = ["backbone/stem/conv/kernel", "backbone/stage3/block1/norm1/gamma"]
    paths += ["backbone/stage5/block2/conv1/kernel", "fpn/lateral3/kernel"]
    got = [optimizers.rate_factor(path, factors) for path in paths]
    assert got == [0.125, 0.25, 0.5, 1.0]


def test_a_rate_factor_that_applies_to_nothing_is_an_error():
    optimizer = optimizers.AdamW(RATE, rate_factors={"backbone": 0.1})
    with pytest.raises(errors.UserError, match=r"'backbone'.*such as head/kernel"):
        optimizer.create_slots(make_variables())


def test_a_rate_factor_of_an_invalid_pattern_is_an_error():
    optimizer = optimizers.SGD(RATE, rate_factors={"*kernel": 0.1})
    with pytest.raises(errors.UserError, match=r"'\*kernel', which is no regular"):
        optimizer.create_slots(make_variables())


def test_slots_are_named_by_the_path_of_their_variable():
    slots = optimizers.SGD(RATE).create_slots(make_variables())
    assert list(slots) == ["head/kernel/momentum", "head/bias/momentum"]
    assert [slot.shape for slot in slots.values()] == list(SHAPES)
    assert not any(slot.trainable for slot in slots.values())
    assert len(optimizers.AdamW(RATE).create_slots(make_variables())) == 4


@pytest.mark.parametrize("make_optimizer", [optimizers.SGD, optimizers.AdamW])
def test_a_traced_update_lists_the_variables_that_it_assigns(make_optimizer):
    optimizer, variables = make_optimizer(RATE), make_variables()
    slots = optimizer.create_slots(variables)

    @tf.function(autograph=False)
    def update():
        gradients = [tf.constant(g) for g in gradients_of(0)]
        optimizer.apply(gradients, variables, slots, tf.constant(0))

    listed = {v.ref() for v in update.get_concrete_function().variables}
    assert listed == {v.ref() for v in [*variables, *slots.values()]}


def test_two_variables_of_the_same_name_are_rejected():
    with pytest.raises(ValueError, match=r"used twice: \['head/bias', 'head/kernel'\]"):
        optimizers.SGD(RATE).create_slots(make_variables() + make_variables())


def test_half_precision_gradients_update_weights():
    optimizer = optimizers.SGD(partial(schedules.constant, base=1.0))
    variables = make_variables()
    before = variables[1].numpy()
    slots = optimizer.create_slots(variables)
    gradients = [tf.fill(shape, tf.constant(0.5, tf.bfloat16)) for shape in SHAPES]
    optimizer.apply(gradients, variables, slots, tf.constant(0))
    np.testing.assert_allclose(variables[1], before - 0.5, rtol=1e-6)


@pytest.mark.parametrize("make_optimizer", [optimizers.SGD, optimizers.AdamW])
def test_replicas_with_equal_gradients_stay_equal(make_optimizer):
    # Collectives, the default, number exchanges per process: two strategies clash.
    exchange = tf.distribute.ReductionToOneDevice()
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], exchange)
    optimizer = make_optimizer(RATE)
    with strategy.scope():
        variables = make_variables()
        slots = optimizer.create_slots(variables)
    assert next(iter(slots)) == "head/kernel/momentum"

    @tf.function
    def update(halves, step):
        def replica_fn(halves):
            context = tf.distribute.get_replica_context()
            gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, halves)
            optimizer.apply(gradients, variables, slots, step)

        strategy.run(replica_fn, args=(halves,))

    for step in range(NUM_STEPS):
        part = [0.25, 0.75]
        halves = strategy.experimental_distribute_values_from_function(
            lambda context, step=step, part=part: [
                tf.constant(g * part[context.replica_id_in_sync_group])
                for g in gradients_of(step)
            ]
        )
        update(halves, tf.constant(step, tf.int64))

    for variable, expected in zip(
        variables, our_result(make_optimizer(RATE)), strict=True
    ):
        copies = [v.numpy() for v in strategy.experimental_local_results(variable)]
        np.testing.assert_array_equal(*copies)
        np.testing.assert_allclose(copies[0], expected, rtol=1e-4, atol=1e-5)


def test_gradients_above_the_norm_are_scaled_and_others_are_kept():
    gradients = [tf.constant([3.0, 0]), tf.constant([[4.0]])]
    clipped, norm = optimizers.clip_by_global_norm(gradients, 1.0)
    assert norm.numpy() == 5
    np.testing.assert_allclose(clipped[0], [0.6, 0], rtol=1e-6)
    np.testing.assert_allclose(clipped[1], [[0.8]], rtol=1e-6)
    for limit in (10.0, None):
        same, norm = optimizers.clip_by_global_norm(gradients, limit)
        assert norm.numpy() == 5
        np.testing.assert_array_equal(same[0], gradients[0])
        np.testing.assert_array_equal(same[1], gradients[1])


def test_norm_of_half_precision_gradients_does_not_overflow():
    gradients = [tf.fill([4], tf.constant(300.0, tf.float16))]
    clipped, norm = optimizers.clip_by_global_norm(gradients, 6.0)
    assert norm.numpy() == 600
    assert clipped[0].dtype == tf.float16
    np.testing.assert_allclose(clipped[0], [3] * 4, rtol=1e-3)


def test_norm_of_zero_or_less_is_rejected():
    with pytest.raises(ValueError, match="above 0"):
        optimizers.clip_by_global_norm([tf.zeros(1)], 0.0)
