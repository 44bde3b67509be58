"""Quantization-aware training of a network of a few layers."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import replicas
from retinanet_tpu.model import (
    activations,
    folding,
    grouped_conv,
    layers,
    norms,
    quantization,
)
from retinanet_tpu.serving import tflite_format

SHAPE = (8, 12, 12, 3)


class Network(tf.Module):
    """A network with the layers of the mobile networks and two outputs."""

    def __init__(self, quantize_fn=quantization.FakeQuantization):
        super().__init__("network")
        rng = np.random.default_rng(0)
        with self.name_scope:
            self.stem = layers.Conv(3, 8, 3, name="stem", stride=2)
            self.norm = norms.BatchNorm(8, name="norm")
            self.depthwise = layers.DepthwiseConv(8, 3, name="depthwise")
            self.norm_depthwise = norms.BatchNorm(8, name="norm_depthwise")
            self.gate = layers.SqueezeExcite(8, 4, name="gate")
            self.last = layers.Conv(8, 4, 1, name="last", initial_bias=0.0)
        for variable in self.variables:
            if "/kernel" not in variable.name:
                # Such values tell a folded normalization from none.
                variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        self.quantization = quantize_fn and quantize_fn(
            self.infer, tf.TensorSpec(SHAPE)
        )

    def infer(self, x):
        conv_norm = functools.partial(folding.conv_norm, is_training=False)
        x = activations.relu6(conv_norm(self.stem, self.norm, x))
        y = activations.swish(conv_norm(self.depthwise, self.norm_depthwise, x))
        y = x + self.gate(y)
        return {"features": y, "last": self.last(y)}

    def __call__(self, x, *, is_training=False):
        return self.quantization(self.infer, x, is_training=is_training)


def images(seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, SHAPE).astype(np.float32)


@pytest.fixture(scope="module")
def network():
    """Returns a network with the ranges of one batch."""
    network = Network()
    run(network, images(), is_training=True)
    return network


def run(network, x, **kwargs):
    return tf.function(functools.partial(network, **kwargs), autograph=False)(x)


def round_to_grid(x, low, high, num_steps):
    """Rounds by the definition, in float64; 0 is on the grid."""
    scale = (high - low) / num_steps
    zero = np.round(-low / scale)
    return (np.clip(np.round(x / scale) + zero, 0, num_steps) - zero) * scale


def test_activations_are_rounded_to_256_values_and_0_is_one_of_them():
    x = np.random.default_rng(0).normal(0, 2, 1000).astype(np.float32)
    rounded = quantization.round_to_range(x, -1.3, 4.1).numpy()
    expected = round_to_grid(x.astype(np.float64), -1.3, 4.1, 255)
    # A value between two of the grid may go to either.
    step = 5.4 / 255
    is_tie = np.abs(np.abs(x / step % 1) - 0.5) < 1e-3
    np.testing.assert_allclose(rounded[~is_tie], expected[~is_tie], atol=1e-6)
    assert quantization.round_to_range(tf.zeros([1]), -1.3, 4.1) == 0
    assert len(np.unique(rounded)) <= 256


def test_each_channel_of_a_kernel_has_the_scale_of_its_greatest_weight():
    spread = [0.0, 0.01, 1.0, 30.0]
    kernel = np.random.default_rng(0).normal(0, 1, [3, 3, 5, 4]) * spread
    rounded = quantization.round_kernel(tf.constant(kernel, tf.float32)).numpy()
    assert not rounded[..., 0].any()
    scale = np.abs(kernel[..., 1:]).max((0, 1, 2)) / 127
    steps = rounded[..., 1:] / scale
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
    assert np.abs(steps).max() == pytest.approx(127)
    assert np.all(np.abs(rounded[..., 1:] - kernel[..., 1:]) <= scale * 0.501)


def test_gradient_of_rounding_is_1_inside_the_range_and_0_outside():
    x = tf.constant([-2.0, -0.7, 0.0, 0.9, 1.1])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(quantization.round_to_range(x, -1.0, 1.0))
    np.testing.assert_array_equal(tape.gradient(y, x), [0, 1, 1, 1, 0])


def test_positions_are_the_tensors_that_tflite_stores(network):
    assert network.quantization.positions == (
        "images",
        "Relu6",  # The normalized convolution and its activation are one position.
        "network/norm_depthwise/add_1",
        "mul",  # Swish; the range of its sigmoid is known.
        "Mean",
        "Relu",
        "network/gate/excite/add",
        "mul_1",
        "add",
        "network/last/add",
    )


def test_the_only_new_variable_is_not_trained(network):
    float_paths = {replicas.variable_path(v) for v in Network(None).variables}
    paths = {replicas.variable_path(v): v for v in network.variables}
    (path,) = paths.keys() - float_paths
    assert path == "quantization/moving_ranges"
    assert not paths[path].trainable


def test_first_step_sets_the_ranges_and_does_not_round_activations():
    network = Network()
    outputs = run(network, images(), is_training=True)
    expected = network.infer(images())
    for name, value in outputs.items():
        # Only kernels and the outputs of sigmoids are rounded.
        np.testing.assert_allclose(value, expected[name], atol=0.02)
    assert len(np.unique(outputs["last"])) > 256
    ranges = network.quantization.ranges.numpy()
    np.testing.assert_allclose(ranges[0], [images().min(), images().max()])
    last = outputs["last"].numpy()
    expected_range = [min(last.min(), 0), max(last.max(), 0)]
    np.testing.assert_allclose(ranges[-1], expected_range, rtol=1e-4)


def test_later_steps_move_the_ranges():
    network = Network(functools.partial(quantization.FakeQuantization, momentum=0.75))
    run(network, images(), is_training=True)
    run(network, 3 * images(), is_training=True)
    expected = 1.5 * images().min(), 1.5 * images().max()  # 0.75 + 3 * 0.25
    np.testing.assert_allclose(network.quantization.ranges[0], expected, rtol=1e-6)


def test_inference_keeps_the_ranges(network):
    before = network.quantization.ranges.numpy()
    run(network, 3 * images())
    np.testing.assert_array_equal(network.quantization.ranges, before)


def test_output_is_that_of_the_folded_and_rounded_layers():
    network = Network()
    network.infer = lambda x: tf.nn.relu6(
        folding.conv_norm(network.depthwise, network.norm, x, is_training=False)
    )
    x = np.random.default_rng(1).uniform(-1, 1, [1, 6, 6, 8]).astype(np.float32)
    quantize = quantization.FakeQuantization(network.infer, tf.TensorSpec(x.shape))
    quantize(network.infer, tf.constant(x), is_training=True)
    norm = network.norm
    scale = norm.gamma / np.sqrt(norm.moving_variance + norm.epsilon)
    kernel = (network.depthwise.kernel[..., 0] * scale).numpy()
    steps = np.abs(kernel).max((0, 1)) / 127
    kernel = (np.round(kernel / steps) * steps)[..., None]
    rounded = round_to_grid(x, *quantize.ranges.numpy()[0], 255).astype(np.float32)
    y = tf.nn.depthwise_conv2d(rounded, kernel, [1, 1, 1, 1], "SAME")
    y = tf.nn.relu6(y + norm.beta - norm.moving_mean * scale).numpy()
    low, high = quantize.ranges.numpy()[1]
    outputs = quantize(network.infer, tf.constant(x), is_training=False)
    # A value in the middle of two steps may be rounded to either.
    is_same = np.abs(outputs - round_to_grid(y, low, high, 255)) < 1e-4
    assert is_same.mean() > 0.99
    np.testing.assert_allclose(outputs, y, atol=0.51 * (high - low) / 255 + 1e-4)


def test_xla_computes_the_same(network):
    expected = run(network, images())
    outputs = tf.function(network, autograph=False, jit_compile=True)(images())
    for name, value in outputs.items():
        low, high = value.numpy().min(), value.numpy().max()
        difference = np.abs(value - expected[name])
        assert difference.mean() < 0.002 * (high - low), name
        assert difference.max() < 0.02 * (high - low), name


def test_all_weights_have_gradients(network):
    @functools.partial(tf.function, autograph=False, jit_compile=True)
    def gradients(x):
        weights = network.trainable_variables
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            outputs = network(x, is_training=True)
            loss = tf.reduce_mean(tf.square(outputs["last"]))
        return tape.gradient(loss, weights)

    ranges = network.quantization.ranges.numpy()
    for gradient in gradients(images()):
        assert np.isfinite(gradient).all() and np.any(gradient)
    network.quantization.ranges.assign(ranges)


def test_tflite_int8_has_the_ranges_and_equals_the_network(network):
    content = tflite_format.convert(
        network,
        lambda outputs: outputs,
        tf.TensorSpec([1, *SHAPE[1:]], tf.float32, name="inputs"),
        kind="int8",
    )
    interpreter = tflite_format.make_interpreter(content)
    interpreter.allocate_tensors()
    details = interpreter.get_tensor_details()
    scales = {float(x["quantization"][0]) for x in details if x["dtype"] == np.int8}
    for low, high in network.quantization.ranges.numpy():
        assert np.min(np.abs(np.array([*scales]) / ((high - low) / 255) - 1)) < 1e-4
    kernels = [x for x in details if "Conv2D" in x["name"] and len(x["shape"]) == 4]
    assert any(x["dtype"] == np.int8 for x in kernels)
    runner = interpreter.get_signature_runner()
    for image in images(1)[:2]:
        expected = run(network, image[None])
        for name, value in runner(inputs=image[None]).items():
            step = np.ptp(expected[name]) / 255
            difference = np.abs(value - expected[name])
            assert difference.max() < 6 * step, name
            assert difference.mean() < step, name


def test_kernels_of_grouped_convolutions_keep_their_scales_in_tflite():
    conv = grouped_conv.GroupedConv(256, 256, 3, name="conv", num_groups=32)
    spec = tf.TensorSpec([1, 8, 8, 256], tf.float32, name="inputs")
    fake = quantization.FakeQuantization(conv, spec)
    x = tf.constant(np.random.default_rng(0).uniform(-1, 1, spec.shape), tf.float32)
    fake(conv, x, is_training=True)
    infer = functools.partial(fake, conv, is_training=False)
    content = tflite_format.convert(infer, lambda y: {"y": y}, spec, kind="int8")
    interpreter = tflite_format.make_interpreter(content)
    runner = interpreter.get_signature_runner()
    expected = infer(x).numpy()
    step = np.ptp(expected) / 255
    np.testing.assert_allclose(runner(inputs=x)["y"], expected, atol=2 * step)
    scales = [
        details["quantization_parameters"]["scales"]
        for details in interpreter.get_tensor_details()
        if details["dtype"] == np.int8 and tuple(details["shape"][1:3]) == (3, 3)
    ]
    greatest = np.abs(conv.kernel.numpy()).max(axis=(0, 1, 2))
    np.testing.assert_allclose(
        np.sort(np.concatenate(scales)), np.sort(greatest) / 127, rtol=1e-4
    )


def test_tflite_float16_of_a_quantized_network_is_an_error(network):
    spec = tf.TensorSpec([1, *SHAPE[1:]], tf.float32, name="inputs")
    with pytest.raises(ValueError, match="export tflite_int8"):
        tflite_format.convert(network, lambda x: x, spec, kind="float16")
