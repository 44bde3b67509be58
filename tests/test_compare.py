import json
import pathlib

import numpy as np
import pytest

import toy_data
from retinanet_tpu import compare, detector, errors, structures
from retinanet_tpu.data import category_map
from retinanet_tpu.evaluation import coco_metric
from retinanet_tpu.serving import artifacts

CATEGORIES = category_map.from_coco(toy_data.CATEGORIES)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return pathlib.Path(toy_data.write(tmp_path_factory.mktemp("data")))


@pytest.fixture
def files(data_dir, tmp_path):
    """Returns the settings of the command, with the results file old.json."""
    dataset = json.loads((data_dir / "val.json").read_text())
    entries = [
        {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
        | {"score": 0.9}
        for annotation in dataset["annotations"]
    ]
    (tmp_path / "old.json").write_text(json.dumps(entries))
    return {
        "annotations": str(data_dir / "val.json"),
        "images_dir": str(data_dir / "pictures"),
        "output": str(tmp_path / "new" / "page.html"),
    }


@pytest.fixture
def model(monkeypatch):
    """Makes every path a model with one detection per image; returns its settings."""
    known = {"categories": CATEGORIES}

    def detect(images):
        num = len(images)
        return structures.Detections(
            boxes_yxyx=np.tile(np.float32([0, 0, 30, 30]), (num, 1, 1)),
            scores=np.full([num, 1], 0.5, np.float32),
            classes=np.full([num, 1], toy_data.CATEGORIES[0]["id"]),
            num_detections=np.ones([num], int),
        )

    def load(path):
        return artifacts.Artifact(path, "ONNX", known["categories"], detect)

    monkeypatch.setattr(detector, "load_artifact", load)
    return known


def test_results_files_and_models_are_compared(files, model, tmp_path):
    old = f"{tmp_path}/old.json"
    table = compare.write_page([f"first={old}", "new=run/model.ckpt-4"], **files)
    heads, ap, *_ = table.splitlines()
    assert heads.split()[:2] == ["first", "new"]
    truth = coco_metric.ground_truth(files["annotations"])
    inputs = compare.parse_inputs([old, "new=run/model.ckpt-4"])
    detections = compare.read_detections(
        inputs, truth, files["images_dir"], batch_size=4
    )
    assert list(detections) == [each.name for each in inputs]
    assert {each.image_id for each in detections["new"]} == set(truth.imgs)
    assert ap.split()[1:4] == ["1.000", "0.000", "-1.000"]
    page = pathlib.Path(files["output"]).read_text("utf-8")
    assert "Comparison of first and new" in page and "data:image/jpeg" in page


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["x/a/1.json", "x/b/1.json"], ["a/1.json", "b/1.json"]),
        (["run1", "run2/model.ckpt-8"], ["run1", "run2/model.ckpt-8"]),
        (["old=run=1", "./x=1/run"], ["old", "run"]),
        (["first one=a.json", "a.json"], ["first one", "a.json"]),
    ],
)
def test_names_are_given_or_the_parts_of_the_paths_that_differ(arguments, expected):
    assert [each.name for each in compare.parse_inputs(arguments)] == expected


@pytest.mark.parametrize(
    "arguments, changes, message",
    [
        (["old.json"], {}, "Got 1 evaluations; give two or more"),
        (["old.json", "old.json"], {}, "have the name 'old.json'"),
        (["a=old.json", "a=run"], {}, "have the name 'a'"),
        (["old.json", "=run"], {}, "lacks a name or a path"),
        (["old.json", "none.json"], {}, "none.json does not exist"),
        (["old.json", "old.txt"], {}, "name of a results file must end in .json"),
        (["old.json", "a=old.json"], {"output": "x" * 255}, "cannot be written"),
        (["old.json", "run"], {"images_dir": None}, "run is a model, which requires"),
        (["old.json", "a=old.json"], {"output": "."}, "is a directory"),
        (["old.json", "other.json"], {}, r"other.json: entry \[0\] has image_id 1"),
        (["old.json", "run"], {"images_dir": "."}, "lacks 6 of 6 annotated images"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(
    arguments, changes, message, files, monkeypatch, tmp_path
):
    monkeypatch.setattr(detector, "load_artifact", None)
    monkeypatch.chdir(tmp_path)
    entry = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.5}
    pathlib.Path("other.json").write_text(json.dumps([entry]))
    pathlib.Path("old.txt").write_text("[]")
    with pytest.raises(errors.UserError, match=message):
        compare.write_page(arguments, **{**files, **changes})


def test_images_that_a_results_file_lacks_are_a_warning(files, tmp_path, caplog):
    entries = json.loads((tmp_path / "old.json").read_text())
    few = [each for each in entries if each["image_id"] == entries[0]["image_id"]]
    (tmp_path / "few.json").write_text(json.dumps(few))
    compare.write_page([f"{tmp_path}/old.json", f"{tmp_path}/few.json"], **files)
    warning = "“few.json” has detections for 1 of 6 images"
    assert warning in caplog.text
    output = pathlib.Path(files["output"])
    assert warning in output.read_text("utf-8")
    assert [path.name for path in output.parent.iterdir()] == ["page.html"]


def test_a_model_with_other_categories_is_refused(files, model, tmp_path):
    model["categories"] = category_map.from_coco([{"id": 1, "name": "zebra"}])
    with pytest.raises(errors.UserError, match="differ in 3 categories"):
        compare.write_page([f"{tmp_path}/old.json", "new=run"], **files)
