import json

import numpy as np
import pytest

from retinanet_tpu import structures
from retinanet_tpu.evaluation import coco_metric, highest_recall

SIDE = 10


def perfect_result(tmp_path, images, categories):
    """Returns COCO's metrics of detections that are equal to the objects."""
    boxes_xywh = [[SIDE * i, 0, SIDE, SIDE] for i in range(len(images))]
    annotations = [
        {"image_id": int(image), "category_id": int(category), "bbox": box}
        for image, category, box in zip(images, categories, boxes_xywh, strict=True)
    ]
    dataset = {
        "images": [{"id": int(i)} for i in np.unique(images)],
        "categories": [{"id": int(c), "name": str(c)} for c in np.unique(categories)],
        "annotations": annotations,
    }
    path = tmp_path / "val.json"
    path.write_text(json.dumps(dataset))
    x = SIDE * np.arange(len(images), dtype=np.float64)
    boxes_yxyx = np.stack([0 * x, x, 0 * x + SIDE, x + SIDE], axis=-1)
    batches = []
    for image in np.unique(images):
        rows = np.flatnonzero(images == image)
        scores = 1 - np.arange(len(rows)) / 1e4
        arrays = boxes_yxyx[rows], scores, categories[rows], np.int32(len(rows))
        detections = structures.Detections(*(np.asarray(a)[None] for a in arrays))
        batches.append((detections, np.array([image])))
    return coco_metric.evaluate(batches, coco_metric.ground_truth(str(path)))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_perfect_detections_reach_the_highest_recall(tmp_path, seed):
    rng = np.random.default_rng(seed)
    counts = rng.choice([0, 3, 99, 100, 101, 250], [3, 4])
    images, categories = np.repeat(
        np.indices(counts.shape).reshape(2, -1), counts.ravel(), axis=1
    )
    highest = highest_recall.highest_recall(images, categories + 7)
    result = perfect_result(tmp_path, images, categories + 7)
    assert result["AR100"] == pytest.approx(highest, abs=1e-6)
    assert result["AP"] == pytest.approx(highest, abs=0.01)


def test_six_hundred_objects_of_a_class_limit_the_recall_to_a_sixth():
    images, categories = np.zeros([600], int), np.ones([600], int)
    assert highest_recall.highest_recall(images, categories) == pytest.approx(1 / 6)
    assert highest_recall.num_beyond(images, categories) == (1, 600)
    # More detections than COCO counts do not help.
    for limit in (100, 600):
        highest = highest_recall.highest_recall(images, categories, limit)
        assert highest == pytest.approx(1 / 6)


def test_few_detections_go_to_the_rare_classes_first():
    images = np.array([0] * 6 + [1] * 4)
    categories = np.array([1, 1, 1, 1, 2, 2, 1, 1, 1, 1])
    # Three in each image: both objects of class 2, and 1 + 3 of 8 of class 1.
    assert highest_recall.highest_recall(images, categories, 3) == (1 + 4 / 8) / 2
    assert highest_recall.highest_recall(images, categories, 6) == 1
    assert highest_recall.most_counted(images, categories) == 6


def test_recall_is_one_without_objects():
    nothing = np.zeros([0], int)
    assert highest_recall.highest_recall(nothing, nothing, 5) == 1
    assert highest_recall.most_counted(nothing, nothing) == 0
    assert highest_recall.num_beyond(nothing, nothing) == (0, 0)
