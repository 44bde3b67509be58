"""Tests the Python interface with artifacts that need no network."""

import json
import re

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import repository
import retinanet_tpu
from retinanet_tpu import detector, errors, structures
from retinanet_tpu.data import category_map
from retinanet_tpu.serving import artifacts

CATEGORIES = category_map.Categories(2, (category_map.Category(0, 3, "cat"),))


def detect_sizes(images):
    """Detects each whole image with score .75, and a point of class 90 with .25."""
    count, height, width, _ = images.shape
    assert count <= 2
    boxes = np.array([[0, 0, height, width], [1, 1, 1, 1], [0, 0, 0, 0]], np.float32)
    values = (
        boxes,
        np.array([0.75, 0.25, 0.0], np.float32),
        np.array([3, 90, 0], np.int32),
        np.int32(2),
    )
    return structures.Detections(*(np.stack([value] * count) for value in values))


@pytest.fixture
def model():
    artifact = artifacts.Artifact("here", "ONNX", CATEGORIES, detect_sizes)
    return detector.Detector(artifact)


def image(height, width):
    return np.full([height, width, 3], 128, np.uint8)


def test_one_image_has_one_result(model):
    boxes_yxyx, scores, class_ids, names = model(image(4, 6))
    np.testing.assert_array_equal(boxes_yxyx, [[0, 0, 4, 6], [1, 1, 1, 1]])
    np.testing.assert_array_equal(scores, np.float32([0.75, 0.25]))
    assert class_ids.tolist() == [3, 90] and names == ["cat", "90"]
    assert (model.kind, model.path, model.names) == ("ONNX", "here", {3: "cat"})


def test_a_list_has_results_in_its_order(model, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(image(5, 9)).save(path)
    sizes = [(4, 6), (2, 3), (4, 6), (4, 6), (2, 3), (8, 8)]
    images = [image(*size) for size in sizes] + [path, str(path)]
    results = model(images, batch_size=2)
    found_sizes = [tuple(result.boxes_yxyx[0, 2:]) for result in results]
    assert found_sizes == [*sizes, (5, 9), (5, 9)]
    assert [len(x) for x in (model([]), model(iter(images[:2])))] == [0, 2]
    assert model(path).boxes_yxyx[0].tolist() == [0, 0, 5, 9]


def test_min_score_is_the_lowest_score(model):
    for min_score, count in ((0.25, 2), (0.26, 1), (0.8, 0)):
        result = model(image(4, 6), min_score=min_score)
        assert len(result.names) == len(result.scores) == count
        assert result.boxes_yxyx.shape == (count, 4)


def test_a_detector_with_views_merges_their_detections(model):
    viewed = model.with_views(flip=True, scales=[1, 0.5], iou_threshold=0.3)
    assert viewed is not model and viewed.names == model.names
    assert viewed(image(4, 6)).boxes_yxyx[0].tolist() == [0, 0, 4, 6]
    tiled = model.with_views(tile_size=4, tile_overlap=0, merge="nms", max_detections=2)
    assert tiled(image(4, 8)).boxes_yxyx.tolist() == [[0, 0, 4, 4], [0, 4, 4, 8]]
    with pytest.raises(errors.UserError, match="tile_size is -1; it must be >= 1"):
        model.with_views(tile_size=-1)


def test_a_drawing_has_the_size_of_the_image_and_leaves_it_unchanged(model):
    pixels = image(60, 80)
    drawing = model.draw(pixels, model(pixels))
    assert drawing.shape == pixels.shape and (drawing != pixels).any()
    assert (pixels == 128).all()
    undrawn = model.draw(pixels, model(pixels), min_score=0.8)
    np.testing.assert_array_equal(undrawn, pixels)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (image(4, 6) / 255, r"float64 \[4, 6, 3\]; expected uint8 .* \(image \* 255\)"),
        (image(4, 6).astype(np.float32), r"float32 .* 0\.\.255, image\.astype"),
        (image(4, 6).astype(np.int64), r"int64 .* 0\.\.255, image\.astype"),
        (image(4, 6)[None], r"uint8 \[1, 4, 6, 3\]; .* give list\(images\)"),
        (image(4, 6)[..., 0], r"uint8 \[4, 6\]; .* np\.stack"),
        (image(4, 6)[..., :1], r"uint8 \[4, 6, 1\]; .* np\.repeat"),
        (np.zeros([4, 6, 4], np.uint8), r"uint8 \[4, 6, 4\]; .* image\[\.\.\., :3\]"),
        (np.zeros([3, 4, 6], np.uint8), r"uint8 \[3, 4, 6\]; .* last axis"),
        (np.zeros([0, 6, 3], np.uint8), r"uint8 \[0, 6, 3\]; .* not empty"),
        (np.zeros([3], np.uint8), r"uint8 \[3\]; .* height, width and channels"),
        (np.zeros([0, 6, 3]), r"float64 \[0, 6, 3\]; .* not empty"),
        (7, r"int; give a NumPy array uint8 \[H, W, 3\], RGB, or the path of a file"),
        ("/no/image.jpg", r"/no/image\.jpg cannot be read: No such file"),
    ],
)
def test_an_image_that_is_none_is_an_error_with_advice(model, wrong, message):
    with pytest.raises(errors.UserError, match=message):
        model(wrong)
    with pytest.raises(errors.UserError, match=message) as error:
        model([image(4, 6), wrong])
    assert "position 1" in str(error.value) or isinstance(wrong, str)


