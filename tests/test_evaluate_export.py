"""The metrics of an export are tested in test_end_to_end.py."""

import json
import pathlib
import shutil

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

import tool_processes
import toy_data
import view_values
from retinanet_tpu import errors, evaluate_export, structures
from retinanet_tpu.data import category_map, pipeline
from retinanet_tpu.evaluation import coco_metric
from retinanet_tpu.serving import artifacts, batching

pytestmark = pytest.mark.long

COMMAND = ("-m", "retinanet_tpu.evaluate_export")
CATEGORIES = category_map.from_coco(toy_data.CATEGORIES)


@pytest.fixture(scope="module")
def valid_dir(tmp_path_factory):
    return toy_data.write(tmp_path_factory.mktemp("data"))


@pytest.fixture
def data_dir(valid_dir, tmp_path):
    """Returns a copy of the data directory, to corrupt."""
    return pathlib.Path(shutil.copytree(valid_dir, tmp_path / "data"))


@pytest.fixture
def command():
    return evaluate_export


def artifact_of(detect_fn=None, known=CATEGORIES):
    return artifacts.Artifact("model.onnx", "ONNX", known, detect_fn)


def detect_nothing(images):
    shapes = ([1, 4], [1], [1], [])
    return structures.Detections(
        *(np.zeros([len(images), *shape], int) for shape in shapes)
    )


def batched_ids(command, data_dir):
    """Returns the image ids of the batches that the command passes to a model."""
    truth = coco_metric.ground_truth(str(data_dir / "val.json"))
    batches = command.detect_annotated_images(
        artifact_of(detect_nothing),
        truth,
        str(data_dir / "pictures"),
        batch_size=4,
        meter=batching.Meter("test", len(truth.imgs)),
    )
    return [ids.tolist() for _, ids in batches]


def test_every_annotated_image_is_detected_once_in_batches_of_one_size(
    command, data_dir
):
    # Images with odd ids are landscape, those with even ids portrait.
    assert sorted(batched_ids(command, data_dir)) == [[500, 502, 504], [501, 503, 505]]


def test_images_are_those_that_the_pipeline_reads(command, data_dir):
    spec = pipeline.DatasetSpec(str(data_dir), "val", CATEGORIES, (128, 128))
    dataset = pipeline.make_eval_dataset(spec, batch_size=toy_data.NUM_VAL)
    features, _ = next(dataset.as_numpy_iterator())
    for image, image_id in zip(features.images, features.image_ids, strict=True):
        loaded = command.load_image(f"{data_dir}/pictures/{image_id}.jpg")
        height, width = loaded.shape[:2]
        assert max(height, width) == 128 and loaded.dtype == np.uint8
        np.testing.assert_array_equal(loaded, image[:height, :width])


def test_missing_image_is_an_error_before_the_model_runs(command, data_dir):
    (data_dir / "pictures" / "503.jpg").unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of 6 .*such as 503\.jpg"):
        batched_ids(command, data_dir)
    shutil.rmtree(data_dir / "pictures")
    with pytest.raises(ValueError, match=r"--images=\S* lacks 6 of 6"):
        batched_ids(command, data_dir)


def test_corrupt_image_is_an_error_with_its_path(command, data_dir):
    (data_dir / "pictures" / "503.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"503\.jpg cannot be read"):
        batched_ids(command, data_dir)


def test_image_of_another_size_than_annotated_is_an_error(command, data_dir):
    PIL.Image.new("RGB", (128, 95)).save(data_dir / "pictures" / "503.jpg")
    message = r"503\.jpg is 95 px high and 128 wide but annotated as 96 and 128"
    with pytest.raises(ValueError, match=message):
        batched_ids(command, data_dir)


def test_image_is_rotated_by_its_exif_orientation(command, data_dir):
    path = data_dir / "pictures" / "503.jpg"
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (128, 96)).save(path, exif=exif)
    with pytest.raises(ValueError, match=r"128 px high and 96 wide, rotated upright,"):
        batched_ids(command, data_dir)
    PIL.Image.new("RGB", (96, 128)).save(path, exif=exif)
    assert len(batched_ids(command, data_dir)) == 2


@pytest.mark.parametrize("name", [None, 7, "", ["a.jpg"]])
def test_annotated_image_without_a_file_name_is_an_error(command, data_dir, name):
    path = data_dir / "val.json"
    content = json.loads(path.read_text())
    content["images"][2]["file_name"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(errors.UserError, match=r"image 502 has the file_name .*; exp"):
        batched_ids(command, data_dir)


def test_invalid_annotations_are_an_error_in_one_sentence(tmp_path):
    path = tmp_path / "truth.json"
    path.write_bytes(b"[" * 9999)
    options = ("--model=absent", "--images=absent", f"--annotations={path}")
    done = tool_processes.run_python(*COMMAND, *options)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (last,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert "truth.json" in last


@pytest.mark.parametrize(
    "known",
    [
        [{"id": 3, "name": "red"}],
        [{"id": 3, "name": "red"}, {"id": 7, "name": "green"}],
        [{"id": 3, "name": "red"}, {"id": 8, "name": "blue"}],
        [*toy_data.CATEGORIES, {"id": 9, "name": "green"}],
    ],
)
def test_other_categories_are_an_error_before_the_model_runs(command, data_dir, known):
    truth = coco_metric.ground_truth(str(data_dir / "val.json"))
    command.check_categories(artifact_of(), truth)
    command.check_categories(artifact_of(known=None), truth)
    other = artifact_of(known=category_map.from_coco(known))
    with pytest.raises(ValueError, match=r"differ in [12] categories, such as id [79]"):
        command.check_categories(other, truth)


def test_missing_annotation_file_is_an_error_with_its_path(
    command, tmp_path, monkeypatch
):
    flags = {"annotations": f"{tmp_path}/absent.json", "images": "", "model": ""}
    monkeypatch.setattr(command, "FLAGS", type("Flags", (), flags))
    with pytest.raises(tf.errors.NotFoundError, match=r"absent\.json"):
        command.main()


def with_flags(command, data_dir, monkeypatch, **values):
    """Makes the command evaluate a model that detects nothing."""
    flags = {
        "annotations": f"{data_dir}/val.json",
        "images": f"{data_dir}/pictures",
        "model": "model.onnx",
        "output": None,
        "batch_size": 4,
        **view_values.NO_VIEWS,
    }
    monkeypatch.setattr(command, "FLAGS", type("Flags", (), flags | values))
    artifact = artifact_of(detect_nothing)
    monkeypatch.setattr(command.detector, "load_artifact", lambda *_, **__: artifact)


def test_metric_of_open_images_replaces_that_of_coco(
    command, data_dir, monkeypatch, capsys
):
    names = [{"LabelName": category["name"]} for category in toy_data.CATEGORIES]
    hierarchy = names[0] | {"Subcategory": names[1:]}
    path = data_dir / "hierarchy.json"
    path.write_text(json.dumps(hierarchy))
    options = {"metric": "open_images", "hierarchy": str(path)}
    with_flags(command, data_dir, monkeypatch, **options)
    command.main()
    first, *others = capsys.readouterr().out.splitlines()
    assert first == "Open Images AP50 0.000, mean over 2 classes"
    assert len(others) == 2


def test_hierarchy_without_the_metric_of_open_images_is_an_error(
    command, data_dir, monkeypatch
):
    options = {"metric": "coco", "hierarchy": "hierarchy.json"}
    with_flags(command, data_dir, monkeypatch, **options)
    with pytest.raises(errors.UserError, match="--hierarchy is for --metric=open_im"):
        command.main()
