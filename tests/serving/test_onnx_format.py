import functools
import io
import logging
import sys

import numpy as np
import pytest
import tensorflow as tf

import servers
from retinanet_tpu.detections import nms
from retinanet_tpu.serving import onnx_format

onnx = pytest.importorskip("onnx")
pytest.importorskip("tf2onnx")
pytest.importorskip("onnxruntime")
THRESHOLDS = {"iou_threshold": 0.5, "score_threshold": 0.05, "max_detections": 20}


def make_module(*bindings):
    """Returns a module whose batch normalization changes its input."""
    module = servers.make(*bindings)
    rng = np.random.default_rng(5)
    for variable in module.network.variables:
        name = variable.name.rpartition("/")[2].partition(":")[0]
        if name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.8, 1.2, variable.shape))
        elif name in ("beta", "moving_mean"):
            variable.assign(rng.normal(0.0, 0.1, variable.shape))
    return module


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def module():
    return make_module()


def convert_images(module, **options):
    signature = module.detect_images.input_signature
    return onnx_format.convert(module.detect_images, signature, **options)


@pytest.fixture(scope="module")
def model(module):
    return convert_images(module, metadata={"categories.json": "{}", "run": "ü"})


@pytest.fixture(scope="module")
def session(model):
    return onnx_format.make_session(model)


@pytest.fixture(scope="module")
def raw(module):
    return onnx_format.convert(module.raw, [module.input_spec])


def run(session, **inputs):
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def ordered(detections):
    """Returns the detections of each image by class and box.

    Runtimes round differently, so almost equal scores may change places.
    """
    arrays = {name: np.asarray(values) for name, values in detections.items()}
    rows = np.arange(len(arrays["scores"]))[:, None]
    keys = [*np.moveaxis(np.round(arrays["boxes_xyxy"]), 2, 0), arrays["class_ids"]]
    order = np.lexsort(keys, axis=1)
    return {n: x if x.ndim == 1 else x[rows, order] for n, x in arrays.items()}


def assert_same(actual, expected):
    assert set(actual) == set(expected)
    assert np.all(np.diff(actual["scores"], axis=1) <= 0)
    actual = ordered(actual)
    for name, values in ordered(expected).items():
        np.testing.assert_allclose(
            actual[name], values, atol=1e-3, rtol=1e-5, err_msg=name
        )


def dimensions(value):
    sides = value.type.tensor_type.shape.dim
    return [side.dim_param or side.dim_value for side in sides]


SIZES = [(1, (60, 90)), (3, (60, 90)), (3, (97, 41)), (2, (131, 200)), (1, (301, 530))]


@pytest.mark.long
@pytest.mark.parametrize(("num", "size"), SIZES)
def test_onnx_returns_the_detections_of_the_module(module, session, num, size):
    images = servers.images(num, size)
    expected = module.detect_images(images)
    assert np.all(expected["valid_detections"] > 3)
    assert_same(run(session, images=images), expected)


@pytest.mark.slow
def test_distributions_of_boxes_are_decoded():
    module = make_module("Anchors.box_coder = @SideDistributions()")
    images = servers.images(2)
    expected = module.detect_images(images)
    assert np.all(expected["valid_detections"] > 3)
    session = onnx_format.make_session(convert_images(module))
    assert_same(run(session, images=images), expected)


def test_image_may_be_one_pixel(module, session):
    pixel = servers.images(1)[:, :1, :1]
    assert_same(run(session, images=pixel), module.detect_images(pixel))


def test_inputs_and_outputs_have_the_names_and_dimensions_of_the_module(model):
    graph = model.graph
    assert {value.name: dimensions(value) for value in graph.input} == {
        "images": ["batch", "height", "width", 3]
    }
    assert {value.name: dimensions(value) for value in graph.output} == {
        "boxes_xyxy": ["batch", 20, 4],
        "scores": ["batch", 20],
        "class_ids": ["batch", 20],
        "valid_detections": ["batch"],
    }


def test_model_contains_its_producer_and_metadata(model):
    onnx.checker.check_model(model, full_check=True)
    assert model.producer_name == "retinanet_tpu"
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "categories.json": "{}",
        "run": "ü",
    }
    versions = {entry.domain: entry.version for entry in model.opset_import}
    assert versions[""] == onnx_format.OPSET


