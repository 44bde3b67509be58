"""One detector of bright boxes in all formats, and files that are not detectors."""

import json
import sys

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import errors, structures
from retinanet_tpu.serving import (
    artifacts,
    openvino_format,
    request_limits,
    tflite_format,
)

IMAGES = tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")
INPUTS = tf.TensorSpec([1, 64, 128, 3], tf.float32, name="inputs")
# In images of 30 x 40 px: y, x of the first bright pixel, and of the end.
BOXES_YXYX = np.float32([[3, 5, 20, 25], [0, 0, 30, 40], [10, 30, 28, 40]])
ROWS = [{"index": 0, "id": 3, "name": "cat"}, {"index": 2, "id": 90, "name": "emu"}]


class BrightDetector(tf.Module):
    """Detects bright pixels, as a category and as no category, before invalid rows."""

    def detect(self, images):
        is_bright = tf.reduce_min(tf.cast(images, tf.float32), axis=-1) > 127
        sides = []
        for axis in (2, 1):
            is_bright_line = tf.reduce_any(is_bright, axis=axis)
            indices = tf.cast(tf.range(tf.shape(is_bright_line)[1]), tf.float32)
            first = tf.reduce_min(tf.where(is_bright_line, indices, 9999.0), axis=-1)
            last = tf.reduce_max(tf.where(is_bright_line, indices + 1.0, 0.0), axis=-1)
            sides.append((first, last))
        (ymin, ymax), (xmin, xmax) = sides
        box_xyxy = tf.stack([xmin, ymin, xmax, ymax], axis=-1)
        ones = tf.ones_like(xmin)
        return {
            "boxes_xyxy": tf.stack([box_xyxy, box_xyxy, box_xyxy * 0.5], axis=1),
            "scores": tf.stack([ones * 0.75, ones * 0.5, ones], axis=1),
            "class_ids": tf.cast(tf.stack([ones * 90, -ones, ones], 1), tf.int32),
            "valid_detections": tf.cast(ones * 2, tf.int32),
        }

    @tf.function(input_signature=[IMAGES])
    def detect_all(self, images):
        return self.detect(images)

    @tf.function(input_signature=[INPUTS])
    def detect_fixed(self, inputs):
        return self.detect(inputs)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, 3], tf.float32, name="image"),
            tf.TensorSpec([], tf.int32, name="image_id"),
        ]
    )
    def detect_one(self, image, image_id):
        detections = {key: value[0] for key, value in self.detect(image[None]).items()}
        return {
            **detections,
            "boxes": detections.pop("boxes_xyxy"),
            "image_id": image_id,
        }


def write_categories(directory):
    directory.mkdir(exist_ok=True)
    content = json.dumps({"num_classes": 3, "categories": ROWS})
    (directory / "categories.json").write_text(content)


def convert_to_onnx(function, spec, path):
    tf2onnx = pytest.importorskip("tf2onnx")
    pytest.importorskip("onnxruntime")
    tf2onnx.convert.from_function(
        function, input_signature=[spec], opset=17, output_path=str(path)
    )


def convert_to_openvino(function, spec, path):
    pytest.importorskip("openvino")
    onnx = pytest.importorskip("onnx")
    convert_to_onnx(function, spec, path.with_suffix(".onnx"))
    model = onnx.load(path.with_suffix(".onnx"))
    path.with_suffix(".onnx").unlink()
    for extension, content in openvino_format.convert(model).items():
        path.with_suffix(extension).write_bytes(content)


def convert_to_tflite(function, module, path):
    traced = function.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced], module)
    path.write_bytes(converter.convert())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module", params=["saved", "older", "onnx", "tflite", "xml"])
def artifact(request, folder):
    detector = BrightDetector()
    path = folder / request.param
    if request.param == "saved":
        signatures = {
            "images": detector.detect_all,
            "serving_default": detector.detect_one,
        }
        tf.saved_model.save(detector, str(path), signatures)
        write_categories(path / "assets.extra")
    elif request.param == "older":
        tf.saved_model.save(
            detector, str(path), {"serving_default": detector.detect_one}
        )
        write_categories(path / "assets.extra")
    else:
        path.mkdir()
        write_categories(path)
        path = path / f"model.{request.param}"
    if path.suffix == ".onnx":
        convert_to_onnx(detector.detect_all, IMAGES, path)
    if path.suffix == ".xml":
        convert_to_openvino(detector.detect_all, IMAGES, path)
    if path.suffix == ".tflite":
        convert_to_tflite(detector.detect_fixed, detector, path)
    return artifacts.load(artifacts.find(str(path)))


