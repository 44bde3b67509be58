import logging
import re
import sys

import pytest

import servers
from retinanet_tpu import errors
from retinanet_tpu.serving import (
    artifacts,
    onnx_format,
    openvino_format,
    parity,
    runtimes,
)

openvino = pytest.importorskip("openvino")
pytest.importorskip("tf2onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.long
# The scores of the tiny network are close to each other. bfloat16 moves them by up to
# 6e-4.
BFLOAT16 = parity.Tolerance(iou=0.9, score=2e-3, share=0.9, max_unmatched=2)
CATEGORIES = '{"num_classes": 1, "categories": []}'


@pytest.fixture(scope="module")
def model():
    module = servers.make()
    signature = module.detect_images.input_signature
    metadata = {"categories.json": CATEGORIES, "run": "ü < 3"}
    return onnx_format.convert(module.detect_images, signature, metadata=metadata)


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("openvino") / "model_openvino.xml"
    for extension, content in openvino_format.convert(model).items():
        path.with_suffix(extension).write_bytes(content)
    return str(path)


def detections_by_onnxruntime(model, images):
    session = onnx_format.make_session(model)
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(names, {"images": images})
    return runtimes.to_detections(dict(zip(names, outputs, strict=True)))


def assert_agree(actual, expected, tolerance):
    report = parity.compare([actual], [expected], tolerance)
    assert report.num_compared > 4
    assert report.is_within(tolerance), report


@pytest.mark.parametrize("size", [(60, 90), (97, 41)])
def test_detections_are_those_of_onnxruntime(model, path, size):
    images = servers.images(1, size)
    actual = artifacts.load(path, num_threads=1).detect(images)
    expected = detections_by_onnxruntime(model, images)
    assert_agree(actual, expected, BFLOAT16)


def test_float32_detections_are_close_to_those_of_onnxruntime(model, path):
    compiled = openvino_format.compile_model(
        openvino.Core().read_model(path), num_threads=1, precision="f32"
    )
    images = servers.images(1)
    outputs = compiled({"images": images})
    actual = runtimes.to_detections({x: outputs[x] for x in runtimes._OUTPUTS})
    expected = detections_by_onnxruntime(model, images)
    assert_agree(actual, expected, parity.Tolerance(iou=0.99, score=1e-4))


def test_images_of_a_batch_do_not_influence_each_other(path):
    detect_fn = runtimes.load_openvino(path, num_threads=1).detect_fn
    images = servers.images(3)
    batch = detect_fn(images)
    for row in range(len(images)):
        alone = detect_fn(images[row : row + 1])
        expected = type(batch)(*(values[row : row + 1] for values in batch))
        assert_agree(alone, expected, BFLOAT16)


def test_the_log_contains_the_precision_that_the_cpu_has(path, caplog):
    caplog.set_level(logging.INFO, logger="absl")
    runtimes.load_openvino(path, num_threads=1)
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    expected = "bf16" if "BF16" in capabilities else r"f(16|32)"
    assert re.search(rf"openvino \| {re.escape(path)} runs in {expected} ", caplog.text)


def test_metadata_of_the_onnx_file_is_kept(path):
    metadata = runtimes.load_openvino(path).metadata
    assert metadata == {"categories.json": CATEGORIES, "run": "ü < 3"}
    assert artifacts.load(path).names == {}


def test_missing_weights_are_an_error_with_the_path(path, tmp_path):
    file = tmp_path / "model_openvino.xml"
    with open(path, "rb") as source:
        file.write_bytes(source.read())
    with pytest.raises(errors.UserError, match=rf"{file} cannot be loaded"):
        artifacts.load(str(file))


def test_error_for_a_missing_package_contains_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(errors.MissingPackageError, match=r"'\.\[openvino\]'"):
        openvino_format.check_installed()
