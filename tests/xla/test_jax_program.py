import os
import re

import numpy as np
import pytest
import tensorflow as tf

import linear
from retinanet_tpu import replicas
from retinanet_tpu.data import transforms
from retinanet_tpu.estimator import train_step
from retinanet_tpu.xla import lower

jax = pytest.importorskip("jax")
jax_program = pytest.importorskip("retinanet_tpu.xla.jax_program")
pjrt = pytest.importorskip("retinanet_tpu.xla.pjrt")


def lowered(fn, specs, num_replicas=1):
    """Returns the program of TensorFlow, that for jax, and its devices."""
    program = lower.lower(fn, specs, lower.AheadOfTimeStrategy(num_replicas))
    devices = pjrt.connect("cpu", num_replicas)
    return program, jax_program.lower_for(program, devices), devices


def run(fn, shares, num_replicas=1):
    """Runs a function without variables on all devices; returns whole results."""
    specs = [tf.TensorSpec(np.shape(x), np.asarray(x).dtype) for x in shares[0]]
    program, stage, devices = lowered(fn, specs, num_replicas)
    constants = [program.captures[i] for i in stage.constant]
    results, _ = stage.compile()(
        devices.shard(shares), [], devices.replicate(constants)
    )
    return devices.fetch_joined(results)


def fingerprint(num_replicas=1, **settings):
    """Returns the fingerprint of the linear model's training step."""
    strategy = lower.AheadOfTimeStrategy(num_replicas)
    batch_size = settings.pop("batch_size", 4)
    with strategy.scope():
        network = linear.Linear()
        state = train_step.TrainState(network, linear.Descent(network, **settings))
    step_fn = train_step.make_step_fn(state, linear.model_fn, dict)
    batch = (tf.TensorSpec([batch_size, 3]), tf.TensorSpec([batch_size, 1]))
    specs = [batch, tf.TensorSpec([], tf.int64)]
    program = lower.lower(train_step.ReplicaStep(step_fn).run, specs, strategy)
    devices = pjrt.connect("cpu", num_replicas)
    return jax_program.lower_for(program, devices).fingerprint


def test_a_mean_over_replicas_is_that_of_all_devices():
    shares = [[np.float32([i, 10 * i])] for i in range(8)]
    (got,) = run(replicas.cross_replica_mean, shares, 8)
    np.testing.assert_allclose(got, [3.5, 35] * 8)


def test_results_keep_their_dtypes_and_order():
    def fn(x, y):
        return {"b": x + 1, "a": (tf.cast(y, tf.int64) + 2**40, x > 1)}

    shares = [[np.float32([i, 2]), np.int32([i])] for i in range(2)]
    number, flag, b = run(fn, shares, 2)  # tf.nest sorts by key.
    np.testing.assert_array_equal(number, [2**40, 2**40 + 1])
    assert number.dtype == np.int64 and flag.dtype == bool and b.dtype == np.float32
    np.testing.assert_array_equal(flag, [False, True, False, True])
    np.testing.assert_array_equal(b, [1, 3, 2, 3])


def test_constants_that_a_function_captures_are_parameters():
    table = tf.constant(np.arange(10.0, dtype=np.float32))
    (got,) = run(lambda i: tf.gather(table, i), [[np.int32([3, 5])]])
    np.testing.assert_array_equal(got, [3, 5])


def test_control_flow_and_random_numbers_are_those_of_tensorflow():
    def fn(x, seed):
        x = tf.while_loop(lambda i, _: i < 5, lambda i, y: (i + 1, tf.sin(y)), (0, x))
        noise = tf.random.stateless_uniform([4], seed)
        return x[1], noise, tf.cond(noise[0] > 0.5, lambda: 1.0, lambda: 2.0)

    share = [np.float32([0.5, 1.5]), np.int32([1, 2])]
    expected = tf.function(fn, jit_compile=True)(*share)
    for got, value in zip(run(fn, [share]), expected, strict=True):
        np.testing.assert_allclose(got, value, rtol=1e-6)


@pytest.mark.parametrize("size", [(48, 64), (300, 520)])
def test_an_image_of_a_known_size_is_letterboxed_on_a_device(size):
    pixels = np.random.default_rng(0).integers(0, 256, [1, *size, 3], np.uint8)

    def letterboxed(images):
        return transforms.letterbox(images, (64, 64))[0]

    (got,) = run(letterboxed, [[pixels]])
    # XLA may round a half differently: a step of one of 255 colors.
    np.testing.assert_allclose(got, letterboxed(pixels), atol=1)


