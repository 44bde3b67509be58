"""Tests the procedure and the table with models that compute nothing."""

import json
import math

import numpy as np
import pytest

from retinanet_tpu import errors, structures
from retinanet_tpu.benchmarking import candidates, images, measure, tables, worker
from retinanet_tpu.serving import annotated_images

SAVED_MODEL = candidates.Candidate("SavedModel", "e/1", 4_000_000)
ONNX = candidates.Candidate("ONNX", "e/1/model.onnx", 2_500_000)
TENSORRT = candidates.Candidate("ONNX for TensorRT", "e/1/t.onnx", 1, is_runnable=False)
OTHER = candidates.Candidate("other", "e/2/model.onnx", 1)
CHECKPOINT = candidates.Candidate("checkpoint", "run/model.ckpt-1", is_checkpoint=True)
FILES = [annotated_images.ImageFile(i, f"{i}.png") for i in (7, 3)]
IMAGES = images.Images(FILES, np.zeros([8, 4, 4, 3], np.uint8), None, "two images")
PLAN = measure.Plan(batch_sizes=(1, 8), num_rounds=3, turn_secs=0.5)
# Seconds of the batches of each round; the median rounds take 2, 3 and 1 times as long.
ROUNDS = ((2.0, 1.5, 7.0), (3.0,), (1.0, 1.0))


def detections(score):
    """Returns a batch of one image with two detections, of which one is weak."""
    return structures.Detections(
        np.float32([[[0, 0, 10, 10], [0, 0, 5, 5]]]),
        np.float32([[score, 0.1]]),
        np.int32([[1, 1]]),
        np.int32([2]),
    )


class FakeModel:
    """A model with given scores and times, which fails at a given call."""

    def __init__(self, candidate, log, score=0.9, fails_at=None):
        self.name = candidate.name
        self.log = log
        self.score = score
        self.fails_at = fails_at
        self.num_turns = {1: 0, 8: 0}

    def call(self, method, *arguments):
        self.log.append((self.name, method, *arguments))
        if self.fails_at in (method, (method, *arguments)):
            raise errors.UserError(f"{method} |\n failed")

    def load(self, timed):
        self.call("load")
        assert timed is IMAGES.timed
        return worker.Loaded(1.5, 0.75)

    def detect(self, files):
        self.call("detect")
        return {file.image_id: detections(self.score) for file in reversed(files)}

    def measure(self, batch_size, secs):
        number = self.num_turns[batch_size]
        self.call("measure", number, batch_size)
        assert secs == PLAN.turn_secs
        self.num_turns[batch_size] += 1
        secs = tuple(x * batch_size / 100 for x in ROUNDS[number])
        return worker.Turn(secs, 2 * sum(secs))

    def memory_mb(self):
        self.call("memory")
        return 123.4

    def close(self):
        self.call("close")


def run(models, **settings):
    """Returns the results and the log of calls; settings are by name of the model."""
    log = []

    def start(candidate):
        return FakeModel(candidate, log, **settings.get(candidate.name, {}))

    return measure.run(models, IMAGES, PLAN, start_fn=start), log


def cells(results):
    """Returns the cells of each row, by name of the model."""
    lines = tables.table(results, PLAN.batch_sizes).splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert len({len(row) for row in rows}) == 1
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


def test_rounds_go_over_all_models_and_start_with_the_next_one():
    _, log = run([SAVED_MODEL, TENSORRT, ONNX])
    turns = [(name, *rest[1:]) for name, *rest in log if rest[0] == "measure"]
    a, b = SAVED_MODEL.name, ONNX.name
    assert turns == [
        (name, number, batch_size)
        for number, names in enumerate([(a, b), (b, a), (a, b)])
        for batch_size in (1, 8)
        for name in names
    ]
    ends = [entry for entry in log if entry[1] == "close"]
    assert ends == [(a, "close"), (b, "close")] == log[-2:]


