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


def make_server(*bindings):
    """A server with normalization that has something to fold away."""
    server = servers.make(*bindings)
    rng = np.random.default_rng(5)
    for variable in server.network.variables:
        name = variable.name.rpartition("/")[2].partition(":")[0]
        if name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.8, 1.2, variable.shape))
        elif name in ("beta", "moving_mean"):
            variable.assign(rng.normal(0.0, 0.1, variable.shape))
    return server


@pytest.fixture(scope="module")
def server():
    return make_server()


def convert_images(server, **options):
    signature = server.detect_images.input_signature
    return onnx_format.convert(server.detect_images, signature, **options)


@pytest.fixture(scope="module")
def model(server):
    return convert_images(server, metadata={"categories.json": "{}", "run": "ü"})


@pytest.fixture(scope="module")
def session(model):
    return onnx_format.make_session(model)


@pytest.fixture(scope="module")
def raw(server):
    return onnx_format.convert(server.raw, [server.input_spec])


def run(session, **inputs):
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(
            found[name], values, atol=1e-3, rtol=1e-5, err_msg=name
        )


def dimensions(value):
    sides = value.type.tensor_type.shape.dim
    return [side.dim_param or side.dim_value for side in sides]


SIZES = [(1, (60, 90)), (3, (60, 90)), (3, (97, 41)), (2, (131, 200)), (1, (301, 530))]


@pytest.mark.parametrize(("num", "size"), SIZES)
def test_the_graph_finds_what_the_server_finds(server, session, num, size):
    pictures = servers.pictures(num, size)
    expected = server.detect_images(pictures)
    assert np.all(expected["valid_detections"] > 3)
    assert_same(run(session, images=pictures), expected)


def test_a_picture_may_be_one_pixel(server, session):
    pixel = servers.pictures(1)[:, :1, :1]
    assert_same(run(session, images=pixel), server.detect_images(pixel))


def test_inputs_and_outputs_have_the_names_and_dimensions_of_the_server(model):
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


def test_the_model_says_what_it_is(model):
    onnx.checker.check_model(model, full_check=True)
    assert model.producer_name == "retinanet_tpu"
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "categories.json": "{}",
        "run": "ü",
    }
    versions = {entry.domain: entry.version for entry in model.opset_import}
    assert versions[""] == onnx_format.OPSET


