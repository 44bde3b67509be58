import functools

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu.model import grouped_conv

# (channels, output channels, groups): all groups merged, some of them, and none.
SHAPES = [(16, 32, 4), (512, 256, 4), (256, 256, 2)]
# TensorFlow runs operations one by one, in a graph, or compiled.
MODES = {
    "eager": lambda fn: fn,
    "graph": tf.function,
    "jit": lambda fn: tf.function(fn, jit_compile=True),
}


def _make(channels, out_channels, num_groups, stride=1):
    """Returns a grouped convolution."""
    return grouped_conv.GroupedConv(
        channels, out_channels, 3, name="conv", num_groups=num_groups, stride=stride
    )


def _apart(conv, num_groups, x):
    """Returns the convolution of each group by itself."""
    x, padding = conv._pad(x)
    kernels, inputs = tf.split(conv.kernel, num_groups, -1), tf.split(x, num_groups, -1)
    parts = zip(inputs, kernels, strict=True)
    return tf.concat([tf.nn.conv2d(*part, conv.stride, padding) for part in parts], -1)


def _gradients(conv, x, conv_fn):
    """Returns conv_fn(x), and its gradients of the input and the kernel."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = conv_fn(x)
        loss = tf.reduce_sum(tf.square(tf.cast(y, tf.float32)))
    return y, *tape.gradient(loss, [x, conv.kernel])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients_equal_those_of_separate_groups(shape, stride):
    conv = _make(*shape, stride=stride)
    x = tf.random.stateless_normal([2, 5, 6, shape[0]], [0, 0])
    apart = functools.partial(_apart, conv, shape[2])
    results = [_gradients(conv, x, conv_fn) for conv_fn in (conv, apart)]
    for ours, expected in zip(*results, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_has_gradients_on_a_cpu(mode, dtype):
    conv = _make(256, 256, 4, stride=2)
    x = tf.cast(tf.random.stateless_normal([2, 5, 6, 256], [0, 0]), dtype)
    expected = _gradients(conv, tf.cast(x, tf.float32), conv)
    results = MODES[mode](lambda x: _gradients(conv, x, conv))(x)
    assert [result.dtype for result in results] == [dtype, dtype, "float32"]
    for ours, exact in zip(results, expected, strict=True):
        error = tf.reduce_max(tf.abs(tf.cast(ours, tf.float32) - exact))
        limit = 1e-5 if dtype == "float32" else 0.02
        assert error <= limit * tf.reduce_max(tf.abs(exact))


@pytest.mark.parametrize(
    ("shape", "inputs"), [*zip(SHAPES, [16, 128, 128], strict=True)]
)
def test_groups_are_merged_up_to_the_tile_of_a_tpu(shape, inputs):
    conv = _make(*shape)
    kernel = grouped_conv._merged(conv.kernel, shape[2])
    assert kernel.shape == (3, 3, inputs, shape[1])