def graphs_in(graph):
    """Yields a graph and all graphs in its loops and conditions."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs_in(attribute.g)


def test_no_loop_body_has_an_input_as_output(model):
    bodies = list(graphs_in(model.graph))
    assert len(bodies) > 1
    for body in bodies:
        inputs = {value.name for value in body.input}
        assert not inputs & {value.name for value in body.output}


def test_network_has_a_fixed_size_for_images_of_any_size(model):
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {value.name: dimensions(value) for value in inferred.value_info}
    (first, *_) = (node for node in inferred.node if node.op_type == "Conv")
    _, *sides = shapes[first.output[0]]
    assert len(sides) == 3 and all(isinstance(side, int) and side for side in sides)


@pytest.mark.parametrize("variant", nms.VARIANTS[1:])
def test_openvino_returns_the_detections_of_onnxruntime(variant):
    openvino = pytest.importorskip("openvino")
    model = convert_images(make_module(f"NMS.variant = '{variant}'"))
    run_openvino = openvino.Core().compile_model(
        openvino.Core().read_model(io.BytesIO(model.SerializeToString())),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32"},
    )
    session = onnx_format.make_session(model)
    for num, size in ((3, (60, 90)), (1, (97, 41))):
        images = servers.images(num, size)
        expected = run(session, images=images)
        outputs = run_openvino({"images": images})
        assert_same({name: outputs[name] for name in expected}, expected)


def test_batch_normalization_is_folded_into_the_convolutions(raw):
    operators = [node.op_type for node in raw.graph.node]
    assert "BatchNormalization" not in operators
    # A scale that is not folded would be a Mul with a weight of rank 1 or 4.
    weights = {weight.name: len(weight.dims) for weight in raw.graph.initializer}
    scales = [
        node.name
        for node in raw.graph.node
        if node.op_type == "Mul" and any(weights.get(x) == 4 for x in node.input)
    ]
    assert not scales


def test_raw_model_requires_the_size_of_the_network_and_accepts_any_batch(raw):
    assert [dimensions(value) for value in raw.graph.input] == [["batch", 64, 64, 3]]
    outputs = {value.name: dimensions(value) for value in raw.graph.output}
    assert outputs == {"boxes_yxyx": ["batch", 180, 4], "scores": ["batch", 180, 3]}


def efficient_nms(boxes, scores, attributes):
    """Returns the outputs of the plugin for one image, computed in NumPy."""
    num_classes = scores.shape[1]
    pairs = np.flatnonzero(scores >= np.float32(attributes["score_threshold"]))
    pairs = pairs[np.argsort(-scores.ravel()[pairs], kind="stable")][:4096]
    kept = []
    for pair in pairs:
        box, class_id = boxes[pair // num_classes], pair % num_classes
        rivals = [
            boxes[other // num_classes]
            for other in kept
            if attributes["class_agnostic"] or other % num_classes == class_id
        ]
        if all(overlap(box, r) < attributes["iou_threshold"] for r in rivals):
            kept.append(pair)
        if len(kept) == attributes["max_output_boxes"]:
            break
    kept = np.array(kept, int)
    return boxes[kept // num_classes], scores.ravel()[kept], kept % num_classes


def overlap(a, b):
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = np.prod(np.maximum(sides, 0), dtype=np.float32)
    areas = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])
    return shared / (areas - shared) if shared > 0 else np.float32(0)


def attributes_of(node):
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


@pytest.mark.parametrize("is_global", [False, True])
def test_tensorrts_nms_returns_the_detections_of_the_module(module, raw, is_global):
    for_tensorrt = onnx_format.with_efficient_nms(
        raw, **THRESHOLDS, class_agnostic=is_global
    )
    node = for_tensorrt.graph.node[-1]
    assert list(node.input) == ["boxes_yxyx", "scores"]
    if is_global:
        module = make_module("NMS.variant = 'global_hard'")
    # The network's size, so that images are not resized.
    images = servers.images(3, (64, 64))
    expected = module.detect_images(images)
    session = onnx_format.make_session(raw)
    arrays = run(session, inputs=images.astype(np.float32))
    ids = np.array([7, -1, 40])
    for row in range(3):
        boxes, scores, classes = efficient_nms(
            arrays["boxes_yxyx"][row], arrays["scores"][row], attributes_of(node)
        )
        count = int(expected["valid_detections"][row])
        assert len(scores) == count > 3
        boxes_xyxy = boxes[:, [1, 0, 3, 2]]
        np.testing.assert_allclose(
            boxes_xyxy, expected["boxes_xyxy"][row, :count], atol=1e-3
        )
        np.testing.assert_allclose(scores, expected["scores"][row, :count], atol=1e-5)
        assert ids[classes].tolist() == list(expected["class_ids"][row, :count])


def test_tensorrts_node_has_the_attributes_of_its_plugin(raw):
    before = raw.SerializeToString()
    for_tensorrt = onnx_format.with_efficient_nms(
        raw, **THRESHOLDS, class_agnostic=True
    )
    onnx.checker.check_model(for_tensorrt)
    assert raw.SerializeToString() == before
    node = for_tensorrt.graph.node[-1]
    assert (node.op_type, node.domain) == ("EfficientNMS_TRT", "trt.plugins")
    attributes = attributes_of(node)
    # The plugin and NMS differ at a threshold, so each is the next larger float32.
    for name, value in (("score_threshold", 0.05), ("iou_threshold", 0.5)):
        step_up = np.nextafter(np.float32(value), np.float32(1))
        assert np.float32(attributes.pop(name)) == step_up > np.float32(value)
    assert attributes == {
        "plugin_version": b"1",
        "max_output_boxes": 20,
        "class_agnostic": 1,
        "background_class": -1,
        "score_activation": 0,
        "box_coding": 0,
    }
    outputs = {value.name: value for value in for_tensorrt.graph.output}
    assert list(outputs) == list(node.output)
    assert {name: dimensions(value) for name, value in outputs.items()} == {
        "num_detections": ["batch", 1],
        "detection_boxes_yxyx": ["batch", 20, 4],
        "detection_scores": ["batch", 20],
        "detection_classes": ["batch", 20],
    }
    integers = ("num_detections", "detection_classes")
    assert {
        name
        for name, value in outputs.items()
        if value.type.tensor_type.elem_type == onnx.TensorProto.INT32
    } == set(integers)


SPEC = tf.TensorSpec([None, 8, 8, 3], tf.float32, "x")


def convolve(x, *, dtype=tf.float32):
    kernel = tf.constant(np.ones([3, 3, 3, 2]), dtype)
    return {"y": tf.nn.conv2d(tf.cast(x, dtype), kernel, 1, "SAME")}


def test_bfloat16_is_rejected():
    fn = functools.partial(convolve, dtype=tf.bfloat16)
    with pytest.raises(ValueError, match="COMPUTE_DTYPE = 'float32'"):
        onnx_format.convert(fn, [SPEC])


@pytest.mark.long
def test_boxes_and_scores_are_float32_in_half_precision():
    module = make_module("COMPUTE_DTYPE = 'float16'")
    half = onnx_format.convert(module.raw, [module.input_spec])
    types = {weight.data_type for weight in half.graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types
    inputs = servers.images(2, (64, 64)).astype(np.float32)
    outputs = run(onnx_format.make_session(half), inputs=inputs)
    expected = module.raw(inputs)
    assert {values.dtype.name for values in outputs.values()} == {"float32"}
    np.testing.assert_allclose(outputs["boxes_yxyx"], expected["boxes_yxyx"], atol=0.05)
    np.testing.assert_allclose(outputs["scores"], expected["scores"], atol=2e-3)


def test_error_contains_the_operation_that_onnx_lacks():
    def decompose(x):
        return {"y": tf.linalg.qr(x[:, :, :, 0])[0]}

    with pytest.raises(ValueError, match="Qr"):
        onnx_format.convert(decompose, [SPEC])


def test_conversion_logs_nothing(caplog):
    caplog.set_level(logging.INFO)
    onnx_format.convert(convolve, [SPEC])
    assert not [record for record in caplog.records if "onnx" in record.name]
    assert logging.getLogger("tf2onnx").level == logging.NOTSET


@pytest.mark.parametrize("package", ["onnx", "tf2onnx", "onnxruntime"])
def test_error_for_a_missing_package_contains_its_extra(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"{package} is missing: .*'\.\[onnx\]'"):
        onnx_format.check_installed()


def test_all_packages_are_installed_here():
    onnx_format.check_installed()
