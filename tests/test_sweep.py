import json
import os
import pathlib
import signal
import sys
import threading

import pytest
from absl import flags
from absl.testing import flagsaver

import toy_data
from retinanet_tpu import errors, sweep
from retinanet_tpu.estimator.model_dir import run_state
from retinanet_tpu.startup import checks
from retinanet_tpu.sweeping import runs, tables

GIN_FILE = str(toy_data.GIN_CONFIGS / "quickstart.gin")


def write_variants(tmp_path, variants):
    path = tmp_path / "variants.json"
    path.write_text(json.dumps(variants))
    return str(path)


def run_sweep(tmp_path, variants, *settings, **more):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])
    path = write_variants(tmp_path, variants)
    with flagsaver.flagsaver(gin_file=[GIN_FILE], gin_param=list(settings)):
        return sweep.sweep(path, str(tmp_path / "sweep"), **more)


def write_result(run, split=None, state=run_state.FINISHED, **metrics):
    folder = pathlib.Path(run.model_dir) / (f"eval_{split}" if split else "eval")
    folder.mkdir(parents=True, exist_ok=True)
    record = {"global_step": 40, "checkpoint": "model.ckpt-40"} | metrics
    (folder / "eval.jsonl").write_text(json.dumps(record) + "\n")
    run_state.write(run.model_dir, run_state.RunState(state, 40, 1))


@pytest.fixture
def started(monkeypatch):
    """Replaces the processes; returns the runs and flags that were started."""
    calls = []

    def finish(run, flag_values, split, running):
        calls.append((run.name, flag_values, split))
        write_result(run, split, AP=0.1, AP50=0.2, AP75=0.1)
        run.record(flag_values, 1.0)

    monkeypatch.setattr(runs, "finish", finish)
    return calls


VARIANTS = {"classic": [], "giou": ["detection_losses.box_weight = 2.0"]}


def test_each_variant_runs_with_each_seed(tmp_path, started):
    run_sweep(tmp_path, VARIANTS, "SEED = 5", num_seeds=2, split="test")
    names = [name for name, _, _ in started]
    assert names == ["classic/0", "giou/0", "classic/1", "giou/1"]
    shared = [f"--gin_file={GIN_FILE}", "--gin_param=SEED = 5"]
    own = "--gin_param=detection_losses.box_weight = 2.0"
    assert started[0][1:] == (shared, "test")
    assert started[1][1:] == ([*shared, own], "test")


def test_a_failed_run_is_not_reported_as_done(tmp_path, started, monkeypatch, caplog):
    finish = runs.finish

    def fail_classic(run, *arguments):
        if run.variant != "classic":
            finish(run, *arguments)

    monkeypatch.setattr(runs, "finish", fail_classic)
    with (
        caplog.at_level("INFO", logger="absl"),
        pytest.raises(errors.UserError, match="1 of 2 runs failed: classic/0"),
    ):
        run_sweep(tmp_path, VARIANTS)
    assert {"classic/0: failed", "giou/0: done"} < set(caplog.messages)


def test_a_finished_run_with_other_settings_is_an_error(tmp_path, started):
    run_sweep(tmp_path, VARIANTS)
    run_sweep(tmp_path, VARIANTS)
    changed = {**VARIANTS, "giou": ["detection_losses.box_weight = 5.0"]}
    with pytest.raises(
        errors.UserError, match=r"giou/0 is finished.*box_weight = 5\.0"
    ):
        run_sweep(tmp_path, changed)


def test_a_remote_directory_is_an_error(tmp_path, started):
    path = write_variants(tmp_path, VARIANTS)
    with pytest.raises(errors.UserError, match="gs://bucket/sweep; it must be a local"):
        sweep.sweep(path, "gs://bucket/sweep")


def test_machines_divide_the_runs(tmp_path, started):
    for index in range(3):
        run_sweep(tmp_path, VARIANTS, num_seeds=2, shard=f"{index}/3")
    assert sorted(name for name, _, _ in started) == [
        "classic/0",
        "classic/1",
        "giou/0",
        "giou/1",
    ]


