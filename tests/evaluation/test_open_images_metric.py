import json

import numpy as np
import pytest

import open_images_cases
from retinanet_tpu import errors
from retinanet_tpu.evaluation import metric_engines, open_images_metric

NO_HIERARCHY = {i: {i} for i in open_images_cases.ANCESTORS}


def hierarchy_file(folder, content=open_images_cases.HIERARCHY):
    path = folder / "hierarchy.json"
    path.write_text(json.dumps(content))
    return str(path)


def evaluate(content, found, **settings):
    metric = open_images_metric.OpenImagesMetric(**settings)
    truth = metric_engines.index(content)
    return metric(truth, found, sorted(truth.imgs))


def columns(*rows):
    """Returns the detections of rows of image, category, box and score."""
    images, categories, boxes, scores = zip(*rows, strict=True)
    return metric_engines.DetectionColumns(
        np.array(images), np.array(categories), np.float64(boxes), np.float64(scores)
    )


def annotation(box, image_id=0, category_id=1, iscrowd=0):
    return {"id": 1, "image_id": image_id, "category_id": category_id} | {
        "bbox": box,
        "iscrowd": iscrowd,
    }


def content_of(*annotations, **labels):
    return {
        "images": [{"id": 0} | labels],
        "annotations": [a | {"id": i + 1} for i, a in enumerate(annotations)],
        "categories": open_images_cases.CATEGORIES,
    }


@pytest.mark.parametrize("weight", [1.0, 0.0, 0.5])
@pytest.mark.parametrize("has_labels", [True, False])
@pytest.mark.parametrize("expands", [None, True, False])
def test_result_is_that_of_the_definition_in_plain_loops(
    tmp_path, weight, has_labels, expands
):
    rng = np.random.default_rng(7)
    path = None if expands is None else hierarchy_file(tmp_path)
    ancestors = NO_HIERARCHY if expands is None else open_images_cases.ANCESTORS
    means = []
    for _ in range(4):
        content = open_images_cases.random_content(rng, has_labels=has_labels)
        found = open_images_cases.random_detections(rng)
        result = evaluate(
            content,
            found,
            hierarchy=path,
            expand_detections=bool(expands),
            group_of_weight=weight,
        )
        expected = [
            open_images_cases.naive_ap(
                content,
                found,
                label,
                ancestors=ancestors,
                expands=bool(expands),
                weight=weight,
            )
            for label in ancestors
        ]
        per_class = result[open_images_metric.PER_CLASS]
        assert list(per_class) == open_images_cases.NAMES
        np.testing.assert_allclose(list(per_class.values()), expected, atol=1e-12)
        assert per_class["Dog"] == -1
        means.append(np.mean([ap for ap in expected if ap >= 0]))
        assert result[open_images_metric.AP50] == pytest.approx(means[-1], abs=1e-12)
    assert 0 < max(means) < 1


def test_result_does_not_depend_on_the_parts_in_which_pairs_are_compared(monkeypatch):
    rng = np.random.default_rng(3)
    content = open_images_cases.random_content(rng)
    found = open_images_cases.random_detections(rng)
    whole = evaluate(content, found)
    monkeypatch.setattr(open_images_metric, "_MAX_PAIRS", 3)
    assert evaluate(content, found) == whole


def test_order_of_the_batches_does_not_change_the_result():
    rng = np.random.default_rng(4)
    content = open_images_cases.random_content(rng)
    found = open_images_cases.random_detections(rng, num_scores=3)
    # The images in falling order, the detections of an image in their old order.
    order = np.argsort(-found.image_ids, kind="stable")
    reordered = metric_engines.DetectionColumns(*(x[order] for x in found))
    assert evaluate(content, reordered) == evaluate(content, found)


def test_best_detection_in_a_group_counts_once():
    content = content_of(annotation([0, 0, 100, 100], iscrowd=1))
    inside = [(0, 1, [x, 10, 20, 20], score) for x, score in ((5, 0.9), (50, 0.8))]
    assert evaluate(content, columns(*inside))["open_images_AP50"] == 1
    result = evaluate(content, columns(*inside), group_of_weight=0.0)
    assert result["open_images_AP50"] == -1
    half_outside = (0, 1, [90, 10, 21, 20], 0.95)
    result = evaluate(content, columns(half_outside, *inside))
    assert result["open_images_AP50"] == 0.5


def test_detections_of_unverified_classes_are_ignored(tmp_path):
    box = [0, 0, 10, 10]
    found = columns((0, 6, [50, 50, 9, 9], 0.9), (0, 6, box, 0.5), (0, 1, box, 0.5))
    present = annotation(box)
    other = {"id": 1, "pos_category_ids": [6]}
    content = content_of(present, annotation(box, 1, 6))
    content["images"].append(other)
    aps = evaluate(content, found)["open_images_per_class"]
    assert (aps["Animal"], aps["Bowl"]) == (1, 0)
    content["images"][0]["neg_category_ids"] = [6]
    found = columns((0, 6, box, 0.9), (1, 6, box, 0.5))
    assert evaluate(content, found)["open_images_per_class"]["Bowl"] == 0.5
    content["images"][0]["neg_category_ids"] = []
    assert evaluate(content, found)["open_images_per_class"]["Bowl"] == 1


def test_absent_class_makes_its_kinds_absent_and_present_one_its_ancestors(tmp_path):
    path = hierarchy_file(tmp_path)
    box = [0, 0, 10, 10]
    content = content_of(annotation(box, 1, 5), neg_category_ids=[1])
    content["images"].append({"id": 1})
    wrong = (0, 5, box, 0.9)
    result = evaluate(content, columns(wrong, (1, 5, box, 0.5)), hierarchy=path)
    # A kitten where no animal is; pets are unverified there.
    expected = {"Animal": 0.5, "Cat": 0.5, "Dog": -1, "Pet": 1, "Kitten": 0.5}
    assert result["open_images_per_class"] == expected | {"Bowl": -1}


def test_nothing_is_detected():
    content = content_of(annotation([0, 0, 10, 10]))
    empty = metric_engines.DetectionColumns(
        *(np.zeros(0, np.int64),) * 2, np.zeros([0, 4]), np.zeros(0)
    )
    assert evaluate(content, empty)["open_images_AP50"] == 0


@pytest.mark.parametrize("labels", [[7], "1", [1.5], {"1": 1}])
def test_image_labels_that_are_no_categories_are_an_error(labels):
    content = content_of(annotation([0, 0, 10, 10]), pos_category_ids=labels)
    truth = metric_engines.index(content)
    with pytest.raises(errors.UserError, match=r"Image 0 has pos_category_ids .*ids"):
        open_images_metric.OpenImagesMetric().check(truth)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_weight_beyond_0_and_1_is_an_error(weight):
    with pytest.raises(errors.UserError, match=r"group_of_weight is .*between 0 and 1"):
        open_images_metric.OpenImagesMetric(group_of_weight=weight)


def test_table_lists_classes_with_boxes_by_falling_ap():
    result = {
        "open_images_AP50": 0.25,
        "open_images_per_class": {"a": 0.0, "dog": 0.5, "b": -1.0},
    }
    assert open_images_metric.table(result).splitlines() == [
        "Open Images AP50 0.250, mean over 2 classes",
        "dog 0.500",
        "a   0.000",
    ]
