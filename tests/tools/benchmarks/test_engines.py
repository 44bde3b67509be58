import argparse
import json
import logging

import pytest


def loop(step, time, cpu_secs, rss_mb=100.0):
    return {"step": step, "time": time, "cpu_secs": cpu_secs, "rss_mb": rss_mb}


def test_a_run_is_a_gin_file_and_an_existing_directory(imported, tmp_path):
    tool = imported("engines")
    assert tool.parse_run(f"a.gin={tmp_path}") == ("a.gin", str(tmp_path))
    for text in ("a.gin", "a.gin=absent"):
        with pytest.raises(argparse.ArgumentTypeError, match="GIN_FILE=DATA_DIR"):
            tool.parse_run(text)


def test_start_up_ends_with_the_first_loop_and_speed_begins_there(imported):
    loops = [loop(5, 130.0, 40.0), loop(10, 133.0, 44.0), loop(15, 140.0, 50.0, 90.0)]
    training = imported("engines").summarize(loops, start=100.0)
    assert training.start_secs == 30 and training.start_cpu_secs == 40
    assert training.step_secs == 1 and training.step_cpu_secs == 1
    assert training.rss_mb == {5: 100.0, 10: 100.0, 15: 90.0}


def test_ratios_are_formed_within_a_round(imported):
    tool = imported("engines")
    slow, fast = (
        [tool.Training(factor * n, n, 0.1 * n, 0.1, {}) for n in (1, 4)]
        for factor in (2, 1)
    )
    results = {"tf.distribute": slow, "pjrt": fast}
    lines = tool.start_table(tool.Run("a.gin", "data"), results).splitlines()
    row = [cell.strip() for cell in lines[3].split("|")[1:-1]]
    assert row[:2] == ["pjrt", "2.5 (1.0 to 4.0)"]
    assert row[5] == "0.50 (0.50 to 0.50)" and row[6] == "1.00 (1.00 to 1.00)"


def test_the_start_of_a_step_has_a_table(imported):
    compiled = {"wall": 9.0, "cpu": 9.0, "thread": 9.0, "rss_mb": 500.0}
    later = {"wall": 1.0, "cpu": 2.0, "thread": 0.5, "rss_mb": 500.5}
    table = imported("engines").dispatch_table({"program": [compiled, later]})
    row = "| the program of pjrt alone | 1.00 | 2.00 | 0.50 | 500 | +0.5 |"
    assert table.splitlines()[2] == row


def test_each_loop_of_a_trainer_is_measured(imported, tmp_path):
    recorder = imported("timed_trainer").Recorder(tmp_path / "loops.jsonl")
    for text in ("Replicas: 1", "[global_step 50/100] [ETA: 00:00:01]", "Saving"):
        recorder.emit(logging.LogRecord("x", logging.INFO, "x", 1, text, (), None))
    (line,) = (tmp_path / "loops.jsonl").read_text().splitlines()
    measured = json.loads(line)
    assert measured["step"] == 50 and measured["cpu_secs"] > 0
    assert set(measured) == {"step", "time", "cpu_secs", "rss_mb"}


@pytest.mark.long
@pytest.mark.parametrize("candidate", ["tf.distribute", "pjrt", "program"])
def test_the_start_of_a_step_is_measured(imported, candidate):
    if candidate != "tf.distribute":
        pytest.importorskip("jax")
    tool = imported("timed_dispatch")
    run_steps = tool.make_steps(candidate, num_variables=2)
    measured = tool.measure(run_steps, num_steps=3)
    assert set(measured) == {"wall", "cpu", "thread", "rss_mb"}
    assert 0 < measured["thread"] <= measured["cpu"]