@pytest.mark.parametrize("shard", ["1", "2/2", "a/b", "0/0"])
def test_an_invalid_shard_is_an_error(tmp_path, started, shard):
    with pytest.raises(errors.UserError, match="INDEX/NUMBER"):
        run_sweep(tmp_path, VARIANTS, shard=shard)
    assert not started


def test_a_wrong_setting_of_the_last_variant_stops_before_the_first_run(
    tmp_path, started
):
    variants = {**VARIANTS, "typo": ["detection_losses.box_wait = 2.0"]}
    with pytest.raises(errors.UserError, match="box_wait"):
        run_sweep(tmp_path, variants)
    assert not started


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ([], "must be an object that maps names"),
        ({}, "must be an object that maps names"),
        ({"a/b": []}, "names a directory"),
        ({"..": []}, "names a directory"),
        ({"a": "MAX_STEPS = 1"}, "must be a list of gin settings"),
        ({"a": [1]}, "must be a list of gin settings"),
        ({"table.md": []}, "names a directory"),
        ({"a": ["SEED = 7"]}, "sets SEED"),
    ],
)
def test_an_invalid_file_of_variants_is_an_error(tmp_path, variants, message):
    with pytest.raises(errors.UserError, match=message):
        runs.read_variants(write_variants(tmp_path, variants))


def test_the_table_has_means_and_ranges_of_the_finished_runs(tmp_path):
    all_runs = [
        runs.Run(str(tmp_path), name, seed) for name in "ab" for seed in range(3)
    ]
    write_result(all_runs[0], AP=0.1, AP50=0.3, AP75=0.05)
    write_result(all_runs[1], AP=0.2, AP50=0.5, AP75=0.05)
    all_runs[0].record([], 2.0)
    all_runs[1].record([], 4.0)
    write_result(all_runs[3], state=run_state.FAILED, AP=0.9, AP50=0.9, AP75=0.9)
    table = tables.write(str(tmp_path), all_runs, None)
    assert (tmp_path / "table.md").read_text() == table
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    spread = ["0.150 (0.100 to 0.200)", "0.400 (0.300 to 0.500)"]
    assert rows[2] == ["a", *spread, "0.050 (0.050 to 0.050)", "40", "3.0", "2 of 3"]
    assert rows[3] == ["b", *["none"] * 5, "0 of 3"]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["a/1"]["AP"] == 0.2 and "b/0" not in results


def write_program(tmp_path, monkeypatch, text):
    """Replaces Python by a shell script, for the processes of the runs."""
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def finish_all(tmp_path, *names, num_jobs):
    own_runs = [runs.Run(str(tmp_path), name, 0) for name in names]
    return list(sweep.finish_all(own_runs, {n: [n] for n in names}, None, num_jobs))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_runs_and_ends_the_sweep(tmp_path, monkeypatch, number):
    write_program(
        tmp_path,
        monkeypatch,
        f"trap 'echo saved; exit 42' TERM\n: > {tmp_path}/$4.started\n"
        "while :; do sleep 0.05; done",
    )

    def interrupt():
        while not all((tmp_path / f"{name}.started").exists() for name in "ab"):
            pass
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stop:
        finish_all(tmp_path, "a", "b", "c", num_jobs=2)
    thread.join()
    assert stop.value.code == 42
    assert signal.getsignal(number) == before
    for name in "ab":
        assert (tmp_path / name / "0.log").read_text() == "saved\n"
    assert not (tmp_path / "c.started").exists()


def test_a_run_that_was_asked_to_stop_ends_the_sweep(tmp_path, monkeypatch):
    write_program(tmp_path, monkeypatch, f": > {tmp_path}/$4.started\nexit 42")
    with pytest.raises(SystemExit) as stop:
        finish_all(tmp_path, "a", "b", num_jobs=1)
    assert stop.value.code == 42
    assert (tmp_path / "a.started").exists() and not (tmp_path / "b.started").exists()


