import dataclasses
import json
import os
import pathlib
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import photo_folder
import tool_processes
import video_clips
import view_values
from retinanet_tpu import detector, errors, predict, structures
from retinanet_tpu.data import image_files
from retinanet_tpu.evaluation import visualize
from retinanet_tpu.serving import artifacts, multi_view

IMAGES = tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")


class HalfDetector(tf.Module):
    """Detects the left half of any image, the right half, and one of no category."""

    def __init__(self):
        super().__init__()
        self.score = tf.Variable(0.75)

    @tf.function(input_signature=[IMAGES])
    def serve(self, images):
        size = tf.cast(tf.shape(images), tf.float32)
        height, width = size[1], size[2]
        left = [0.0, 0.0, width / 2, height]
        right = [width / 2, 0.0, width, height]
        padding = tf.fill([97, 4], size[0])
        boxes = tf.concat([tf.stack([left, right, right]), padding], axis=0)
        scores = tf.concat([[self.score, 0.25, 0.25], tf.ones([97])], axis=0)
        ids = tf.concat([[3, 90, -1], tf.fill([97], 3)], axis=0)
        rows = tf.shape(images)[0]
        return {
            "boxes_xyxy": tf.tile(boxes[None], [rows, 1, 1]),
            "scores": tf.tile(scores[None], [rows, 1]),
            "class_ids": tf.tile(ids[None], [rows, 1]),
            "valid_detections": tf.fill([rows], 3),
        }


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("export") / "1700000000"
    module = HalfDetector()
    tf.saved_model.save(module, str(directory), {"images": module.serve})
    rows = [{"index": 0, "id": 3, "name": "cat"}, {"index": 1, "id": 90, "name": "emu"}]
    (directory / "assets.extra").mkdir()
    content = json.dumps({"num_classes": 2, "categories": rows})
    (directory / "assets.extra" / "categories.json").write_text(content)
    return str(directory)


@pytest.fixture(scope="module")
def artifact(saved_model):
    return artifacts.load(saved_model)


@pytest.fixture
def photos(tmp_path):
    return photo_folder.write(tmp_path / "photos")


def read_json(path):
    return json.loads(pathlib.Path(path).read_text())


@pytest.mark.long
def test_command_writes_results_names_and_drawings(saved_model, photos, tmp_path):
    export_dir = os.path.dirname(saved_model)
    output_dir = tmp_path / "output"
    flags = (
        f"--model={export_dir}",
        f"--images={photos}",
        f"--output_dir={output_dir}",
        "--min_score=0.3",
    )
    done = tool_processes.run_python("-m", "retinanet_tpu.predict", *flags)
    assert done.returncode == 0, done.stderr
    assert "skipped" in done.stderr and "broken.jpg" in done.stderr
    assert "SavedModel" in done.stderr
    assert "2/3 images" in done.stderr and "images/s" in done.stderr
    assert sorted(os.listdir(output_dir)) == [
        "a.jpg",
        "b.png",
        "detections.json",
        "images.json",
    ]
    images = read_json(output_dir / "images.json")
    assert images == [
        {"id": 1, "file_name": str(photos / "a.jpg"), "width": 80, "height": 60},
        {"id": 2, "file_name": str(photos / "b.png"), "width": 30, "height": 50},
    ]
    assert read_json(output_dir / "detections.json") == [
        {"image_id": 1, "category_id": 3, "bbox": [0, 0, 40, 60], "score": 0.75},
        {"image_id": 2, "category_id": 3, "bbox": [0, 0, 15, 50], "score": 0.75},
    ]


def test_exit_code_is_1_if_no_file_could_be_read(
    saved_model, photos, tmp_path, monkeypatch
):
    values = {"model": saved_model, "output_dir": str(tmp_path / "output")}
    values |= {"images": [str(photos / "broken.jpg")], "min_score": 0.3}
    values |= {"batch_size": 8, "frame_step": 1, **view_values.NO_VIEWS}
    monkeypatch.setattr(predict, "FLAGS", types.SimpleNamespace(**values))
    more = str(photos / "notes.txt")
    assert predict.main([more]) == 1
    assert read_json(tmp_path / "output" / "detections.json") == []
    assert predict.main([more, str(photos / "a.jpg")]) == 0


