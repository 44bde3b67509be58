import importlib
import sys

import numpy as np
import pytest

import repository
import tool_processes
import toy_data

TOOL = repository.ROOT / "tools" / "benchmarks" / "input.py"
SETTING = {
    "split": "train",
    "image_size": [64, 64],
    "scale_jitter": [0.8, 1.2],
    "flip": True,
    "max_boxes": 8,
    "batch_size": 4,
    "shuffle_buffer": 16,
    "secs": 0.0,
    "warm_up_secs": 0.0,
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return toy_data.write(tmp_path_factory.mktemp("data"))


@pytest.fixture
def imported(monkeypatch):
    def load(name):
        monkeypatch.syspath_prepend(str(TOOL.parent))
        return importlib.import_module(name)

    return load


def measured(*costs):
    return [{"images": 1000, "secs": 2.0, "cpu_secs": cost} for cost in costs]


@pytest.mark.parametrize("candidate", ["decode", "crop", "reference", "resize"])
def test_parts_read_the_records_endlessly(imported, data_dir, candidate):
    worker = imported("pipeline_worker")
    setting = SETTING | {"data_dir": data_dir}
    batches = worker.batches(candidate, setting).take(toy_data.NUM_TRAIN)
    shapes = [batch.shape for batch in batches]
    assert shapes == [(4, 3)] * toy_data.NUM_TRAIN


@pytest.mark.long
def test_the_pipeline_returns_training_batches(imported, data_dir):
    worker = imported("pipeline_worker")
    batches = worker.batches("pipeline", SETTING | {"data_dir": data_dir})
    features, labels = next(iter(batches))
    assert features.images.shape == (4, 64, 64, 3)
    assert labels.boxes_yxyx.shape == (4, 8, 4)


def test_the_timer_counts_after_the_warm_up(imported):
    read = []
    stream = (read.append(None) for _ in range(10**9))
    timer = imported("timer")
    result = timer.measure(stream, 16, secs=0.02, warm_up_secs=0.01)
    assert 0 < result["images"] < 16 * len(read)
    assert result["secs"] >= 0.02
    assert result["cpu_secs"] > 0


def test_candidates_run_in_turn(imported, tmp_path):
    tool, log = imported("input"), tmp_path / "log"
    code = (
        "import sys, json; open({log!r}, 'a').write({name!r});"
        "print(json.dumps(dict(images=8, secs=1.0, cpu_secs=2.0)))"
    )
    commands = {
        name: [sys.executable, "-c", code.format(log=str(log), name=name)]
        for name in "ab"
    }
    results = tool.measure_in_turn(commands, 3)
    assert log.read_text() == "ababab"
    assert [tool.cpu_ms(result) for result in results["b"]] == [250.0] * 3


def test_a_failing_candidate_is_named_with_its_output(imported):
    failing = [sys.executable, "-c", "raise SystemExit('no official module')"]
    with pytest.raises(RuntimeError, match="model_garden failed: no official module"):
        imported("input").measure_in_turn({"model_garden": failing}, 1)


def test_ratios_compare_the_same_round(imported):
    tool = imported("input")
    results = {"pipeline": measured(2, 4), "model_garden": measured(20, 32)}
    np.testing.assert_allclose(
        tool.ratios(results, "pipeline", "model_garden"), [10, 8]
    )


def test_table_shows_medians_and_ranges(imported):
    results = {"pipeline": measured(2, 4, 2.5), "model_garden": measured(20, 32, 50)}
    lines = imported("input").table(results).splitlines()
    assert lines[2] == "| our pipeline | 2.50 (2.00 to 4.00) | 400 | 500 (500 to 500) |"
    assert lines[-1] == (
        "CPU of Model Garden's parser / of our pipeline: 10.00 (8.00 to 20.00)"
    )


@pytest.mark.long
def test_an_invalid_pattern_is_an_error():
    process = tool_processes.run_python(TOOL, "--data=somewhere")
    assert process.returncode == 1
    assert "--data is somewhere; it must be DIR/SPLIT-*.tfrecord" in process.stderr