def test_a_row_contains_medians_sizes_and_drift():
    results, _ = run([SAVED_MODEL, TENSORRT, ONNX], ONNX={"score": 0.85})
    rows = cells(results)
    assert rows["ONNX"] == {
        "model": "ONNX",
        "AP": "-",
        "AP50": "-",
        "MB": "2.5",
        "load, s": "2.25",
        "batch 1, ms": "20.0 (10.0 to 30.0)",
        "batch 8, ms": "160 (80 to 240)",
        "images/s": "50.0",
        # Of the rounds' means per batch: 3.5, 3 and 1, times two threads.
        "CPU ms/image": "60.0",
        "memory, MB": "123",
        "same boxes": "100.0 %",
        # The weak detection has no difference.
        "score drift": "0.025",
        "largest": "0.05",
    }
    reference = rows["SavedModel"]
    assert reference["same boxes"] == "reference" and reference["largest"] == "-"
    assert rows["ONNX for TensorRT"]["AP"] == "not run: it needs TensorRT"
    content = json.loads(json.dumps(tables.to_json(results[2])))
    assert content["drift"]["num_matched"] == 4
    assert content["latency"]["8"]["round_secs"][1] == pytest.approx([0.24])
    assert content["throughput"]["images_per_sec"] == pytest.approx(50)


def test_the_checkpoint_is_the_reference_of_all():
    models = [CHECKPOINT, SAVED_MODEL, OTHER]
    results, _ = run(models, checkpoint={"score": 0.8})
    assert [result.is_reference for result in results] == [True, False, False]
    drifts = [result.drift for result in results]
    assert drifts[0] is None
    assert [round(drift.score_drift, 3) for drift in drifts[1:]] == [0.1, 0.1]
    assert cells(results)["checkpoint"]["MB"] == "-"


def test_the_reference_is_the_saved_model_of_the_same_export():
    results, _ = run([SAVED_MODEL, OTHER])
    assert results[1].drift is None
    assert cells(results)["other"]["same boxes"] == "-"


@pytest.mark.parametrize("fails_at", ["load", "detect", ("measure", 1, 8), "memory"])
def test_an_error_ends_only_its_model(fails_at):
    results, log = run([SAVED_MODEL, ONNX], SavedModel={"fails_at": fails_at})
    failed, other = results
    assert failed.error is not None and other.error is None
    assert [len(other.turns[batch_size]) for batch_size in (1, 8)] == [3, 3]
    assert [entry for entry in log if entry[1] == "close"] == [
        ("SavedModel", "close"),
        ("ONNX", "close"),
    ]
    after = log[log.index(("SavedModel", "close")) + 1 :]
    assert not [entry for entry in after if entry[0] == "SavedModel"]
    (text,) = {row["AP"] for name, row in cells(results).items() if name != "ONNX"}
    assert text.startswith("error: ") and text.endswith(" / failed")
    # Without the reference's detections there is no drift.
    has_drift = fails_at not in ("load", "detect")
    assert (other.drift is not None) == has_drift
    json.dumps(tables.to_json(failed))


def test_all_models_may_fail():
    fails = {"fails_at": "load"}
    results, _ = run([SAVED_MODEL, ONNX], SavedModel=fails, ONNX=fails)
    assert all(result.error for result in results)
    assert set(cells(results)) == {"SavedModel", "ONNX"}


def test_models_end_after_an_interrupt():
    log = []

    class Interrupted(FakeModel):
        def detect(self, files):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure.run([SAVED_MODEL], IMAGES, PLAN, start_fn=lambda x: Interrupted(x, log))
    assert log[-1] == ("SavedModel", "close")


def test_a_comparison_without_matches_has_no_difference():
    empty = detections(0.9)._replace(num_detections=np.int32([0]))
    result = measure.Result(
        ONNX, drift=measure.parity.compare([empty], [empty], measure.TOLERANCE)
    )
    assert math.isnan(result.drift.mean_score_drift)
    row = cells([result])["ONNX"]
    assert {row[key] for key in ("same boxes", "score drift", "largest")} == {"-"}