def images_of(boxes_yxyx, size=(30, 40)):
    images = np.zeros([len(boxes_yxyx), *size, 3], np.uint8)
    for image, (ymin, xmin, ymax, xmax) in zip(
        images, boxes_yxyx.astype(int), strict=True
    ):
        image[ymin:ymax, xmin:xmax] = 255
    return images


@pytest.mark.long
def test_all_formats_return_the_same_detections_in_pixels_of_the_images(artifact):
    detections = artifact.detect(images_of(BOXES_YXYX))
    assert isinstance(detections, structures.Detections)
    assert all(isinstance(values, np.ndarray) for values in detections)
    assert detections.boxes_yxyx.shape == (3, 3, 4)
    # The network's input is 2.13 times as large and has whole pixels.
    atol = 0.5 if artifact.kind == "TFLite" else 0
    for column in range(2):
        boxes_yxyx = detections.boxes_yxyx[:, column]
        np.testing.assert_allclose(boxes_yxyx, BOXES_YXYX, atol=atol)
    np.testing.assert_array_equal(detections.scores, np.float32([[0.75, 0.5, 1]] * 3))
    np.testing.assert_array_equal(detections.classes, [[90, -1, 1]] * 3)
    np.testing.assert_array_equal(detections.num_detections, [2, 2, 2])
    assert detections.classes.dtype == detections.num_detections.dtype == np.int32


def test_boxes_of_a_resized_image_end_at_its_edge(artifact):
    # TFLite's input is 64 px high; the image covers 32 px of its width.
    size = (256, 128)
    detections = artifact.detect(images_of(np.array([[0, 0, *size]]), size))
    np.testing.assert_array_equal(detections.boxes_yxyx[0, 0], [0, 0, *size])


def test_no_images_give_no_detections(artifact):
    detections = artifact.detect(np.zeros([0, 30, 40, 3], np.uint8))
    assert detections.boxes_yxyx.shape == (0, 0, 4)
    assert detections.num_detections.shape == (0,)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros([2, 30, 40, 3], np.float32),
        np.zeros([30, 40, 3], np.uint8),
        np.zeros([1, 30, 40, 4], np.uint8),
        np.zeros([1, 0, 40, 3], np.uint8),
    ],
    ids=lambda images: f"{images.dtype} {images.shape}",
)
def test_arrays_that_are_not_images_are_rejected(artifact, images):
    with pytest.raises(ValueError, match=r"The images are (float32|uint8) \[.*give"):
        artifact.detect(images)


def test_selected_detections_have_no_padding_and_always_a_category(artifact):
    detections = artifact.detect(images_of(BOXES_YXYX))
    one = artifacts.select_image(detections, 1)
    assert one.num_detections == 1 and one.classes.tolist() == [90]
    np.testing.assert_allclose(one.boxes_yxyx, BOXES_YXYX[1:2], atol=0.5)
    assert artifacts.select_image(detections, 1, min_score=0.75).num_detections == 1
    nothing = artifacts.select_image(detections, 1, min_score=0.76)
    assert nothing.boxes_yxyx.shape == (0, 4)


def test_names_are_those_of_the_export_or_empty(artifact):
    assert artifact.names == {3: "cat", 90: "emu"}
    assert artifact.categories.num_classes == 3
    assert artifacts.Artifact("", "ONNX", None, None).names == {}


def write_onnx(path, **metadata):
    """Writes a model that detects nothing."""
    onnx = pytest.importorskip("onnx")
    make, types = onnx.helper, onnx.TensorProto
    image_type = make.make_tensor_value_info("images", types.UINT8, [*"bhw", 3])
    arrays = {
        "boxes_xyxy": np.zeros([1, 0, 4], np.float32),
        "scores": np.zeros([1, 0], np.float32),
        "class_ids": np.zeros([1, 0], np.int32),
        "valid_detections": np.zeros([1], np.int32),
    }
    values = [onnx.numpy_helper.from_array(x) for x in arrays.values()]
    outputs = [
        make.make_tensor_value_info(name, value.data_type, value.dims)
        for name, value in zip(arrays, values, strict=True)
    ]
    nodes = [
        make.make_node("Constant", [], [name], value=value)
        for name, value in zip(arrays, values, strict=True)
    ]
    graph = make.make_graph(nodes, "nothing", [image_type], outputs)
    opsets = [make.make_opsetid("", 17)]
    model = make.make_model(graph, opset_imports=opsets, ir_version=8)
    make.set_model_props(model, metadata)
    onnx.save(model, str(path))


