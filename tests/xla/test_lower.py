import inspect

import pytest
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
    text = _text(replicas.cross_replica_mean, [tf.TensorSpec([3])], 4)
    assert "all-reduce" in text and "{0,1,2,3}" in text
    assert "constant(4)" in text or "constant(0.25)" in text


def test_the_gradient_of_a_mean_is_a_mean():
    def fn(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(tf.square(replicas.cross_replica_mean(x)))
        return tape.gradient(y, x)

    assert _text(fn, [tf.TensorSpec([3])], 2).count("all-reduce(") == 2


def test_the_whole_step_of_a_replica_is_lowered():
    hlo = linear.lowered(8).hlo
    assert isinstance(hlo, bytes) and b"all-reduce" in hlo


def test_traced_code_reads_the_number_of_replicas_of_the_program():
    strategy = lower.AheadOfTimeStrategy(32)
    with strategy.scope():
        assert replicas.num_replicas() == 32


def _lines(fn):
    """Returns the places of a function's lines, as errors have them."""
    lines, first = inspect.getsourcelines(fn)
    return [f"{__file__}:{first + i}" for i in range(len(lines))]


def _nms(boxes, scores):
    return tf.image.combined_non_max_suppression(boxes, scores, 10, 10)[0]


def _text_in_a_loop(x):
    def body(i, y):
        return i + 1, tf.strings.to_number(tf.strings.as_string(y))

    return tf.while_loop(lambda i, y: i < 3, body, (0, x))[1]


def _shape_from_data(x):
    return tf.reshape(x, [tf.cast(x[0], tf.int32), -1])


@pytest.mark.parametrize(
    "fn, shapes, words",
    [
        (
            _nms,
            ([1, 10, 1, 4], [1, 10, 2]),
            "CombinedNonMaxSuppression has no kernel for XLA; made at",
        ),
        (_text_in_a_loop, ([],), "AsString has no kernel for XLA; made at"),
        (_shape_from_data, ([8],), "must be a compile-time constant"),
    ],
    ids=["an op for hosts", "in a loop", "a shape that data decide"],
)
def test_an_unsupported_operation_is_reported_with_its_line(fn, shapes, words):
    specs = [tf.TensorSpec(shape) for shape in shapes]
    with pytest.raises(RuntimeError) as caught:
        lower.lower(fn, specs, lower.AheadOfTimeStrategy(2))
    message = str(caught.value)
    assert words in message and "\n" not in message
    assert message.rpartition(" ")[2] in _lines(fn)


def test_an_operation_of_the_package_is_reported_with_the_packages_line():
    program = lower.lower(
        replicas.cross_replica_mean, [tf.TensorSpec([3])], lower.AheadOfTimeStrategy(2)
    )
    place, _, line = program.line_of("StopGradient").partition(":")
    assert place == "retinanet_tpu/replicas.py"
    assert "tf.stop_gradient" in inspect.getsource(replicas).splitlines()[int(line) - 1]


def test_a_gradients_operation_is_reported_with_the_line_of_the_layer():
    def layer(x):
        with tf.name_scope("layer"):
            return tf.nn.relu(x)

    def fn(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        return tape.gradient(y, x)

    program = lower.lower(fn, [tf.TensorSpec([3])], lower.AheadOfTimeStrategy(1))
    assert program.line_of("gradient_tape/layer/ReluGrad") in _lines(layer)
    assert program.line_of("nobody/knows/it") == ""