def test_an_unexpected_error_stops_the_other_runs(tmp_path, monkeypatch):
    write_program(tmp_path, monkeypatch, f": > {tmp_path}/$4.started\nexit 0")

    def fail(self, flag_values, cpu_minutes):
        raise OSError("disk is full")

    monkeypatch.setattr(runs.Run, "record", fail)
    with pytest.raises(OSError, match="disk is full"):
        finish_all(tmp_path, *"abcdefgh", num_jobs=1)
    assert len(list(tmp_path.glob("*.started"))) < 8


def test_as_many_runs_as_jobs_are_at_work_at_once(tmp_path, monkeypatch):
    # Each of the two waits for the other; one after the other they would never end.
    write_program(
        tmp_path,
        monkeypatch,
        f": > {tmp_path}/$4.started\n"
        f"until [ -e {tmp_path}/a.started ] && [ -e {tmp_path}/b.started ]; do\n"
        "sleep 0.02\ndone",
    )
    ended = finish_all(tmp_path, "a", "b", num_jobs=2)
    assert {run.name for run in ended} == {"a/0", "b/0"}


def test_runs_have_the_environment_from_before_the_start(tmp_path, monkeypatch):
    # The start of a command that uses no TPU hides the TPU from its process.
    write_program(tmp_path, monkeypatch, "env\nexit 1")
    monkeypatch.setenv("TPU_LOAD_LIBRARY", "0")
    finish_all(tmp_path, "a", num_jobs=1)
    text = (tmp_path / "a" / "0.log").read_text()
    assert "PATH=" in text and "TPU_LOAD_LIBRARY" not in text


@pytest.mark.parametrize(
    ("num_jobs", "own", "expected"),
    [(1, None, None), (2, None, "false"), (2, "true", "true")],
)
def test_runs_at_the_same_time_share_the_memory_of_a_gpu(
    tmp_path, monkeypatch, num_jobs, own, expected
):
    write_program(tmp_path, monkeypatch, "env")
    name = "XLA_PYTHON_CLIENT_PREALLOCATE"
    environment = {k: v for k, v in os.environ.items() if k != name}
    monkeypatch.setattr(
        checks, "ENVIRONMENT", environment | ({name: own} if own else {})
    )
    finish_all(tmp_path, "a", num_jobs=num_jobs)
    lines = (tmp_path / "a" / "0.log").read_text().splitlines()
    found = [line.partition("=")[2] for line in lines if line.startswith(name)]
    assert found == ([expected] if expected else [])


@pytest.mark.slow
def test_a_sweep_trains_evaluates_and_continues(tmp_path, monkeypatch):
    data_dir = toy_data.write(tmp_path / "data")
    settings = [*toy_data.TINY, *toy_data.TWO_LEVELS, f"DATA_DIR = '{data_dir}'"]
    settings += ["MAX_STEPS = 2", "TPUConfig.iterations_per_loop = 1"]
    settings += ["RunConfig.save_checkpoints_steps = 1", "EVAL_EVERY = None"]
    variants = {"good": [], "bad": ["DATA_DIR = '/nowhere'"]}
    failed = r"1 of 2 runs failed: bad/0.*bad/0\.log"
    with pytest.raises(errors.UserError, match=failed):
        run_sweep(tmp_path, variants, *settings, split="train")
    run = runs.Run(str(tmp_path / "sweep"), "good", 0)
    assert run.is_finished() and run.cpu_minutes() > 0
    assert run.result(None)["global_step"] == 2
    assert run.result("train")["global_step"] == 2
    assert run.result("train")["loss"] != run.result(None)["loss"]
    assert "nowhere" in (tmp_path / "sweep/bad/0.log").read_text()
    log = pathlib.Path(run.log).read_text()
    run_sweep(tmp_path, {"good": []}, *settings, split="train")
    assert pathlib.Path(run.log).read_text() == log  # Nothing was done again.
