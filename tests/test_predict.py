import json
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from retinanet_tpu import predict

IMAGE = tf.TensorSpec([None, None, 3], tf.float32)
IMAGE_ID = tf.TensorSpec([], tf.int32)


class HalfFinder(tf.Module):
    """Finds the left half of any picture, less surely the right, then no category."""

    def __init__(self):
        super().__init__()
        self.score = tf.Variable(0.75)

    @tf.function(input_signature=[IMAGE, IMAGE_ID])
    def serve(self, image, image_id):
        size = tf.cast(tf.shape(image), tf.float32)
        height, width = size[0], size[1]
        left, right = [0.0, 0.0, width / 2, height], [width / 2, 0.0, width, height]
        boxes = [left, right, right]
        rubbish = tf.fill([97, 4], image[0, 0, 0])
        return {
            "image_id": image_id,
            "boxes": tf.concat([tf.stack(boxes), rubbish], axis=0),
            "scores": tf.concat([[self.score, 0.25, 0.25], tf.ones([97])], axis=0),
            "class_ids": tf.concat([[3, 90, -1], tf.fill([97], 3)], axis=0),
            "valid_detections": tf.constant(3),
        }


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("export") / "1700000000"
    module = HalfFinder()
    tf.saved_model.save(module, str(directory), {"serving_default": module.serve})
    rows = [{"index": 0, "id": 3, "name": "cat"}, {"index": 1, "id": 90, "name": "emu"}]
    (directory / "assets.extra").mkdir()
    content = json.dumps({"num_classes": 2, "categories": rows})
    (directory / "assets.extra" / "categories.json").write_text(content)
    return str(directory)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (80, 60), (90, 120, 30)).save(folder / "a.jpg")
    Image.new("L", (30, 50), 128).save(folder / "b.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("no picture either")
    return folder


def names_of(paths):
    return [os.path.basename(path) for path in paths]


def read_json(path):
    return json.loads(pathlib.Path(path).read_text())


def command(*arguments):
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    return subprocess.run(
        [sys.executable, "-m", "retinanet_tpu.predict", *map(str, arguments)],
        cwd=pathlib.Path(__file__).parent.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_writes_results_names_and_drawings(saved_model, photos, tmp_path):
    export_dir, found = os.path.dirname(saved_model), tmp_path / "found"
    done = command(
        *(f"--saved_model={export_dir}", f"--images={photos}", f"--output_dir={found}")
    )
    assert done.returncode == 0, done.stderr
    assert "skipped" in done.stderr and "broken.jpg" in done.stderr
    assert "2 of 3 images" in done.stderr and "images/s" in done.stderr
    assert sorted(os.listdir(found)) == [
        "a.jpg",
        "b.png",
        "detections.json",
        "images.json",
    ]
    images = read_json(found / "images.json")
    assert images == [
        {"id": 1, "file_name": str(photos / "a.jpg"), "width": 80, "height": 60},
        {"id": 2, "file_name": str(photos / "b.png"), "width": 30, "height": 50},
    ]
    assert read_json(found / "detections.json") == [
        {"image_id": 1, "category_id": 3, "bbox": [0, 0, 40, 60], "score": 0.75},
        {"image_id": 2, "category_id": 3, "bbox": [0, 0, 15, 50], "score": 0.75},
    ]


def test_exit_code_says_that_no_file_could_be_read(
    saved_model, photos, tmp_path, monkeypatch
):
    values = {"saved_model": saved_model, "output_dir": str(tmp_path / "found")}
    values |= {"images": [str(photos / "broken.jpg")], "min_score": 0.3}
    monkeypatch.setattr(predict, "FLAGS", types.SimpleNamespace(**values))
    more = str(photos / "notes.txt")
    assert predict.main(["predict", more]) == 1
    assert read_json(tmp_path / "found" / "detections.json") == []
    assert predict.main(["predict", more, str(photos / "a.jpg")]) == 0


def test_low_min_score_keeps_weak_detections_but_no_padding_and_no_category(
    saved_model,
):
    model = predict.load_model(saved_model)
    image = np.zeros([60, 80, 3], np.uint8)
    found = predict.predict_image(model, image, min_score=0.2)
    np.testing.assert_array_equal(found.boxes_yxyx, [[0, 0, 60, 40], [0, 40, 60, 80]])
    np.testing.assert_array_equal(found.scores, np.float32([0.75, 0.25]))
    np.testing.assert_array_equal(found.classes, [3, 90])
    assert found.num_detections == 2
    assert predict.predict_image(model, image, min_score=0.9).boxes_yxyx.shape == (0, 4)


def test_drawing_has_the_size_of_the_photo_and_differs_from_it(
    saved_model, photos, tmp_path
):
    model, found = predict.load_model(saved_model), tmp_path / "found"
    paths = [str(photos / "b.png")]
    assert predict.predict_files(model, paths, str(found), names={3: "cat"}) == 1
    drawing, photo = (
        predict.load_image(str(found / "b.png")),
        predict.load_image(paths[0]),
    )
    assert drawing.shape == photo.shape
    assert (drawing != photo).any()


def test_pictures_of_the_same_name_keep_a_drawing_each(saved_model, photos, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("a.jpg", "a.bmp"):
        Image.new("RGB", (10, 10)).save(other / name)
    paths = [str(photos / "a.jpg"), str(other / "a.jpg"), str(other / "a.bmp")]
    model, found = predict.load_model(saved_model), tmp_path / "found"
    assert predict.predict_files(model, paths, str(found), names={}) == 3
    assert len([name for name in os.listdir(found) if name.endswith(".jpg")]) == 3


def test_photos_are_never_overwritten(saved_model, photos):
    model = predict.load_model(saved_model)
    before = (photos / "a.jpg").read_bytes()
    with pytest.raises(ValueError, match="would overwrite"):
        predict.predict_files(
            model, [str(photos / "a.jpg")], f"{photos}/../photos/", names={}
        )
    assert (photos / "a.jpg").read_bytes() == before


def test_images_come_from_folders_globs_and_files_once_each(photos):
    folder = str(photos)
    assert names_of(predict.list_images([folder])) == ["a.jpg", "b.png", "broken.jpg"]
    assert names_of(predict.list_images([f"{folder}/*.jpg"])) == ["a.jpg", "broken.jpg"]
    both = [f"{folder}/b.png", f"{folder}/?.???"]
    assert names_of(predict.list_images(both)) == ["b.png", "a.jpg"]


def test_file_with_the_letters_of_a_glob_in_its_name_is_found(photos):
    path = str(photos / "c[1].jpg")
    Image.new("RGB", (5, 5)).save(path)
    assert predict.list_images([path]) == [path]


@pytest.mark.parametrize("pattern", ["*.webp", "absent.jpg", "empty"])
def test_pattern_without_pictures_is_refused(photos, pattern):
    (photos / "empty").mkdir()
    with pytest.raises(ValueError, match=r"--images=.* matches no picture"):
        predict.list_images([str(photos), str(photos / pattern)])
    with pytest.raises(ValueError, match="set --images"):
        predict.list_images([])


def test_picture_is_turned_by_its_exif_orientation(tmp_path):
    picture = Image.new("RGB", (40, 20), (255, 0, 0))
    picture.paste((0, 0, 255), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera stood on its side: turn clockwise to view.
    picture.save(tmp_path / "turned.png", exif=exif)
    image = predict.load_image(str(tmp_path / "turned.png"))
    assert image.shape == (40, 20, 3)
    assert tuple(image[5, 10]) == (0, 0, 255) and tuple(image[35, 10]) == (255, 0, 0)


@pytest.mark.parametrize(
    ("mode", "color", "name", "expected"),
    [
        ("L", 200, "x.png", (200, 200, 200)),
        ("RGBA", (10, 200, 30, 128), "x.png", (10, 200, 30)),
        ("LA", (77, 10), "x.png", (77, 77, 77)),
        ("P", 0, "x.png", (0, 0, 0)),
        ("CMYK", (0, 255, 255, 0), "x.jpg", (255, 0, 0)),
    ],
)
def test_every_color_mode_becomes_rgb(tmp_path, mode, color, name, expected):
    Image.new(mode, (16, 8), color).save(tmp_path / name)
    image = predict.load_image(str(tmp_path / name))
    assert image.shape == (8, 16, 3) and image.dtype == np.uint8
    np.testing.assert_allclose(image[4, 8], expected, atol=3)


def test_picture_of_16_bits_keeps_its_shades(tmp_path):
    shades = np.array([[0, 1 << 8, 128 << 8, 255 << 8]], np.uint16)
    Image.fromarray(shades).save(tmp_path / "deep.png")
    image = predict.load_image(str(tmp_path / "deep.png"))
    np.testing.assert_array_equal(image[0, :, 1], [0, 1, 128, 255])


def test_truncated_picture_is_named(tmp_path):
    path = tmp_path / "cut.jpg"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (99, 99, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cut\.jpg cannot be read"):
        predict.load_image(str(path))
    with pytest.raises(ValueError, match=r"absent\.jpg cannot be read"):
        predict.load_image(str(tmp_path / "absent.jpg"))


def test_newest_complete_version_of_an_export_folder_is_taken(tmp_path):
    for version in ("1700000001", "1700000002", "17000000033", "temp-1700000009"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "saved_model.pb").touch()
    (tmp_path / "1700000004").mkdir()
    newest = str(tmp_path / "1700000002")
    assert predict.find_saved_model(str(tmp_path)) == newest
    assert predict.find_saved_model(newest) == newest


def test_folder_without_a_saved_model_is_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=r"no saved_model.pb .* found checkpoints"):
        predict.find_saved_model(str(tmp_path))
    with pytest.raises(ValueError, match="found nothing"):
        predict.find_saved_model(str(tmp_path / "absent"))


def test_signature_that_is_missing_or_another_is_refused(tmp_path):
    module = tf.Module()
    module.f = tf.function(lambda images: {"boxes": images})
    signature = module.f.get_concrete_function(
        tf.TensorSpec([1, 64, 64, 3], tf.float32, name="images")
    )
    directory = str(tmp_path / "other")
    tf.saved_model.save(module, directory, {"serving_default": signature})
    message = r"maps images float32 \(1, 64, 64, 3\) to boxes; predict needs image f"
    with pytest.raises(ValueError, match=message):
        predict.load_model(directory)
    directory = str(tmp_path / "unnamed")
    tf.saved_model.save(module, directory, {"logits": signature})
    with pytest.raises(ValueError, match="no signature serving_default, only logits"):
        predict.load_model(directory)


def test_names_come_with_the_model_or_not_at_all(saved_model, tmp_path):
    assert predict.category_names(saved_model) == {3: "cat", 90: "emu"}
    assert predict.category_names(str(tmp_path)) == {}
