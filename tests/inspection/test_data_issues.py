import re

import numpy as np
import pytest

from retinanet_tpu.data import category_map
from retinanet_tpu.inspection import data_issues, dataset_stats

CATEGORIES = category_map.from_coco(
    [{"id": 3, "name": "red"}, {"id": 7, "name": "blue"}]
)
ERROR, WARNING, INFO = reversed(data_issues.Severity)


def split(name="train", **changes):
    """Returns three images of 100 px, a box in each of the first two."""
    valid = dataset_stats.Split(
        name=name,
        image_ids=np.array([1, 2, 3]),
        image_sizes=np.full([3, 2], 100, np.int32),
        fingerprints=np.arange(3).astype(np.uint64) + 10 * len(name),
        file_names=("a.jpg", "b.jpg", ""),
        boxes_yxyx=np.array([[10, 10, 50, 60], [0, 0, 100, 100]], np.float32),
        category_ids=np.array([3, 7]),
        is_crowd=np.array([False, False]),
        images=np.array([0, 1]),
    )
    return valid._replace(**changes)


def severities(issues):
    return [issue.severity for issue in issues]


def test_valid_data_have_only_an_info_on_empty_images():
    issues = data_issues.split_issues(split(), CATEGORIES)
    assert severities(issues) == [INFO] and "1 of 3 images" in issues[0].text
    assert not data_issues.label_map_issues(split(), CATEGORIES, 2)
    assert not data_issues.pair_issues(split(), split("val"), CATEGORIES)


def test_no_images_and_no_boxes_are_errors():
    nothing = split()._replace(
        **{
            f: getattr(split(), f)[:0]
            for f in dataset_stats.Split._fields
            if f != "name"
        }
    )
    assert severities(data_issues.split_issues(nothing, CATEGORIES)) == [ERROR]
    crowds = split(is_crowd=np.array([True, True]))
    issues = data_issues.split_issues(crowds, CATEGORIES)
    assert severities(issues) == [ERROR, INFO] and "no box" in issues[0].text


@pytest.mark.parametrize(
    ("changes", "severity", "pattern"),
    [
        (dict(category_ids=np.array([3, 9])), ERROR, r"\[9\]"),
        (dict(image_ids=np.array([1, 2, 2])), ERROR, "image ids more than once"),
        (dict(fingerprints=np.array([5, 6, 5])), WARNING, r"a\.jpg, image 3"),
    ],
)
def test_faults_of_a_split_are_issues(changes, severity, pattern):
    issues = data_issues.split_issues(split(**changes), CATEGORIES)
    first = next(f for f in issues if f.severity != INFO)
    assert first.severity == severity
    assert re.search(pattern, first.text)


def test_some_boxes_outside_are_a_warning_and_all_an_error():
    boxes = split().boxes_yxyx
    right = np.array([[0, 1, 0, 1], [0, 0, 0, 0]])
    over = split(boxes_yxyx=boxes + 60 * right)
    issues = data_issues.box_issues(over, CATEGORIES)
    assert severities(issues) == [WARNING] and "reach over the edge" in issues[0].text
    assert "a.jpg" in issues[0].text
    lost = data_issues.box_issues(split(boxes_yxyx=boxes + 200 * right), CATEGORIES)
    assert severities(lost) == [WARNING] and "no pixel" in lost[0].text
    all_lost = data_issues.box_issues(split(boxes_yxyx=boxes + 200), CATEGORIES)
    assert severities(all_lost) == [ERROR]


def test_classes_and_network_must_have_the_same_number():
    issues = data_issues.label_map_issues(split(), CATEGORIES, 91)
    assert severities(issues) == [ERROR] and "NUM_CLASSES = 2" in issues[0].text


def test_a_class_without_boxes_to_train_on_is_named():
    only_red = split(category_ids=np.array([3, 3]))
    issues = data_issues.label_map_issues(only_red, CATEGORIES)
    assert severities(issues) == [WARNING] and "blue" in issues[0].text


def test_splits_without_a_common_class_are_an_error():
    red, blue = (np.array([i, i]) for i in (3, 7))
    issues = data_issues.pair_issues(
        split(category_ids=red), split("val", category_ids=blue), CATEGORIES
    )
    assert severities(issues) == [ERROR] and "class in common" in issues[0].text


@pytest.mark.parametrize(("num_shared", "severity"), [(1, WARNING), (3, ERROR)])
def test_images_in_both_splits_are_counted(num_shared, severity):
    train, val = split(), split("val")
    fingerprints = val.fingerprints.copy()
    fingerprints[:num_shared] = train.fingerprints[:num_shared]
    issues = data_issues.pair_issues(
        train, val._replace(fingerprints=fingerprints), CATEGORIES
    )
    assert severities(issues) == [severity]
    assert f"{num_shared} of 3 images of val" in issues[0].text


def test_versions_of_one_image_in_both_splits_are_a_warning():
    train = split(file_names=("a_jpg.rf.1a.jpg", "b_jpg.rf.2b.jpg", "c.jpg"))
    val = split("val", file_names=("x/b_jpg.rf.9f.jpg", "c.jpg", "a.jpg"))
    issues = data_issues.pair_issues(train, val, CATEGORIES)
    assert severities(issues) == [WARNING]
    assert "1 of 3 images of val are versions of images in train" in issues[0].text
    assert "x/b_jpg.rf.9f.jpg" in issues[0].text and "--val_fraction" in issues[0].text
    same = val._replace(fingerprints=train.fingerprints[[1, 0, 2]])
    issues = data_issues.pair_issues(train, same, CATEGORIES)
    assert [f.text for f in issues if "versions" in f.text] == []


def test_evaluating_on_the_training_split_is_only_a_warning():
    issues = data_issues.pair_issues(split(), split(), CATEGORIES)
    assert severities(issues) == [WARNING]


def test_records_must_be_those_of_the_annotation_file(tmp_path):
    path = tmp_path / "val.json"
    path.write_text('{"images": [{"id": 1}, {"id": 2}], "annotations": []}')
    issues = data_issues.annotation_file_issues(split("val"), str(path))
    assert severities(issues) == [ERROR] and "[3]" in issues[0].text
    path.write_text('{"images": [{"id": 1}, {"id": 2}, {"id": 3}], "annotations": []}')
    assert not data_issues.annotation_file_issues(split("val"), str(path))
