import tensorflow as tf

import linear
from retinanet_tpu import replicas
from retinanet_tpu.xla import lower


def _text(fn, specs, num_replicas):
    strategy = lower.AheadOfTimeStrategy(num_replicas)
    flat = tf.nest.flatten(specs)

    @tf.function(jit_compile=True)
    def program(*tensors):
        with strategy.scope(), strategy.replica_context():
            return fn(*tf.nest.pack_sequence_as(specs, list(tensors)))

    return program.experimental_get_compiler_ir(*flat)(stage="hlo")


def test_a_mean_over_replicas_is_a_collective_of_all_of_them():
    text = _text(replicas.mean_over_replicas, [tf.TensorSpec([3])], 4)
    assert "all-reduce" in text and "{0,1,2,3}" in text
    assert "constant(4)" in text or "constant(0.25)" in text


def test_the_gradient_of_a_mean_is_a_mean():
    def fn(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(tf.square(replicas.mean_over_replicas(x)))
        return tape.gradient(y, x)

    assert _text(fn, [tf.TensorSpec([3])], 2).count("all-reduce(") == 2


def test_the_step_that_replicas_run_is_lowered_whole():
    hlo = linear.lowered(8)
    assert isinstance(hlo, bytes) and b"all-reduce" in hlo


def test_code_sees_as_many_replicas_as_the_program_is_for():
    strategy = lower.AheadOfTimeStrategy(32)
    with strategy.scope():
        assert replicas.num_replicas() == 32