def test_a_file_that_is_no_image_is_an_error(model, tmp_path):
    (tmp_path / "a.jpg").write_text("text")
    for path, reason in ((tmp_path / "a.jpg", "as an image"), (tmp_path, "directory")):
        with pytest.raises(errors.UserError, match=f"cannot be read.*{reason}"):
            model([path])


def test_a_wrong_batch_size_is_an_error(model):
    with pytest.raises(errors.UserError, match="batch_size is 0; it must be >= 1"):
        model([image(4, 6)], batch_size=0)


def test_an_image_that_the_export_rejects_is_named():
    def reject(images):
        raise errors.UserError("An image has too many pixels.")

    rejecting = detector.Detector(artifacts.Artifact("", "ONNX", None, reject))
    with pytest.raises(errors.UserError, match=r"^An image has too many pixels"):
        rejecting(image(4, 6))
    with pytest.raises(errors.UserError, match=r"^Images at 0, 1: An image has too"):
        rejecting([image(4, 6)] * 2)


def test_the_snippet_of_the_guide_runs(tmp_path, monkeypatch, capsys):
    def detect(images):
        rows = tf.shape(images)[0]
        return {
            "boxes_xyxy": tf.ones([rows, 1, 4]) * [1.0, 2.0, 3.0, 4.0],
            "scores": tf.ones([rows, 1]),
            "class_ids": tf.ones([rows, 1], tf.int32),
            "valid_detections": tf.ones([rows], tf.int32),
        }

    spec = tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")
    signature = tf.function(detect, input_signature=[spec])
    export = tmp_path / "run1" / "export" / "latest" / "1700000000"
    tf.saved_model.save(tf.Module(), str(export), {"images": signature})
    (export / "assets.extra").mkdir()
    content = {"num_classes": 1, "categories": [{"index": 0, "id": 1, "name": "emu"}]}
    (export / "assets.extra" / category_map.FILE_NAME).write_text(json.dumps(content))
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(image(50, 60)).save(tmp_path / name)
    guide = (repository.ROOT / "docs/guides/export.md").read_text()
    (snippet,) = re.findall(r"```python\n(import retinanet_tpu\n.*?)```", guide, re.S)
    names = {}
    monkeypatch.chdir(tmp_path)
    exec(snippet, names)
    assert (names["model"].kind, names["model"].names) == ("SavedModel", {1: "emu"})
    assert tmp_path / names["model"].path == export
    assert names["second"].boxes_yxyx.tolist() == [[2, 1, 4, 3]]
    assert capsys.readouterr().out == "emu 1.0 [2. 1. 4. 3.]\n"
    assert Image.open("drawing.png").size == (60, 50)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("absent", r"absent does not exist; give an export, .* or a checkpoint such"),
        ("empty", r"empty contains no saved_model.pb, .*nothing.* no config\.gin"),
        ("notes.txt", r"notes\.txt is a file, but no \.onnx, \.tflite or \.xml"),
        ("empty/model.ckpt-4", r"empty has no config\.gin, .* settings of .*ckpt-4"),
        ("run", r"No checkpoint in .*run; train first"),
        ("run/model.ckpt-4", r"No checkpoint in .*run; train first"),
        ("old/model.ckpt-4.index", r"No complete checkpoint at .*4; .* steps 2, 6\."),
    ],
)
def test_a_path_without_a_model_is_an_error(tmp_path, path, message):
    for folder in ("empty", "run", "old"):
        (tmp_path / folder).mkdir()
    (tmp_path / "notes.txt").touch()
    for name in ("run/config.gin", "old/config.gin"):
        (tmp_path / name).touch()
    for step in (2, 6):
        for ending in ("index", "data-00000-of-00001"):
            (tmp_path / "old" / f"model.ckpt-{step}.{ending}").touch()
    with pytest.raises(errors.UserError, match=message) as error:
        retinanet_tpu.load(tmp_path / path)
    assert isinstance(error.value, FileNotFoundError) == (path != "notes.txt")