def test_low_min_score_keeps_weak_detections_but_no_padding_and_no_category(
    artifact, photos, tmp_path
):
    paths = [str(photos / "a.jpg")]
    output_dir = tmp_path / "output"
    for min_score, ids in ((0.2, [3, 90]), (0.25, [3, 90]), (0.3, [3]), (0.9, [])):
        predict.predict_files(artifact, paths, str(output_dir), min_score=min_score)
        records = read_json(output_dir / "detections.json")
        assert [record["category_id"] for record in records] == ids


@pytest.mark.parametrize(
    ("threshold", "min_score", "expected"),
    [
        (None, None, (1, 2)),
        (0.8, None, (0, 2)),
        (0.2, None, (2, 2)),
        (0.2, 0.7, (1, 1)),
        (0.8, 0.0, (2, 2)),
    ],
)
def test_drawings_show_the_detections_from_the_threshold_on(
    artifact, photos, tmp_path, monkeypatch, threshold, min_score, expected
):
    drawn = []

    def draw(image, boxes_yxyx, scores, classes, *, names, min_score):
        drawn.extend(score for score in scores if score >= min_score)
        return image

    monkeypatch.setattr(visualize, "draw_detections", draw)
    predict.predict_files(
        dataclasses.replace(artifact, threshold=threshold),
        [str(photos / "a.jpg")],
        str(tmp_path / "output"),
        min_score=min_score,
    )
    written = read_json(tmp_path / "output" / "detections.json")
    assert (len(drawn), len(written)) == expected


def test_images_of_mixed_sizes_keep_their_ids_and_their_order(artifact, tmp_path):
    sizes = [(20, 10), (30, 10), (20, 10), (40, 10), (30, 10), (20, 10), (20, 10)]
    for number, size in enumerate(sizes):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"no image")
    paths = image_files.find([str(tmp_path)])
    output_dir = tmp_path / "output"
    num_read = predict.predict_files(
        artifact, paths, str(output_dir), min_score=0.3, batch_size=2
    )
    assert num_read == 6
    images, records = (
        read_json(output_dir / name) for name in ("images.json", "detections.json")
    )
    assert [image["id"] for image in images] == [1, 2, 3, 5, 6, 7]
    assert [record["image_id"] for record in records] == [1, 2, 3, 5, 6, 7]
    for image, record in zip(images, records, strict=True):
        width, _ = sizes[image["id"] - 1]
        assert image["file_name"] == f"{tmp_path}/{image['id'] - 1}.png"
        assert image["width"] == width and record["bbox"] == [0, 0, width / 2, 10]


def test_image_that_the_model_rejects_is_logged_and_skipped(
    artifact, photos, tmp_path, caplog
):
    def detect(images):
        if images.shape[1] == 60:
            raise errors.UserError("An image has more pixels than this export accepts")
        return artifact.detect(images)

    limited = dataclasses.replace(artifact, detect_fn=detect)
    paths = image_files.find([str(photos)])
    output_dir = tmp_path / "output"
    assert predict.predict_files(limited, paths, str(output_dir)) == 1
    assert [image["id"] for image in read_json(output_dir / "images.json")] == [2]
    assert f"skipped {photos / 'a.jpg'}: An image has more pixels" in caplog.text


def test_the_flags_of_views_reach_the_model(photos, tmp_path, monkeypatch):
    images = []

    def detect(batch):
        images.extend(batch)
        return structures.Detections(
            np.zeros([len(batch), 1, 4], np.float32),
            np.zeros([len(batch), 1], np.float32),
            np.zeros([len(batch), 1], np.int32),
            np.zeros([len(batch)], np.int32),
        )

    fake = artifacts.Artifact("model.onnx", "ONNX", None, detect)
    monkeypatch.setattr(detector, "load_artifact", lambda *_, **__: fake)
    output = {"model": "model.onnx", "output_dir": str(tmp_path / "output")}
    photo = str(photos / "a.jpg")
    for values, count in (({}, 1), ({"flip": True, "tile_size": 60}, 4)):
        set_flags(monkeypatch, **output, **values)
        assert predict.main([photo]) == 0
        assert len(images) == count
        images.clear()
    set_flags(monkeypatch, **output, tile_size=1, tile_overlap=0.0, flip=True)
    monkeypatch.setattr(multi_view, "_MAX_VIEWS", 100)
    # One error ends the command, instead of one warning for each image.
    with pytest.raises(errors.UserError, match=r"a\.jpg: .* 9600 views"):
        predict.main([photo, str(photos / "b.png")])


