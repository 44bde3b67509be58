import re
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.lite.python import schema_py_generated as schema

import servers
from retinanet_tpu import structures
from retinanet_tpu.boxes import box_ops
from retinanet_tpu.data import transforms
from retinanet_tpu.model import grouped_conv, variable_paths
from retinanet_tpu.serving import parity, tflite_format

pytestmark = pytest.mark.long

KEYS = {"boxes_xyxy", "scores", "class_ids", "valid_detections"}
INPUTS = tf.TensorSpec([1, 8, 8, 3], tf.float32, name="inputs")


def sensitive(*bindings):
    """Returns a module whose detections depend on every part of its network."""
    module = servers.make(*bindings)
    heads, rng = module.network.heads, np.random.default_rng(1)
    for variable in module.network.variables:
        if "/gamma" in variable.name:
            variable.assign(tf.ones(variable.shape))
    for tower, spread in ((heads.class_tower, 0.3), (heads.box_tower, 0.05)):
        kernels = [conv.kernel for conv in tower.convs]
        for kernel, stddev in [
            *((k, 0.1) for k in kernels),
            (tower.last_conv.kernel, spread),
        ]:
            kernel.assign(rng.normal(0, stddev, kernel.shape))
    return module


def num_bytes(module):
    return 4 * variable_paths.num_parameters(module.network.variables)


def letterboxed(module, num, seed):
    images = servers.images(num, seed=seed)
    return transforms.letterbox(images, module.recipe.image_size)[0].numpy()


def converted(module, kind="float32"):
    spec = tf.TensorSpec([1, *module.recipe.image_size, 3], name="inputs")
    return tflite_format.convert(
        module.predict_inputs,
        module.read_inputs,
        spec,
        kind=kind,
        calibration_inputs=letterboxed(module, 12, seed=9),
    )


def run(content, inputs):
    signature = tflite_format.make_interpreter(content).get_signature_runner()
    return [signature(inputs=image[None]) for image in inputs]


def expected_of(module, inputs):
    read = [module.read_inputs(module.predict_inputs(x[None])) for x in inputs]
    return [{key: x.numpy() for key, x in outputs.items()} for outputs in read]


def compare(actual, expected, **tolerance):
    rows = [
        [
            structures.Detections(
                box_ops.swap_xy(x["boxes_xyxy"]).numpy(),
                x["scores"],
                x["class_ids"],
                x["valid_detections"],
            )
            for x in side
        ]
        for side in (actual, expected)
    ]
    tolerance = parity.Tolerance(**tolerance)
    result = parity.compare(*rows, tolerance)
    assert result.num_compared > 100
    return result.num_matched / result.num_compared


@pytest.fixture(scope="module")
def module():
    return sensitive()


@pytest.fixture(scope="module")
def inputs(module):
    return letterboxed(module, 8, seed=0)


@pytest.fixture(scope="module")
def expected(module, inputs):
    return expected_of(module, inputs)