def graphs_in(graph):
    """Yields a graph and all that its loops and conditions contain."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs_in(attribute.g)


def test_no_body_of_a_loop_has_an_input_as_output(model):
    bodies = list(graphs_in(model.graph))
    assert len(bodies) > 1
    for body in bodies:
        inputs = {value.name for value in body.input}
        assert not inputs & {value.name for value in body.output}


def test_network_has_a_fixed_size_where_pictures_have_none(model):
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {value.name: dimensions(value) for value in inferred.value_info}
    (first, *_) = (node for node in inferred.node if node.op_type == "Conv")
    _, *sides = shapes[first.output[0]]
    assert len(sides) == 3 and all(isinstance(side, int) and side for side in sides)


@pytest.mark.parametrize("variant", nms.VARIANTS[1:])
def test_openvino_finds_what_onnxruntime_finds(variant):
    openvino = pytest.importorskip("openvino")
    model = convert_images(make_server(f"NMS.variant = '{variant}'"))
    run_there = openvino.Core().compile_model(
        openvino.Core().read_model(io.BytesIO(model.SerializeToString())),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32"},
    )
    session = onnx_format.make_session(model)
    for num, size in ((3, (60, 90)), (1, (97, 41))):
        images = servers.pictures(num, size)
        expected = run(session, images=images)
        found = run_there({"images": images})
        assert_same({name: found[name] for name in expected}, expected)


def test_normalization_goes_into_the_convolutions(raw):
    operators = [node.op_type for node in raw.graph.node]
    assert "BatchNormalization" not in operators
    # A scale of its own for each channel would be a Mul of a weight of rank 1 or 4.
    weights = {weight.name: len(weight.dims) for weight in raw.graph.initializer}
    scales = [
        node.name
        for node in raw.graph.node
        if node.op_type == "Mul" and any(weights.get(x) == 4 for x in node.input)
    ]
    assert not scales


def test_raw_form_wants_the_networks_size_and_any_batch(raw):
    assert [dimensions(value) for value in raw.graph.input] == [["batch", 64, 64, 3]]
    found = {value.name: dimensions(value) for value in raw.graph.output}
    assert found == {"boxes_yxyx": ["batch", 180, 4], "scores": ["batch", 180, 3]}


def efficient_nms(boxes, scores, attributes):
    """What the plugin's README and kernels do to one image, in NumPy."""
    num_classes = scores.shape[1]
    pairs = np.flatnonzero(scores >= np.float32(attributes["score_threshold"]))
    pairs = pairs[np.argsort(-scores.ravel()[pairs], kind="stable")][:4096]
    kept = []
    for pair in pairs:
        box, its_class = boxes[pair // num_classes], pair % num_classes
        rivals = [
            boxes[other // num_classes]
            for other in kept
            if attributes["class_agnostic"] or other % num_classes == its_class
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
def test_tensorrts_suppression_finds_what_the_server_finds(server, raw, is_global):
    for_tensorrt = onnx_format.with_efficient_nms(
        raw, **THRESHOLDS, class_agnostic=is_global
    )
    node = for_tensorrt.graph.node[-1]
    assert list(node.input) == ["boxes_yxyx", "scores"]
    if is_global:
        server = make_server("NMS.variant = 'global_hard'")
    pictures = servers.pictures(3, (64, 64))  # The network's size: inputs as they are.
    expected = server.detect_images(pictures)
    session = onnx_format.make_session(raw)
    arrays = run(session, inputs=pictures.astype(np.float32))
    ids = np.array([7, -1, 40])
    for row in range(3):
        found = efficient_nms(
            arrays["boxes_yxyx"][row], arrays["scores"][row], attributes_of(node)
        )
        count = int(expected["valid_detections"][row])
        assert len(found[1]) == count > 3
        boxes_xyxy = found[0][:, [1, 0, 3, 2]]
        np.testing.assert_allclose(
            boxes_xyxy, expected["boxes_xyxy"][row, :count], atol=1e-3
        )
        np.testing.assert_allclose(found[1], expected["scores"][row, :count], atol=1e-5)
        assert ids[found[2]].tolist() == list(expected["class_ids"][row, :count])


def test_tensorrts_node_is_spelled_as_its_plugin_wants_it(raw):
    before = raw.SerializeToString()
    for_tensorrt = onnx_format.with_efficient_nms(
        raw, **THRESHOLDS, class_agnostic=True
    )
    onnx.checker.check_model(for_tensorrt)
    assert raw.SerializeToString() == before
    node = for_tensorrt.graph.node[-1]
    assert (node.op_type, node.domain) == ("EfficientNMS_TRT", "trt.plugins")
    attributes = attributes_of(node)
    # The plugin decides otherwise at a threshold than NMS does, so each is a step up.
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


def test_bfloat16_is_refused():
    fn = functools.partial(convolve, dtype=tf.bfloat16)
    with pytest.raises(ValueError, match="COMPUTE_DTYPE = 'float32'"):
        onnx_format.convert(fn, [SPEC])


def test_half_precision_ends_before_boxes_and_scores():
    server = make_server("COMPUTE_DTYPE = 'float16'")
    half = onnx_format.convert(server.raw, [server.input_spec])
    types = {weight.data_type for weight in half.graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types
    inputs = servers.pictures(2, (64, 64)).astype(np.float32)
    found = run(onnx_format.make_session(half), inputs=inputs)
    expected = server.raw(inputs)
    assert {values.dtype.name for values in found.values()} == {"float32"}
    np.testing.assert_allclose(found["boxes_yxyx"], expected["boxes_yxyx"], atol=0.05)
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=2e-3)


def test_what_onnx_lacks_is_named():
    def decompose(x):
        return {"y": tf.linalg.qr(x[:, :, :, 0])[0]}

    with pytest.raises(ValueError, match="Qr"):
        onnx_format.convert(decompose, [SPEC])


def test_conversion_is_quiet(caplog):
    caplog.set_level(logging.INFO)
    onnx_format.convert(convolve, [SPEC])
    assert not [record for record in caplog.records if "onnx" in record.name]
    assert logging.getLogger("tf2onnx").level == logging.NOTSET


@pytest.mark.parametrize("package", ["onnx", "tf2onnx", "onnxruntime"])
def test_a_missing_package_is_named_with_its_extra(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"{package} is missing: .*'\.\[onnx\]'"):
        onnx_format.check_installed()


def test_nothing_is_missing_here():
    onnx_format.check_installed()
