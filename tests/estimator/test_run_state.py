import time

import pytest
import tensorflow as tf

from retinanet_tpu.estimator import files, run_state

RUNNING = run_state.RunState("running", 3, 8)


@pytest.fixture(params=["local", "ram"])
def model_dir(request, tmp_path):
    return str(tmp_path) if request.param == "local" else f"ram://{tmp_path.name}"


def wait_for_beat(model_dir, beat):
    end = time.monotonic() + 20
    while run_state.read(model_dir).beat < beat:
        assert time.monotonic() < end, "The heart stands still."
    return run_state.read(model_dir)


def test_what_is_written_is_read(model_dir):
    assert run_state.read(model_dir) is None
    for step in (3, 4):
        run_state.write(model_dir, RUNNING._replace(step=step))
    assert run_state.read(model_dir) == RUNNING._replace(step=4)


@pytest.mark.parametrize(
    "text",
    ["", '{"state": "runn', "[]", "{}", '{"state": "odd", "step": 1, "beat": 2}'],
)
def test_what_makes_no_sense_reads_as_nothing(tmp_path, text):
    (tmp_path / run_state.FILE_NAME).write_text(text)
    assert run_state.read(str(tmp_path)) is None


def test_the_heart_beats_until_the_end_and_says_which_end(model_dir):
    with run_state.Heartbeat(f"{model_dir}/new", 0.01) as heartbeat:
        assert run_state.read(f"{model_dir}/new")[:3] == ("running", 0, 1)
        heartbeat.step = 40
        state = wait_for_beat(f"{model_dir}/new", 5)
        assert state.state == "running" and state.step == 40
    ended = run_state.read(f"{model_dir}/new")
    assert ended.state == "finished" and ended.step == 40
    assert run_state.FILE_NAME in tf.io.gfile.listdir(f"{model_dir}/new")
    assert files.list_directory(f"{model_dir}/new/leases") == []


def test_an_error_is_a_failure_and_a_preemption_is_said_to_be_one(model_dir):
    with pytest.raises(ValueError), run_state.Heartbeat(model_dir, 60):
        raise ValueError
    assert run_state.read(model_dir)[:3] == ("failed", 0, 2)
    with pytest.raises(OSError), run_state.Heartbeat(model_dir, 60) as heartbeat:
        heartbeat.state, heartbeat.step = run_state.PREEMPTED, 7
        raise OSError
    # A restart counts on: a reader sees that something changed.
    assert run_state.read(model_dir)[:3] == ("preempted", 7, 4)


def test_storage_that_fails_for_a_while_does_not_stop_the_heart(model_dir, monkeypatch):
    write, failures = run_state.write, [None] * 3

    def fail(*args):
        if failures:
            failures.pop()
            raise tf.errors.UnavailableError(None, None, "gone")
        write(*args)

    with run_state.Heartbeat(model_dir, 0.01):
        monkeypatch.setattr(run_state, "write", fail)
        wait_for_beat(model_dir, 6)
    assert not failures and run_state.read(model_dir).state == "finished"


def test_a_watch_counts_from_the_last_change_by_its_own_clock(model_dir):
    now = [100.0]
    watch = run_state.Watch(model_dir, clock=lambda: now[0])
    now[0] = 130.0
    assert watch.look() is None and watch.secs_since_change() == 30
    run_state.write(model_dir, RUNNING)
    assert watch.secs_since_change() == 0
    now[0] = 150.0
    run_state.write(model_dir, RUNNING)  # The same beat: nobody lives there.
    assert watch.secs_since_change() == 20
    run_state.write(model_dir, RUNNING._replace(beat=9))
    assert watch.secs_since_change() == 0 and watch.look().beat == 9
    tf.io.gfile.remove(f"{model_dir}/{run_state.FILE_NAME}")
    now[0] = 155.0
    assert watch.secs_since_change() == 5 and watch.look().beat == 9
