import numpy as np
import pytest

import toy_data
from retinanet_tpu import structures
from retinanet_tpu.estimator import exporters
from retinanet_tpu.evaluation import coco_metric, open_images_metric
from retinanet_tpu.task import serving_fn


@pytest.fixture
def data_dir(tmp_path):
    return toy_data.write(tmp_path / "data")


def test_exporters_are_chosen_in_gin(data_dir, tmp_path):
    run = toy_data.make_run(
        tmp_path / "run",
        data_dir,
        "make_run.exporter_fns = (@BestExporter, @FinalExporter)",
        "BestExporter.metric = 'AP50'",
        "BestExporter.exports_to_keep = 3",
    )
    best, final = run.eval_spec.exporters
    assert best == exporters.BestExporter(
        serving_fn.serving_fn, metric="AP50", exports_to_keep=3
    )
    assert final == exporters.FinalExporter(serving_fn.serving_fn)


def test_metrics_beside_those_of_coco_are_chosen_in_gin(data_dir, tmp_path):
    run = toy_data.make_run(
        tmp_path / "run",
        data_dir,
        "make_run.extra_metrics = (@OpenImagesMetric(),)",
        "OpenImagesMetric.group_of_weight = 0.0",
        "TrainingPlan.num_visualized_images = 0",
    )
    (metric,) = run.extra_metrics
    assert metric == open_images_metric.OpenImagesMetric(group_of_weight=0.0)
    truth = coco_metric.ground_truth(run.data.annotation_file)
    nothing = (np.zeros([1, 1, 4]), np.zeros([1, 1]), np.zeros([1, 1], int), [0])
    batches = [
        (structures.Detections(*nothing), np.array([image_id]))
        for image_id in truth.imgs
    ]
    result = run.params["metric_fn"](batches)
    assert (result["open_images_AP50"], result["AP"]) == (0, 0)


def test_reconnecting_makes_a_strategy_of_the_same_size(data_dir, tmp_path):
    run = toy_data.make_run(tmp_path / "run", data_dir, num_replicas=2)
    before = run.estimator.strategy
    run.estimator.reconnect()
    assert run.estimator.strategy is not before and run.estimator.num_replicas == 2
