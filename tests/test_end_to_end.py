"""Tests all commands on a tiny network: train, resume, evaluate, export, predict."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import tool_processes
import toy_data
from retinanet_tpu import predict, structures
from retinanet_tpu.data import image_files
from retinanet_tpu.estimator import train_and_evaluate
from retinanet_tpu.estimator.model_dir import checkpoints
from retinanet_tpu.evaluation import coco_metric
from retinanet_tpu.serving import artifacts
from retinanet_tpu.task import serving_fn

pytestmark = pytest.mark.long

BINDINGS = (
    "WeightUpdate.averaging_decay = 0.9",
    "NMS.score_threshold = 0.001",
    # Two levels of the backbone and one above it; each takes seconds to trace.
    *toy_data.TWO_LEVELS,
    "FPN.max_level = 6",
    "Anchors.max_level = 6",
    # Smaller ones are resized, which libjpeg does differently.
    "IMAGE_SIZE = (128, 128)",
)


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("end_to_end")


@pytest.fixture(scope="module")
def data_dir(work_dir):
    return toy_data.write(work_dir / "data")


@pytest.fixture(scope="module")
def trained(work_dir, data_dir):
    """Returns a run of four steps and its results."""
    run = toy_data.make_run(work_dir / "straight", data_dir, *BINDINGS)
    results = train_and_evaluate.train_and_evaluate(
        run.estimator, run.train_spec, run.eval_spec
    )
    return run, results


@pytest.fixture(scope="module")
def exported(trained):
    run, _ = trained
    base = f"{run.estimator.model_dir}/export/latest"
    return run.estimator.export_saved_model(base, serving_fn.serving_fn)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_run_bit_for_bit(
    trained, work_dir, data_dir
):
    resumed_dir = work_dir / "resumed"
    resumed_dir.mkdir()
    for path in pathlib.Path(run_dir(trained[0])).glob("model.ckpt-2.*"):
        shutil.copy(path, resumed_dir)
    run = toy_data.make_run(resumed_dir, data_dir, *BINDINGS)
    assert checkpoints.steps(str(resumed_dir)) == [2]
    resumed = toy_data.train(run)
    straight = checkpoints.read(checkpoints.latest(trained[0].estimator.model_dir))
    got = checkpoints.read(resumed)
    assert got.keys() == straight.keys()
    assert any(name.startswith("averages/") for name in got)
    for name, value in straight.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_the_results_are_complete_and_recorded(trained):
    run, results = trained
    assert results["num_images"] == toy_data.NUM_VAL
    assert set(results["per_class"]) == {"red", "blue"}
    line = pathlib.Path(run.estimator.model_dir, "eval", "eval.jsonl").read_text()
    record = json.loads(line)
    assert record["global_step"] == 4
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl"):
        assert -1 <= record[name] <= 1
    for name in ("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"):
        assert -1 <= record[name] <= 1
    assert results["detections"].shape == (2, 128, 128, 3)


def test_a_later_evaluation_has_the_same_results(trained, data_dir):
    run, results = trained
    later = toy_data.make_run(run.estimator.model_dir, data_dir, *BINDINGS)
    again = later.estimator.evaluate(later.eval_spec.input_fn)
    assert again["AP"] == pytest.approx(results["AP"], abs=1e-6)
    assert again["loss"] == pytest.approx(results["loss"], rel=1e-5)


def test_the_export_has_the_detections_of_the_evaluation(trained, exported, data_dir):
    run, _ = trained
    serve = tf.saved_model.load(exported).signatures["serving_default"]
    _, forward = run.estimator._load_forward("eval", checkpoints.latest(run_dir(run)))
    batch = next(iter(run.estimator._inputs.dataset(run.eval_spec.input_fn, "eval")))
    _, (detections, image_ids) = forward(batch)
    for row, image_id in enumerate(image_ids[:3]):
        path = f"{data_dir}/pictures/{image_id}.jpg"
        rgb = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        served = serve(
            image=tf.cast(rgb, tf.float32), image_id=tf.constant(row, tf.int32)
        )
        count = int(detections.num_detections[row])
        assert count > 0
        assert int(served["valid_detections"]) == count
        assert int(served["image_id"]) == row
        np.testing.assert_allclose(served["scores"], detections.scores[row], atol=1e-4)
        boxes_xyxy = detections.boxes_yxyx[row][:, [1, 0, 3, 2]]
        np.testing.assert_allclose(served["boxes"], boxes_xyxy, atol=0.05)
        np.testing.assert_array_equal(served["class_ids"], detections.classes[row])
        assert set(detections.classes[row][:count]) <= {3, 7}


def test_the_export_has_exactly_the_metrics_of_its_checkpoint(
    trained, exported, data_dir, tmp_path
):
    _, expected = trained
    assert expected["AP"] > 0
    output = tmp_path / "results.json"
    options = (
        f"--model={exported}",
        f"--images={data_dir}/pictures",
        f"--annotations={data_dir}/val.json",
        f"--output={output}",
        "--batch_size=4",
    )
    command = ("-m", "retinanet_tpu.evaluate_export")
    done = tool_processes.run_python(*command, *options)
    assert done.returncode == 0, done.stderr
    assert coco_metric.table(expected) in done.stdout
    assert coco_metric.per_class_table(expected) in done.stdout
    assert "6/6 images" in done.stderr and "of the model alone" in done.stderr
    result = evaluated(json.loads(output.read_text()), f"{data_dir}/val.json")
    for metric in coco_metric.METRICS:
        assert result[metric.name] == expected[metric.name], metric.name


def evaluated(records, annotation_file):
    """Returns the metrics of a results file."""
    truth = coco_metric.ground_truth(annotation_file)
    batches = []
    for image_id in truth.imgs:
        of_image = [r for r in records if r["image_id"] == image_id]
        boxes_xywh = np.array([r["bbox"] for r in of_image]).reshape(-1, 4)
        x, y, width, height = boxes_xywh.T
        detections = structures.Detections(
            boxes_yxyx=np.stack([y, x, y + height, x + width], axis=-1)[None],
            scores=np.array([[r["score"] for r in of_image]]),
            classes=np.array([[r["category_id"] for r in of_image]]),
            num_detections=np.array([len(of_image)]),
        )
        batches.append((detections, np.array([image_id])))
    return coco_metric.evaluate(batches, truth)


def test_gray_wide_and_tiny_images_are_served(exported):
    serve = tf.saved_model.load(exported).signatures["serving_default"]
    for height, width in ((1, 1), (37, 400), (900, 20)):
        image = tf.fill([height, width, 3], 127.0)
        boxes = serve(image=image, image_id=tf.constant(0))["boxes"].numpy()
        assert (boxes >= 0).all() and (boxes <= [width, height] * 2).all()


def test_predict_writes_detections_and_drawings(exported, data_dir, work_dir):
    output_dir = work_dir / "predictions"
    artifact = artifacts.load(artifacts.find(exported))
    assert artifact.names == {3: "red", 7: "blue"}
    paths = image_files.find([f"{data_dir}/pictures/50*.jpg"])
    predict.predict_files(artifact, paths, str(output_dir), min_score=0.001)
    records = json.loads((output_dir / "detections.json").read_text())
    assert records and {record["category_id"] for record in records} <= {3, 7}
    drawing = Image.open(output_dir / pathlib.Path(paths[0]).name)
    assert drawing.size == Image.open(paths[0]).size


def run_dir(run):
    return run.estimator.model_dir