def test_an_onnx_file_alone_has_the_names_in_its_metadata(tmp_path):
    pytest.importorskip("onnxruntime")
    path = str(tmp_path / "model.onnx")
    text = json.dumps({"num_classes": 3, "categories": ROWS})
    write_onnx(path, **{"categories.json": text})
    assert artifacts.load(path).names == {3: "cat", 90: "emu"}
    (tmp_path / "categories.json").write_text(text.replace('"cat"', '"dog"'))
    assert artifacts.load(path).names == {3: "dog", 90: "emu"}  # The file is first.
    (tmp_path / "categories.json").unlink()
    write_onnx(path)
    assert artifacts.load(path).categories is None
    write_onnx(path, **{"categories.json": "{}"})
    with pytest.raises(errors.UserError, match=r"json in .*model\.onnx needs"):
        artifacts.load(path)


def test_files_run_with_the_given_number_of_threads(artifact):
    if artifact.kind == "SavedModel":
        with pytest.raises(ValueError, match="already runs with other threads than 3"):
            artifacts.load(artifact.path, num_threads=3)
    else:
        one = artifacts.load(artifact.path, num_threads=1)
        detections = one.detect(images_of(BOXES_YXYX))
        np.testing.assert_array_equal(detections.num_detections, [2, 2, 2])


def test_corrupt_saved_model_below_brackets_is_rejected_for_its_path(tmp_path):
    directory = tmp_path / "run[1]"
    touch(directory / "saved_model.pb")
    with pytest.raises(errors.UserError, match=r"'\[1\]' as a pattern; use a path"):
        artifacts.load(str(directory))


class LimitedDetector(BrightDetector):
    """A detector that accepts two images of 1,200 pixels in a request."""

    limits = request_limits.Limits(2, 1200)

    @tf.function(input_signature=[IMAGES])
    def detect_all(self, images):
        return self.detect(self.limits.check_pixels(self.limits.check_batch(images)))


def test_images_beyond_the_request_limit_are_sent_in_several_requests(tmp_path):
    detector = LimitedDetector()
    tf.saved_model.save(detector, str(tmp_path), {"images": detector.detect_all})
    artifact = artifacts.load(str(tmp_path))
    boxes_yxyx = np.concatenate([BOXES_YXYX, BOXES_YXYX[::-1], BOXES_YXYX[:1]])
    detections = artifact.detect(images_of(boxes_yxyx))
    np.testing.assert_array_equal(detections.boxes_yxyx[:, 0], boxes_yxyx)
    message = r"^An image has more pixels .*max_image_pixels = 1200.*width: 31 40\.$"
    with pytest.raises(errors.UserError, match=message):
        artifact.detect(np.zeros([3, 31, 40, 3], np.uint8))


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_newest_version_with_a_model_is_found(tmp_path):
    versions = ("1700000001", "1700000002", "17000000033", "temp-1700000009")
    touch(*(tmp_path / version / "saved_model.pb" for version in versions))
    (tmp_path / "1700000004").mkdir()
    newest = str(tmp_path / "1700000002")
    assert artifacts.find(str(tmp_path)) == newest
    assert artifacts.find(newest) == newest
    touch(tmp_path / "1700000003" / "model.tflite")
    assert artifacts.find(f"{tmp_path}/") == f"{tmp_path}/1700000003/model.tflite"


def test_saved_model_is_preferred_and_several_files_are_ambiguous(tmp_path):
    files = [tmp_path / "1700000001" / n for n in ("model.onnx", "model.tflite")]
    touch(*files)
    for path in (tmp_path, tmp_path / "1700000001"):
        with pytest.raises(
            ValueError, match=r"is ambiguous: .* has model.onnx, model.tflite"
        ):
            artifacts.find(str(path))
    assert artifacts.find(str(files[0])) == str(files[0])
    touch(tmp_path / "1700000001" / "saved_model.pb")
    assert artifacts.find(str(tmp_path)) == str(tmp_path / "1700000001")


def test_path_without_a_model_is_rejected(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=r"no saved_model.pb, .* contains checkpoints"):
        artifacts.find(str(tmp_path))
    with pytest.raises(ValueError, match=r"--model=.*absent .* contains nothing"):
        artifacts.find(str(tmp_path / "absent"))
    touch(tmp_path / "model.h5")
    with pytest.raises(ValueError, match=r"model.h5 is a file, but no .onnx"):
        artifacts.find(str(tmp_path / "model.h5"))


