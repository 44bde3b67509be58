import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

import toy_data
from retinanet_tpu import errors, evaluate_export, structures
from retinanet_tpu.data import category_map, pipeline
from retinanet_tpu.evaluation import coco_metric
from retinanet_tpu.serving import artifacts, batching
from retinanet_tpu.task import serving_fn

COMMAND = [sys.executable, "-m", "retinanet_tpu.evaluate_export"]
CATEGORIES = category_map.from_coco(toy_data.CATEGORIES)
BINDINGS = (
    *toy_data.TWO_LEVELS,
    *toy_data.SGD,
    # Of larger images the tool averages pixels, where libjpeg averages frequencies.
    "IMAGE_SIZE = (128, 128)",
    "NMS.score_threshold = 0.0001",  # After four steps all scores are about 0.01.
    "TrainingPlan.num_visualized_images = 0",
)


@pytest.fixture(scope="module")
def sound_dir(tmp_path_factory):
    return toy_data.write(tmp_path_factory.mktemp("data"))


@pytest.fixture
def data_dir(sound_dir, tmp_path):
    """A copy of the data directory, to damage."""
    return pathlib.Path(shutil.copytree(sound_dir, tmp_path / "data"))


@pytest.fixture
def tool():
    return evaluate_export


def artifact_of(detect_fn=None, known=CATEGORIES):
    return artifacts.Artifact("model.onnx", "ONNX", known, detect_fn)


def find_nothing(pictures):
    shapes = ([1, 4], [1], [1], [])
    return structures.Detections(
        *(np.zeros([len(pictures), *shape], int) for shape in shapes)
    )


def ids_seen(tool, data_dir, **more):
    """Returns the ids of the images that a model is shown, as the tool does it."""
    truth = coco_metric.ground_truth(str(data_dir / "val.json"))
    found = tool.detections(
        artifact_of(find_nothing),
        truth,
        str(data_dir / "pictures"),
        batch_size=4,
        meter=batching.Meter("test", len(truth.imgs)),
    )
    return [ids.tolist() for _, ids in found]


def test_saved_model_gets_exactly_the_scores_of_its_checkpoint(data_dir, tmp_path):
    run = toy_data.make_run(tmp_path / "run", data_dir, *BINDINGS)
    toy_data.train(run)
    expected = run.estimator.evaluate(run.eval_spec.input_fn)
    assert expected["AP"] > 0
    run.estimator.export_saved_model(f"{tmp_path}/export", serving_fn.serving_fn)
    output = tmp_path / "results.json"
    options = (
        f"--model={tmp_path}/export",
        f"--images={data_dir}/pictures",
        f"--annotations={data_dir}/val.json",
        f"--output={output}",
        "--batch_size=4",
    )
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert coco_metric.table(expected) in done.stdout
    assert coco_metric.per_class_table(expected) in done.stdout
    assert "6/6 images" in done.stderr and "of the model alone" in done.stderr
    result = scored(json.loads(output.read_text()), f"{data_dir}/val.json")
    for metric in coco_metric.METRICS:
        assert result[metric.name] == expected[metric.name], metric.name


def scored(records, annotation_file):
    """Returns the scores of a results file."""
    truth = coco_metric.ground_truth(annotation_file)
    batches = []
    for image_id in truth.imgs:
        of_image = [r for r in records if r["image_id"] == image_id]
        boxes_xywh = np.array([r["bbox"] for r in of_image]).reshape(-1, 4)
        x, y, width, height = boxes_xywh.T
        found = structures.Detections(
            boxes_yxyx=np.stack([y, x, y + height, x + width], axis=-1)[None],
            scores=np.array([[r["score"] for r in of_image]]),
            classes=np.array([[r["category_id"] for r in of_image]]),
            num_detections=np.array([len(of_image)]),
        )
        batches.append((found, np.array([image_id])))
    return coco_metric.evaluate(batches, truth)


def test_every_annotated_picture_is_shown_once_in_batches_of_one_size(tool, data_dir):
    # Odd ids lie, even ones stand.
    assert sorted(ids_seen(tool, data_dir)) == [[500, 502, 504], [501, 503, 505]]


def test_pictures_are_those_that_the_pipeline_reads(tool, data_dir):
    dataset = pipeline.make_eval_dataset(
        str(data_dir),
        "val",
        categories=CATEGORIES,
        batch_size=toy_data.NUM_VAL,
        image_size=(128, 128),
    )
    features, _ = next(dataset.as_numpy_iterator())
    for image, image_id in zip(features.images, features.image_ids, strict=True):
        picture = tool.load_picture(f"{data_dir}/pictures/{image_id}.jpg")
        height, width = picture.shape[:2]
        assert max(height, width) == 128 and picture.dtype == np.uint8
        np.testing.assert_array_equal(picture, image[:height, :width])


def test_missing_picture_is_named_before_anything_is_run(tool, data_dir):
    (data_dir / "pictures" / "503.jpg").unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of 6 .*such as 503\.jpg"):
        ids_seen(tool, data_dir)
    shutil.rmtree(data_dir / "pictures")
    with pytest.raises(ValueError, match=r"--images=.*images lacks 6 of 6"):
        ids_seen(tool, data_dir)


def test_broken_picture_is_named(tool, data_dir):
    (data_dir / "pictures" / "503.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"503\.jpg cannot be read"):
        ids_seen(tool, data_dir)


def test_picture_of_another_size_than_annotated_is_named(tool, data_dir):
    PIL.Image.new("RGB", (128, 95)).save(data_dir / "pictures" / "503.jpg")
    message = r"503\.jpg is 95 px high and 128 wide but annotated as 96 and 128"
    with pytest.raises(ValueError, match=message):
        ids_seen(tool, data_dir)


def test_picture_that_exif_turns_is_taken_upright(tool, data_dir):
    path = data_dir / "pictures" / "503.jpg"
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (128, 96)).save(path, exif=exif)
    with pytest.raises(ValueError, match=r"128 px high and 96 wide, turned upright,"):
        ids_seen(tool, data_dir)
    PIL.Image.new("RGB", (96, 128)).save(path, exif=exif)
    assert len(ids_seen(tool, data_dir)) == 2


@pytest.mark.parametrize("name", [None, 7, "", ["a.jpg"]])
def test_annotated_image_without_a_file_name_is_named(tool, data_dir, name):
    path = data_dir / "val.json"
    content = json.loads(path.read_text())
    content["images"][2]["file_name"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(errors.UserError, match=r"image 502 has the file_name .*; exp"):
        ids_seen(tool, data_dir)


def test_annotations_that_cannot_be_scored_end_in_one_sentence(tmp_path):
    path = tmp_path / "truth.json"
    path.write_bytes(b"[" * 9999)
    options = ("--model=absent", "--images=absent", f"--annotations={path}")
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True)
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
def test_other_categories_are_found_before_anything_is_run(tool, data_dir, known):
    truth = coco_metric.ground_truth(str(data_dir / "val.json"))
    tool.check_categories(artifact_of(), truth)
    tool.check_categories(artifact_of(known=None), truth)
    other = artifact_of(known=category_map.from_coco(known))
    with pytest.raises(ValueError, match=r"differ in [12] categories, such as id [79]"):
        tool.check_categories(other, truth)


def test_wrong_path_ends_in_a_sentence(tool, tmp_path, monkeypatch):
    flags = {"annotations": f"{tmp_path}/absent.json", "images": "", "model": ""}
    monkeypatch.setattr(tool, "FLAGS", type("Flags", (), flags))
    with pytest.raises(tf.errors.NotFoundError, match=r"absent\.json"):
        tool.main()