def test_assigned_variables_are_updated_and_the_others_constant():
    used, changed, idle = (tf.Variable(np.float32([v])) for v in (2, 3, 4))

    def fn(x):
        y = x * used + idle
        changed.assign_add(y)
        return y

    program, stage, devices = lowered(fn, [tf.TensorSpec([1])], 2)
    assert [program.captures[i] is changed for i in stage.updated] == [True]
    assert sorted([*stage.updated, *stage.constant]) == [0, 1, 2]
    executable = stage.compile()
    values = [np.array(v.numpy()) for v in program.captures]
    updated = devices.replicate([values[i] for i in stage.updated])
    constant = devices.replicate([values[i] for i in stage.constant])
    for step in (1, 2, 3):
        arguments = devices.shard([[np.float32([5])]] * 2)
        before = updated
        results, updated = executable(arguments, updated, constant)
        np.testing.assert_array_equal(devices.fetch(results)[0], [14])
        np.testing.assert_array_equal(devices.fetch(updated)[0], [3 + 14 * step])
        # Its memory is reused.
        assert before[0].is_deleted() and not constant[0].is_deleted()
    assert changed.numpy() == 3  # The variable on the host is unchanged.


def test_arguments_of_another_shape_are_an_error_instead_of_a_crash():
    _, stage, devices = lowered(lambda x: x + 1, [tf.TensorSpec([2])])
    executable = stage.compile()
    for wrong in (np.zeros([3], np.float32), np.zeros([2], np.float64)):
        with pytest.raises((TypeError, ValueError)):
            executable(devices.shard([[wrong]]), [], [])


def test_the_compiler_reports_memory_and_operations():
    def fn(x):
        return x @ x

    _, stage, _ = lowered(fn, [tf.TensorSpec([64, 64])])
    executable = stage.compile()
    assert executable.cost()["flops"] == pytest.approx(2 * 64**3, rel=0.01)
    assert executable.memory().argument_size_in_bytes == 4 * 64**2
    assert "HloModule" in executable.text()
    assert re.search(r'op_name="(?!jit\().*(MatMul|matmul)', stage.hlo_text())


def test_a_fingerprint_is_the_same_for_each_trace_of_a_program():
    first = fingerprint()
    assert re.fullmatch("[0-9a-f]{16}", first)
    assert fingerprint() == first
    assert fingerprint(2) == fingerprint(2) != first


def test_functions_that_a_program_calls_have_names_without_counters_of_the_process():
    @tf.function
    def inner(x):
        return tf.while_loop(lambda y: tf.reduce_sum(y) < 9, lambda y: [y + 1], [x])[0]

    @tf.function
    def outer(x):
        return inner(x) * inner(2 * x)

    def text():
        _, stage, _ = lowered(lambda x: outer(x) + inner(x), [tf.TensorSpec([4])])
        return stage.fingerprint, set(re.findall(r"@\w+", stage.stage.as_text()))

    inner.get_concrete_function(tf.TensorSpec([3]))  # Counts.
    first, names = text()
    assert {"@function_1", "@function_2"} <= names
    assert not any("inner" in name or "outer" in name for name in names)
    assert text() == (first, names)
    (got,) = run(outer, [[np.float32([1, 2, 3, 4])]])
    np.testing.assert_array_equal(got, [1, 2, 3, 4] * np.float32([2, 4, 6, 8]))


@pytest.mark.parametrize(
    "settings", [{"num_replicas": 4}, {"rate": 0.2}, {"batch_size": 8}], ids=str
)
def test_a_fingerprint_differs_if_the_program_does(settings):
    assert fingerprint(**settings) != fingerprint()


def test_the_training_log_has_the_fingerprint_of_the_lowered_step(tmp_path, caplog):
    caplog.set_level("INFO", logger="absl")
    for num_replicas in (1, 2):
        caplog.clear()
        runner = linear.make_estimator(
            tmp_path / str(num_replicas), num_replicas=num_replicas, engine="pjrt"
        )
        runner.train(linear.train_input_fn, 10)
        batch_size = 8 // num_replicas
        expected = fingerprint(num_replicas, batch_size=batch_size)
        line = rf"PJRT \| train \| {num_replicas} x cpu \| program {expected}\n"
        assert len(re.findall(line, caplog.text)) == 1


def test_a_compiled_program_is_found_again(tmp_path):
    try:
        pjrt.connect("cpu", 2, cache_dir=str(tmp_path))
        jax.experimental.compilation_cache.compilation_cache.reset_cache()

        def compile_it(scale):
            def fn(x):
                return replicas.cross_replica_mean(scale * x)

            lowered(fn, [tf.TensorSpec([3])], 2)[1].compile()
            return sorted(n for n in os.listdir(tmp_path) if n.endswith("-cache"))

        first = compile_it(2.0)
        assert len(first) == 1
        assert compile_it(2.0) == first
        assert len(compile_it(3.0)) == 2
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
        jax.experimental.compilation_cache.compilation_cache.reset_cache()