def test_valid_saved_model_below_brackets_is_rejected(tmp_path):
    path = str(tmp_path / "run[1]")
    module = tf.Module()
    module.variable = tf.Variable(1.0)
    tf.saved_model.save(module, path)
    with pytest.raises(errors.UserError, match=r"--model is .* as a pattern"):
        artifacts.load(artifacts.find(path))


def test_saved_model_with_other_signatures_is_rejected(tmp_path):
    module = tf.Module()
    module.f = tf.function(lambda images: {"boxes": images})
    signature = module.f.get_concrete_function(
        tf.TensorSpec([1, 64, 64, 3], tf.float32, name="images")
    )
    tf.saved_model.save(module, str(tmp_path / "a"), {"images": signature})
    message = r"maps images float32 \[1, 64, 64, 3\] to boxes, where images uint8 \[\?"
    with pytest.raises(ValueError, match=message):
        artifacts.load(str(tmp_path / "a"))
    tf.saved_model.save(module, str(tmp_path / "b"), {"logits": signature})
    with pytest.raises(
        ValueError, match=r"neither signature images nor .* only logits"
    ):
        artifacts.load(str(tmp_path / "b"))


@pytest.mark.parametrize(
    "name", ["saved_model.pb", "model.onnx", "model.tflite", "model.xml"]
)
def test_corrupt_or_missing_model_is_an_error_with_its_path(tmp_path, name):
    if name.endswith(".onnx"):
        pytest.importorskip("onnxruntime")
    if name.endswith(".xml"):
        pytest.importorskip("openvino")
        (tmp_path / "model.bin").write_bytes(b"no weights")
    path = tmp_path if name == "saved_model.pb" else tmp_path / name
    with pytest.raises(ValueError, match=rf"{path} cannot be loaded: "):
        artifacts.load(str(path))
    (tmp_path / name).write_bytes(b"no model")
    with pytest.raises(ValueError, match=rf"{path} cannot be loaded: "):
        artifacts.load(str(path))


def test_a_model_that_the_runtime_cannot_prepare_is_an_error(tmp_path, monkeypatch):
    class Interpreter:
        def allocate_tensors(self):
            raise RuntimeError("failed to create XNNPACK runtime")

    monkeypatch.setattr(
        tflite_format, "make_interpreter", lambda *_, **__: Interpreter()
    )
    path = tmp_path / "model.tflite"
    path.write_bytes(b"")
    with pytest.raises(
        errors.UserError, match=r"model.tflite cannot be loaded: .*XNNPACK"
    ):
        artifacts.load(str(path))


@pytest.mark.parametrize("ending", ["onnx", "tflite", "xml"])
def test_file_that_is_not_a_detector_is_rejected(tmp_path, ending):
    path = tmp_path / f"model.{ending}"
    other = tf.function(lambda x: {"y": x + 1.0}, input_signature=[INPUTS])
    if ending == "onnx":
        convert_to_onnx(other, INPUTS, path)
    elif ending == "xml":
        convert_to_openvino(other, INPUTS, path)
    else:
        convert_to_tflite(other, tf.Module(), path)
    message = rf"model.{ending} maps \w+ float32 \[1, 64, 128, 3\] to \w+, where"
    with pytest.raises(ValueError, match=message):
        artifacts.load(str(path))


def test_error_for_a_tensorrt_model_contains_the_tool_that_builds_an_engine(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    node = onnx.helper.make_node(
        "EfficientNMS_TRT", ["x"], ["y"], domain="TRT", name="nms"
    )
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1])
        for name in "xy"
    ]
    graph = onnx.helper.make_graph([node], "raw", ends[:1], ends[1:])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model_tensorrt.onnx")
    with pytest.raises(ValueError, match=r"only TensorRT.*build_engine\.py"):
        artifacts.load(artifacts.find(str(tmp_path)))


@pytest.mark.parametrize(
    ("file", "module", "extra"),
    [("model.onnx", "onnxruntime", "onnx"), ("model.xml", "openvino", "openvino")],
)
def test_error_for_a_missing_runtime_contains_the_extra(
    tmp_path, monkeypatch, file, module, extra
):
    monkeypatch.setitem(sys.modules, module, None)
    touch(tmp_path / file)
    message = rf"{file} requires {module}, .* pip install -e '\.\[{extra}\]'"
    with pytest.raises(errors.MissingPackageError, match=message):
        artifacts.load(str(tmp_path / file))
