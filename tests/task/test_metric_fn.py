import json

import numpy as np

from retinanet_tpu import structures
from retinanet_tpu.data import category_map
from retinanet_tpu.evaluation import open_images_metric
from retinanet_tpu.task import metric_fn

CATEGORIES = category_map.from_coco([{"id": 3, "name": "cat"}])
BOX_XYWH = [10, 20, 30, 40]


def write_annotations(path):
    annotations = [
        {"image_id": image_id, "category_id": 3, "bbox": BOX_XYWH}
        for image_id in (1, 2)
    ]
    content = {
        "images": [{"id": 1}, {"id": 2}],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "cat"}],
    }
    path.write_text(json.dumps(content))
    return str(path)


def batch_of(*image_ids):
    """Returns one correct detection for each image, and the ids."""
    x, y, width, height = BOX_XYWH
    count = len(image_ids)
    box_yxyx = np.float32([[y, x, y + height, x + width]])
    detections = structures.Detections(
        np.stack([box_yxyx] * count),
        np.full([count, 1], 0.9, np.float32),
        np.full([count, 1], 3),
        np.ones([count], int),
    )
    return detections, np.array(image_ids)


def examples():
    return structures.Features(
        images=np.full([2, 64, 64, 3], 128, np.uint8),
        image_ids=np.array([2, structures.PADDING_IMAGE]),
        image_sizes=np.array([[128, 128]] * 2),
        scales=np.array([[0.5, 0.5]] * 2),
    )


def test_metrics_and_drawings_of_the_examples_are_returned(tmp_path):
    fn = metric_fn.make_metric_fn(
        write_annotations(tmp_path / "val.json"),
        categories=CATEGORIES,
        examples_fn=examples,
    )
    result = fn([batch_of(1), batch_of(2, structures.PADDING_IMAGE)])
    assert result["AP50"] > 0.99 and result["num_images"] == 2
    assert 0.88 < result["best_threshold"] <= 0.9 and result["best_f1"] == 1
    assert result["per_class_threshold"] == {"cat": result["best_threshold"]}
    (drawing,) = result["detections"]
    ys, xs = np.nonzero(drawing[:, :, 0] != 128)
    # The box in pixels of the network's input, and its label.
    assert ys.max() <= 31 and 4 <= xs.min() <= 5


def test_results_of_extra_metrics_are_beside_those_of_coco(tmp_path):
    fn = metric_fn.make_metric_fn(
        write_annotations(tmp_path / "val.json"),
        categories=CATEGORIES,
        extra_metrics=[open_images_metric.OpenImagesMetric()],
    )
    result = fn([batch_of(1, 2)])
    assert result["open_images_AP50"] == 1 and result["AP50"] > 0.99
    assert result["open_images_per_class"] == {"cat": 1}


def test_result_without_examples_has_no_drawings_and_no_page(tmp_path):
    fn = metric_fn.make_metric_fn(
        write_annotations(tmp_path / "val.json"), categories=CATEGORIES
    )
    result = fn([batch_of(1, 2)])
    assert "detections" not in result and "analysis" not in result


def test_the_curves_count_correct_wrong_and_missed(tmp_path):
    fn = metric_fn.make_metric_fn(
        write_annotations(tmp_path / "val.json"), categories=CATEGORIES
    )
    curves = fn([batch_of(1), batch_of(2)])["precision-recall"].counts
    assert list(curves) == ["all classes", "cat"]
    for counts in curves.values():
        assert counts.shape == (3, 101)
        assert counts[:, 50].tolist() == [2, 0, 0]  # Both have a score of 0.9.
        assert counts[:, 95].tolist() == [0, 0, 2]


def test_the_page_has_the_step_the_image_and_earlier_evaluations(tmp_path):
    fn = metric_fn.make_metric_fn(
        write_annotations(tmp_path / "val.json"),
        categories=CATEGORIES,
        analysis_image_fn=lambda image_id: np.full([64, 64, 3], 9, np.uint8),
    )
    detections, ids = batch_of(1, 2)
    elsewhere = detections._replace(boxes_yxyx=detections.boxes_yxyx + 200)
    report = fn([(elsewhere, ids)])["analysis"]
    html = report.html_fn(40, [{"global_step": 20, "AP": 0.3}])
    assert "Analysis of step 40" in html and "previous: step 20" in html
    assert "data:image/" in html