def assert_same(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        assert set(one) == KEYS
        assert other["valid_detections"] > 10
        for key in ("class_ids", "valid_detections"):
            np.testing.assert_array_equal(one[key], other[key])
        np.testing.assert_allclose(one["boxes_xyxy"], other["boxes_xyxy"], atol=1e-3)
        np.testing.assert_allclose(one["scores"], other["scores"], atol=1e-5)


def test_float32_returns_the_detections_of_the_module(module, inputs, expected):
    assert_same(run(converted(module), inputs), expected)


def test_float16_has_half_the_size_and_almost_the_same_detections(
    module, inputs, expected
):
    content = converted(module, "float16")
    assert len(content) < 0.7 * num_bytes(module)
    assert compare(run(content, inputs), expected, iou=0.98, score=0.003) == 1


def test_int8_has_a_fraction_of_the_size_and_similar_detections(
    module, inputs, expected
):
    content, tolerance = converted(module, "int8"), {"iou": 0.75, "score": 0.1}
    assert len(content) < 0.5 * num_bytes(module)
    assert compare(run(content, inputs), expected, **tolerance) > 0.9
    # The comparison can fail: other pixels have other detections.
    assert compare(run(content, inputs / 2), expected, **tolerance) < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_distributions_of_boxes_are_decoded(inputs, kind):
    module = sensitive("Anchors.box_coder = @SideDistributions()")
    actual, expected = run(converted(module, kind), inputs), expected_of(module, inputs)
    if kind == "float32":
        assert_same(actual, expected)
    else:
        assert compare(actual, expected, iou=0.75, score=0.1) > 0.9


@pytest.mark.slow  # test_suppression.py converts each NMS alone.
def test_soft_suppression_converts(inputs):
    # More candidates than a window of soft NMS.
    module = sensitive("NMS.variant = 'per_class_soft'", "decode.num_candidates = 540")
    assert_same(run(converted(module), inputs), expected_of(module, inputs))


def shades(inputs):
    """Returns 12 maps that differ, to test that their order is kept."""
    kernel = np.random.default_rng(0).normal(size=[3, 3, 3, 2]).astype(np.float32)
    y = tf.nn.conv2d(inputs, kernel, 1, "SAME")
    return {"first": (y, [y + i for i in range(1, 11)]), "last": y[:, :4]}


def read_shades(predictions):
    y, others = predictions["first"]
    exact = tf.constant([1000 / 3, 7001 / 11]) + 0 * tf.reduce_mean(y, [0, 1, 2])
    return {
        "offsets": tf.stack([tf.reduce_mean(other - y) for other in others]),
        "last": predictions["last"],
        "exact": exact,
    }


def assert_names_are_unique(content):
    """Checks the names of all tensors, and those of inputs and outputs."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
    names = [tensor.name for graph in model.subgraphs for tensor in graph.tensors]
    assert len(names) == len(set(names)) and all(names)
    (graph, *_) = model.subgraphs
    assert graph.tensors[graph.inputs[0]].name == b"serving_default_inputs:0"
    for number in graph.outputs:
        assert re.fullmatch(rb"\w*PartitionedCall:\d", graph.tensors[number].name)


@pytest.mark.parametrize("kind", tflite_format.KINDS)
def test_postprocessing_keeps_its_order_and_float32(kind):
    images = np.random.default_rng(0).random([4, 8, 8, 3], dtype=np.float32)
    content = tflite_format.convert(
        shades, read_shades, INPUTS, kind=kind, calibration_inputs=images
    )
    assert_names_are_unique(content)
    (outputs,) = run(content, images[:1])
    expected = read_shades(shades(images[:1]))
    # With 8 bits an offset may be off by a few hundredths.
    np.testing.assert_allclose(outputs["offsets"], np.arange(1, 11), atol=0.1)
    np.testing.assert_allclose(outputs["last"], expected["last"], atol=0.1)
    np.testing.assert_allclose(outputs["exact"], expected["exact"], rtol=1e-7)


def test_constants_are_aligned_to_16_bytes():
    content = tflite_format.convert(shades, read_shades, INPUTS)
    model = schema.Model.GetRootAs(content)
    tables = [model.Buffers(i)._tab for i in range(model.BuffersLength())]
    field = 4  # The offset of `data`, the first field of the table Buffer.
    starts = [
        table.Vector(table.Offset(field)) for table in tables if table.Offset(field)
    ]
    assert len(starts) > 8
    assert not np.any(np.array(starts) % 16)


def until(is_done_fn, step_fn, x):
    return tf.while_loop(lambda x: tf.logical_not(is_done_fn(x)), step_fn, [x])[0]


def test_both_parts_may_have_loops():
    def grow(x):
        return until(lambda x: tf.reduce_sum(x) > 100, lambda x: [2 * x], x)

    def shrink(x):
        return {"y": until(lambda x: tf.reduce_sum(x) < 50, lambda x: [x - 0.1], x)}

    inputs = np.full([8, 8, 3], 0.01, np.float32)
    content = tflite_format.convert(grow, shrink, INPUTS)
    assert_names_are_unique(content)
    (outputs,) = run(content, [inputs])
    np.testing.assert_allclose(outputs["y"], shrink(grow(inputs[None]))["y"], rtol=1e-5)


@pytest.mark.parametrize("kind", tflite_format.KINDS)
def test_grouped_convolutions_have_constant_kernels(kind):
    conv = grouped_conv.GroupedConv(256, 256, 3, name="conv", num_groups=32)
    x = np.float32(np.random.default_rng(0).uniform(-1, 1, [1, 8, 8, 256]))
    content = tflite_format.convert(
        conv,
        lambda y: {"a": y, "b": 2 * y},
        tf.TensorSpec(x.shape, name="x"),
        kind=kind,
        calibration_inputs=list(x),
    )
    interpreter = tflite_format.make_interpreter(content)
    outputs = interpreter.get_signature_runner()(x=x)
    expected = conv(tf.constant(x))
    limit = {"float32": 1e-5, "float16": 2e-3, "int8": 0.05}[kind]
    limit *= float(tf.reduce_max(tf.abs(expected)))
    np.testing.assert_allclose(outputs["a"], expected, atol=limit)
    np.testing.assert_allclose(outputs["b"], 2 * expected, atol=2 * limit)


def test_error_for_an_unknown_kind_contains_the_known_kinds():
    with pytest.raises(ValueError, match="'int4' is not one of float32, float16, int8"):
        tflite_format.convert(shades, read_shades, INPUTS, kind="int4")


@pytest.mark.parametrize("nothing", [None, []])
def test_int8_requires_images(nothing):
    with pytest.raises(ValueError, match="calibrated on images and got none"):
        tflite_format.convert(
            shades, read_shades, INPUTS, kind="int8", calibration_inputs=nothing
        )


def test_interpreter_has_no_deprecation_warning(recwarn):
    content = tflite_format.convert(shades, read_shades, INPUTS)
    recwarn.clear()
    assert tflite_format.make_interpreter(content, num_threads=1)
    assert not recwarn.list


def test_without_an_interpreter_its_successor_is_used(monkeypatch):
    successor = types.SimpleNamespace(Interpreter=lambda **named: named)
    monkeypatch.delattr(tf.lite, "Interpreter")
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", successor)
    arguments = tflite_format.make_interpreter(b"a model", num_threads=3)
    assert arguments == {"model_content": b"a model", "num_threads": 3}


def test_without_any_interpreter_the_error_contains_the_package(monkeypatch):
    monkeypatch.delattr(tf.lite, "Interpreter")
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(ValueError, match="pip install ai-edge-litert"):
        tflite_format.make_interpreter(b"")
