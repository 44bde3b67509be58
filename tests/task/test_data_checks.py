import json
import pathlib
import re

import pytest

import edited_records
import repository
import toy_data
from retinanet_tpu import errors
from retinanet_tpu.data import category_map
from retinanet_tpu.inspection import anchor_search, data_issues, dataset_stats
from retinanet_tpu.task import data_checks

CATEGORIES = category_map.from_coco(toy_data.CATEGORIES)


@pytest.fixture
def data_dir(tmp_path):
    return pathlib.Path(toy_data.write(tmp_path / "data"))


def check(data_dir, *bindings):
    run = toy_data.make_run(data_dir.parent / "run", data_dir, *bindings)
    data_checks.check(run)


def test_valid_data_pass_without_a_warning(data_dir, caplog):
    check(data_dir)
    assert not caplog.records or "data |" not in caplog.text


def test_hierarchy_of_another_dataset_is_an_error_before_step_1(data_dir):
    path = data_dir / "hierarchy.json"
    settings = (
        "make_run.extra_metrics = (@OpenImagesMetric(),)",
        f"OpenImagesMetric.hierarchy = '{path}'",
    )
    names = [{"LabelName": category.name} for category in CATEGORIES.categories]
    path.write_text(json.dumps({"LabelName": "all", "Subcategory": names[1:]}))
    with pytest.raises(errors.UserError, match=r"lacks 1 of the 2 .*same dataset"):
        check(data_dir, *settings)


def test_versions_of_one_image_in_both_splits_are_a_warning(data_dir, caplog):
    for split in ("train", "val"):
        edit_json(f"{split}.json", rename_first(f"dog_jpg.rf.{split}.jpg"))(data_dir)
    check(data_dir)
    assert "1 of 6 images of val are versions of images in train" in caplog.text


def rename_first(name):
    return lambda content, _: content["images"][0].update(file_name=name)


def edit_json(name, edit_fn):
    def damage(data_dir):
        path = data_dir / name
        content = json.loads(path.read_text())
        edit_fn(content, data_dir)
        path.write_text(json.dumps(content))

    return damage


def give_category_7(content, _):
    for annotation in content["annotations"]:
        annotation["category_id"] = 7


def renumber(content, _):
    for entry in content["images"]:
        entry["id"] += 10_000
    for annotation in content["annotations"]:
        annotation["image_id"] += 10_000


def add_val(content, data_dir):
    val = json.loads((data_dir / "val.json").read_text())
    for key in ("images", "annotations"):
        content[key] += val[key]


def edit_train(edit_fn):
    return lambda data_dir: edited_records.edit(data_dir, "train", edit_fn)


def without_common_class(data_dir):
    edit_train(edited_records.set_category(3))(data_dir)
    edit_json("val.json", give_category_7)(data_dir)


def empty_train(data_dir):
    for path in data_dir.glob("train-*.tfrecord"):
        path.write_bytes(b"")


# Each fault is a change of a valid dataset, or a setting.
DAMAGES = {
    "boxes that lie beside their images": edit_train(edited_records.add_to_boxes(3.0)),
    "records without a box": edit_train(edited_records.clear_boxes),
    "a class that categories.json has not": edit_train(edited_records.set_category(99)),
    "splits without a common class": without_common_class,
    "records and annotations of two conversions": edit_json("val.json", renumber),
    "scoring on images trained on": edit_json("train.json", add_val),
    "empty record files": empty_train,
    "anchors far too large": "Anchors.size = 60.0",
    "another number of classes": "NUM_CLASSES = 5",
}
PAGE = repository.ROOT / "docs/reference/data_issues.md"
ROWS = re.findall(r"^\| ([^|]*) \| ([^|]*) \|$", PAGE.read_text("utf-8"), re.MULTILINE)


def test_the_page_of_broken_data_has_every_case():
    assert {"what was wrong", *DAMAGES} == {name for name, _ in ROWS}


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "expected"), ROWS[1:], ids=[name for name, _ in ROWS[1:]]
)
def test_data_that_lead_to_an_ap_of_0_are_an_error_before_step_1(
    data_dir, name, expected
):
    damage = DAMAGES[name]
    bindings = [damage] if isinstance(damage, str) else []
    if not bindings:
        damage(data_dir)
    with pytest.raises(ValueError) as caught:
        check(data_dir, *bindings)
    message = str(caught.value).replace(f"{data_dir}/", "")
    assert message.startswith(expected.removesuffix("…"))


def test_without_evaluation_only_training_data_are_checked(data_dir):
    (data_dir / "val.json").write_text("{")
    check(data_dir, "TrainingPlan.evaluate_during_training = False")


def test_sizes_with_a_low_recall_are_a_warning():
    coverages = {
        "small": anchor_search.Coverage(10, 0.5, 0.4),
        "large": anchor_search.Coverage(0, 0.0, 0.0),
        "all": anchor_search.Coverage(200, 0.95, 0.7),
    }
    (issue,) = data_checks.anchor_issues(coverages, "train")
    assert issue.severity == data_issues.Severity.WARNING
    assert "50.0% of small boxes" in issue.text


def test_the_rest_of_an_epoch_and_the_padding_are_counted(data_dir):
    run = toy_data.make_run(
        None, data_dir, "Data.max_boxes = 2", "TrainingPlan.eval_batch_per_replica = 4"
    )
    splits = [
        dataset_stats.read(str(data_dir), n, CATEGORIES) for n in ("train", "val")
    ]
    texts = [issue.text for issue in data_checks.plan_issues(run, splits)]
    assert "1 batches of 8 and 4 images" in texts[0]  # 12 images.
    assert "4 images of train have more than Data.max_boxes 2" in texts[1]
    assert "2 batches of 4 on one replica, of which 2 images are padding" in texts[2]


def repeat_objects(times):
    """Returns a damage that repeats the annotations of a JSON."""

    def edit(content, _):
        content["annotations"] *= times

    return edit


def warnings_of(data_dir, caplog, *bindings):
    check(data_dir, *bindings)
    return [r.message for r in caplog.records if "data |" in r.message]


def test_more_boxes_than_rows_of_the_labels_are_a_warning(data_dir, caplog):
    (text,) = warnings_of(data_dir, caplog, "Data.max_boxes = 2")
    assert "4 images of train (train.json) have more than Data.max_boxes 2" in text
    assert "Set Data.max_boxes = 3." in text


def test_without_annotations_boxes_are_counted_in_the_first_records(data_dir, caplog):
    (data_dir / "train.json").unlink()
    (text,) = warnings_of(data_dir, caplog, "Data.max_boxes = 2")
    assert "4 images of the first 12 of train have more than" in text


def test_objects_beyond_cocos_limit_are_a_warning(data_dir, caplog):
    edit_json("val.json", repeat_objects(200))(data_dir)
    bindings = ["NMS.max_detections = 300"]
    texts = warnings_of(data_dir, caplog, *bindings)
    (text,) = [text for text in texts if "COCO counts 100" in text]
    assert "6 images of val" in text and "AR100 can reach 0." in text
    assert "NMS.max_detections" not in text


def test_fewer_detections_than_objects_are_a_warning(data_dir, caplog):
    (text,) = warnings_of(data_dir, caplog, "NMS.max_detections = 1")
    assert "NMS.max_detections 1 is less than the objects of some images" in text
    assert "with NMS.max_detections = 3 it can reach 1.000" in text