def test_drawing_has_the_size_of_the_image_and_differs_from_it(
    artifact, photos, tmp_path
):
    paths = [str(photos / "b.png")]
    output_dir = tmp_path / "output"
    assert predict.predict_files(artifact, paths, str(output_dir)) == 1
    drawing = image_files.load(str(output_dir / "b.png"))
    image = image_files.load(paths[0])
    assert drawing.shape == image.shape
    assert (drawing != image).any()


def test_images_of_the_same_name_have_separate_drawings(artifact, photos, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("a.jpg", "a.bmp"):
        Image.new("RGB", (10, 10)).save(other / name)
    paths = [str(photos / "a.jpg"), str(other / "a.jpg"), str(other / "a.bmp")]
    output_dir = tmp_path / "output"
    assert predict.predict_files(artifact, paths, str(output_dir)) == 3
    assert len([name for name in os.listdir(output_dir) if name.endswith(".jpg")]) == 3


def test_images_are_never_overwritten(artifact, photos):
    before = (photos / "a.jpg").read_bytes()
    with pytest.raises(ValueError, match="would overwrite"):
        predict.predict_files(artifact, [str(photos / "a.jpg")], f"{photos}/../photos/")
    assert (photos / "a.jpg").read_bytes() == before


@pytest.mark.parametrize("is_input_the_link", [True, False])
def test_images_are_not_overwritten_through_a_link(
    artifact, photos, tmp_path, is_input_the_link
):
    image = photos / "a.jpg"
    before = image.read_bytes()
    link = tmp_path / "links" / "a.jpg"
    link.parent.mkdir()
    link.symlink_to(image)
    path, folder = (link, photos) if is_input_the_link else (image, link.parent)
    with pytest.raises(errors.UserError, match="would overwrite"):
        predict.predict_files(artifact, [str(path)], str(folder))
    assert image.read_bytes() == before


def set_flags(monkeypatch, **values):
    values = {
        "images": [],
        "min_score": None,
        "batch_size": 8,
        "frame_step": 1,
        **view_values.NO_VIEWS,
        **values,
    }
    monkeypatch.setattr(predict, "FLAGS", types.SimpleNamespace(**values))


def test_images_and_videos_of_a_folder_are_read(
    saved_model, photos, tmp_path, monkeypatch, caplog
):
    pytest.importorskip("av")
    video_clips.write(photos / "clip.mov", video_clips.gray_images(5))
    output_dir = tmp_path / "output"
    set_flags(
        monkeypatch,
        model=saved_model,
        images=[str(photos)],
        output_dir=str(output_dir),
        frame_step=2,
    )
    with caplog.at_level("INFO", logger="absl"):
        assert predict.main([]) == 0
    assert caplog.text.count("drawings have scores from 0.30") == 1
    names = ["a.jpg", "b.png", "clip.json", "clip.mp4", "detections.json"]
    assert sorted(os.listdir(output_dir)) == [*names, "images.json"]
    assert [image["id"] for image in read_json(output_dir / "images.json")] == [1, 2]
    frames = read_json(output_dir / "clip.json")["frames"]
    assert [frame["index"] for frame in frames] == [0, 2, 4]
    boxes = [entry["bbox"] for entry in frames[0]["detections"]]
    assert boxes == [[0, 0, 16, 24], [16, 0, 16, 24]]


def test_videos_that_cannot_be_written_are_errors_before_the_model_is_loaded(
    photos, monkeypatch
):
    clip = photos / "clip.mp4"
    clip.write_bytes(b"")
    set_flags(monkeypatch, model="absent", output_dir=str(photos))
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "av", None)
        with pytest.raises(errors.MissingPackageError, match="requires av"):
            predict.main([str(clip)])
    pytest.importorskip("av")
    with pytest.raises(errors.UserError, match="would overwrite"):
        predict.main([str(clip)])
