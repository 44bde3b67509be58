import json
import pathlib

import pytest

import edited_records
import toy_data
from retinanet_tpu.boxes import anchor_fit
from retinanet_tpu.data import categories, findings, statistics
from retinanet_tpu.task import data_checks

CATEGORIES = categories.from_coco(toy_data.CATEGORIES)


@pytest.fixture
def data_dir(tmp_path):
    return pathlib.Path(toy_data.write(tmp_path / "data"))


def check(data_dir, *bindings):
    run = toy_data.experiment(data_dir.parent / "run", data_dir, *bindings)
    data_checks.check(run)


def test_sound_data_pass_without_a_word(data_dir, caplog):
    check(data_dir)
    assert not caplog.records or "data |" not in caplog.text


def test_another_number_of_classes_is_told_the_right_one(data_dir):
    run = toy_data.experiment(data_dir.parent / "run", data_dir)
    run.params["num_classes"] = 5
    with pytest.raises(ValueError, match="NUM_CLASSES = 2"):
        data_checks.check(run)


def test_empty_files_are_told(data_dir):
    for path in data_dir.glob("train-*.tfrecord"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="empty"):
        check(data_dir)


@pytest.mark.parametrize(
    ("edit_fn", "told"),
    [
        (edited_records.clear_boxes, "no box that could be learnt"),
        (edited_records.add_to_boxes(3.0), "leave no pixel"),
        (edited_records.set_category(99), r"category ids \[99\]"),
    ],
)
def test_records_that_nothing_can_be_learnt_from_are_told(data_dir, edit_fn, told):
    edited_records.edit(data_dir, "train", edit_fn)
    with pytest.raises(ValueError, match=told):
        check(data_dir)


def test_anchors_that_reach_nothing_are_told(data_dir):
    with pytest.raises(ValueError, match=r"Anchors\.size"):
        check(data_dir, "Anchors.size = 60.0")


def test_splits_without_a_common_class_are_told(data_dir):
    edited_records.edit(data_dir, "train", edited_records.set_category(3))
    path = data_dir / "val.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["category_id"] = 7
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="no class in common"):
        check(data_dir)


def test_records_of_another_conversion_are_told(data_dir):
    path = data_dir / "val.json"
    content = json.loads(path.read_text())
    for entry in content["images"]:
        entry["id"] += 10_000
    for annotation in content["annotations"]:
        annotation["image_id"] += 10_000
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="one conversion"):
        check(data_dir)


def test_scoring_on_pictures_trained_on_is_told(data_dir):
    content = json.loads((data_dir / "val.json").read_text())
    train = json.loads((data_dir / "train.json").read_text())
    for key in ("images", "annotations"):
        train[key] += content[key]
    (data_dir / "train.json").write_text(json.dumps(train))
    with pytest.raises(ValueError, match=r"6 of 6 images of val are in train too"):
        check(data_dir)


def test_without_an_evaluation_only_training_data_are_looked_at(data_dir):
    (data_dir / "val.json").write_text("{")
    check(data_dir, "Plan.evaluates = False")


def test_sizes_that_are_reached_too_seldom_are_warned_of():
    reach_of = {
        "small": anchor_fit.Reach(10, 0.5, 0.4),
        "large": anchor_fit.Reach(0, 0.0, 0.0),
        "all": anchor_fit.Reach(200, 0.95, 0.7),
    }
    (found,) = data_checks.anchor_findings(reach_of, "train")
    assert found.severity == findings.Severity.WARNING
    assert "50.0% of small boxes" in found.text


def test_what_an_epoch_leaves_over_and_the_padding_are_counted(data_dir):
    run = toy_data.experiment(
        None, data_dir, "Data.max_boxes = 2", "Plan.eval_batch_per_replica = 4"
    )
    splits = [statistics.read(str(data_dir), n, CATEGORIES) for n in ("train", "val")]
    texts = [f.text for f in data_checks.plan_findings(run, splits)]
    assert "1 batches of 8 and 4 images" in texts[0]  # 12 images.
    assert "4 images of train have more than Data.max_boxes 2" in texts[1]
    assert "2 batches of 4 on one replica, of which 2 images are padding" in texts[2]
