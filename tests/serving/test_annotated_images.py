"""Tests which images of an annotation file a model gets."""

import json
import pathlib
import shutil

import numpy as np
import PIL.Image
import pytest

import toy_data
from retinanet_tpu import errors, structures
from retinanet_tpu.data import category_map, pipeline
from retinanet_tpu.evaluation import coco_metric
from retinanet_tpu.serving import annotated_images, artifacts, batching

pytestmark = pytest.mark.long

CATEGORIES = category_map.from_coco(toy_data.CATEGORIES)


@pytest.fixture(scope="module")
def valid_dir(tmp_path_factory):
    return toy_data.write(tmp_path_factory.mktemp("data"))


@pytest.fixture
def data_dir(valid_dir, tmp_path):
    """Returns a copy of the data directory, to corrupt."""
    return pathlib.Path(shutil.copytree(valid_dir, tmp_path / "data"))


def detect_nothing(images):
    shapes = ([1, 4], [1], [1], [])
    return structures.Detections(
        *(np.zeros([len(images), *shape], int) for shape in shapes)
    )


def batched_ids(data_dir):
    """Returns the image ids of the batches that a model gets."""
    truth = coco_metric.ground_truth(str(data_dir / "val.json"))
    batches = annotated_images.detect(
        artifacts.Artifact("model.onnx", "ONNX", CATEGORIES, detect_nothing),
        annotated_images.find(truth, str(data_dir / "pictures")),
        batch_size=4,
        meter=batching.Meter("test", len(truth.imgs)),
    )
    return [ids.tolist() for _, ids in batches]


def test_every_annotated_image_is_detected_once_in_batches_of_one_size(data_dir):
    # Images with odd ids are landscape, those with even ids portrait.
    assert sorted(batched_ids(data_dir)) == [[500, 502, 504], [501, 503, 505]]


def test_images_are_those_that_the_pipeline_reads(data_dir):
    spec = pipeline.DatasetSpec(str(data_dir), "val", CATEGORIES, (128, 128))
    dataset = pipeline.make_eval_dataset(spec, batch_size=toy_data.NUM_VAL)
    features, _ = next(dataset.as_numpy_iterator())
    for image, image_id in zip(features.images, features.image_ids, strict=True):
        file = annotated_images.ImageFile(
            image_id, f"{data_dir}/pictures/{image_id}.jpg"
        )
        loaded = annotated_images.load(file)
        height, width = loaded.shape[:2]
        assert max(height, width) == 128 and loaded.dtype == np.uint8
        np.testing.assert_array_equal(loaded, image[:height, :width])


def test_missing_image_is_an_error_before_the_model_runs(data_dir):
    (data_dir / "pictures" / "503.jpg").unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of 6 .*such as 503\.jpg"):
        batched_ids(data_dir)
    shutil.rmtree(data_dir / "pictures")
    with pytest.raises(ValueError, match=r"--images=\S* lacks 6 of 6"):
        batched_ids(data_dir)


def test_corrupt_image_is_an_error_with_its_path(data_dir):
    (data_dir / "pictures" / "503.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"503\.jpg cannot be read"):
        batched_ids(data_dir)


def test_image_of_another_size_than_annotated_is_an_error(data_dir):
    PIL.Image.new("RGB", (128, 95)).save(data_dir / "pictures" / "503.jpg")
    message = r"503\.jpg is 95 px high and 128 wide but annotated as 96 and 128"
    with pytest.raises(ValueError, match=message):
        batched_ids(data_dir)


def test_image_is_rotated_by_its_exif_orientation(data_dir):
    path = data_dir / "pictures" / "503.jpg"
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (128, 96)).save(path, exif=exif)
    with pytest.raises(ValueError, match=r"128 px high and 96 wide, rotated upright,"):
        batched_ids(data_dir)
    PIL.Image.new("RGB", (96, 128)).save(path, exif=exif)
    assert len(batched_ids(data_dir)) == 2


def test_sizes_may_be_text(data_dir):
    path = data_dir / "val.json"
    content = json.loads(path.read_text())
    for image in content["images"]:
        image |= {"height": str(image["height"]), "width": f" {image['width']}"}
    path.write_text(json.dumps(content))
    assert len(batched_ids(data_dir)) == 2


@pytest.mark.parametrize("name", [None, 7, "", ["a.jpg"]])
def test_annotated_image_without_a_file_name_is_an_error(data_dir, name):
    path = data_dir / "val.json"
    content = json.loads(path.read_text())
    content["images"][2]["file_name"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(errors.UserError, match=r"image 502 has the file_name .*; exp"):
        batched_ids(data_dir)


@pytest.mark.parametrize(
    "known",
    [
        [{"id": 3, "name": "red"}],
        [{"id": 3, "name": "red"}, {"id": 7, "name": "green"}],
        [{"id": 3, "name": "red"}, {"id": 8, "name": "blue"}],
        [*toy_data.CATEGORIES, {"id": 9, "name": "green"}],
    ],
)
def test_other_categories_are_an_error_before_the_model_runs(data_dir, known):
    truth = coco_metric.ground_truth(str(data_dir / "val.json"))
    annotated_images.check_categories("a.onnx", CATEGORIES, truth)
    annotated_images.check_categories("a.onnx", None, truth)
    other = category_map.from_coco(known)
    with pytest.raises(ValueError, match=r"differ in [12] categories, such as id [79]"):
        annotated_images.check_categories("a.onnx", other, truth)
