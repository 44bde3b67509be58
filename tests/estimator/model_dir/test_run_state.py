import threading
import time

import pytest
import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.estimator.cluster import preemption, process_ids
from retinanet_tpu.estimator.model_dir import files, run_state

RUNNING = run_state.RunState("running", 3, 8)
HERE = process_ids.current()
DEAD = RUNNING._replace(trainer=HERE._replace(start="1"), claim="a")
ELSEWHERE = RUNNING._replace(trainer=HERE._replace(machine="another"), claim="a")


@pytest.fixture(params=["local", "ram"])
def model_dir(request, tmp_path):
    return str(tmp_path) if request.param == "local" else f"ram://{tmp_path.name}"


def wait_for_beat(model_dir, beat):
    end = time.monotonic() + 20
    while run_state.read(model_dir).beat < beat:
        assert time.monotonic() < end, "The beat does not rise."
    return run_state.read(model_dir)


def test_a_written_state_is_read_unchanged(model_dir):
    assert run_state.read(model_dir) is None
    for step in (3, 4):
        run_state.write(model_dir, RUNNING._replace(step=step))
    assert run_state.read(model_dir) == RUNNING._replace(step=4)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b'{"state": "runn',
        b"[]",
        b"7",
        b"{}",
        b'{"state": "odd", "step": 1, "beat": 2}',
        b'{"state": "running", "step": 1e999, "beat": 2}',
        b'{"state": "running", "step": 1, "beat": []}',
        b'{"state": "running", "step": 1, "beat": 2, "trainer": "x"}',
        b'{"state": "running", "step": 1, "beat": 2, "trainer": {"pid": 1}}',
        b"\x80\xff\0",
        b"[" * 100_000,
    ],
)
def test_a_corrupt_file_is_ignored(tmp_path, text):
    (tmp_path / run_state.FILE_NAME).write_bytes(text)
    assert run_state.read(str(tmp_path)) is None
    with run_state.Heartbeat(str(tmp_path), 60):
        assert run_state.read(str(tmp_path)).state == "running"


def test_a_file_of_an_older_version_is_read(tmp_path):
    text = '{"state": "preempted", "step": 3, "beat": 8}\n'
    (tmp_path / run_state.FILE_NAME).write_text(text)
    assert run_state.read(str(tmp_path)) == RUNNING._replace(state="preempted")


class Sleeper:
    """A clock that only sleep() moves, and the events of each sleep."""

    def __init__(self, *events):
        self.now = 0.0
        self.events = list(events)

    def sleep(self, secs):
        self.now += secs
        if self.events:
            self.events.pop(0)()

    def await_end(self, model_dir, **more):
        return run_state.await_end(
            model_dir, 10, clock=lambda: self.now, sleep=self.sleep, **more
        )


@pytest.mark.parametrize("state", ["finished", "failed", "preempted"])
def test_a_trainer_that_ended_causes_no_delay(model_dir, state):
    assert Sleeper().await_end(model_dir) is None
    run_state.write(model_dir, ELSEWHERE._replace(state=state))
    sleeper = Sleeper()
    assert sleeper.await_end(model_dir).state == state and sleeper.now == 0


def test_a_trainer_killed_on_this_machine_causes_no_delay(model_dir):
    run_state.write(model_dir, DEAD)
    sleeper = Sleeper()
    assert sleeper.await_end(model_dir) == DEAD and sleeper.now == 0


@pytest.mark.parametrize("trainer", [None, ELSEWHERE.trainer])
@pytest.mark.parametrize(("every_secs", "wait_secs"), [(0, 30), (5, 30), (60, 180)])
def test_a_trainer_killed_elsewhere_causes_one_delay(
    model_dir, trainer, every_secs, wait_secs
):
    state = ELSEWHERE._replace(trainer=trainer, every_secs=every_secs)
    run_state.write(model_dir, state)
    sleeper = Sleeper()
    assert sleeper.await_end(model_dir) == state
    assert wait_secs <= sleeper.now < wait_secs + 1


def test_a_second_trainer_is_refused_while_the_first_beats(model_dir):
    run_state.write(model_dir, ELSEWHERE)

    def beat():
        run_state.write(model_dir, ELSEWHERE._replace(beat=9))

    sleeper = Sleeper(lambda: None, beat)
    with pytest.raises(errors.UserError, match=r"process \d+ on .*another --model_dir"):
        sleeper.await_end(model_dir)
    assert sleeper.now < 2


def test_a_trainer_that_ends_during_the_wait_is_succeeded(model_dir):
    run_state.write(model_dir, ELSEWHERE)
    ended = ELSEWHERE._replace(state="preempted", beat=9)
    sleeper = Sleeper(lambda: run_state.write(model_dir, ended))
    assert sleeper.await_end(model_dir) == ended and sleeper.now < 1


def test_the_wait_for_a_trainer_can_be_stopped(model_dir):
    run_state.write(model_dir, ELSEWHERE)
    with pytest.raises(preemption.Preempted, match="enough"):
        Sleeper().await_end(model_dir, stop_reason=lambda: "enough")
    assert run_state.read(model_dir) == ELSEWHERE


def test_of_trainers_that_start_at_the_same_time_one_runs(model_dir):
    outcomes, is_over = [], threading.Event()

    def start():
        try:
            with run_state.Heartbeat(model_dir, 0.02):
                outcomes.append("runs")
                is_over.wait(20)
        except errors.UserError:
            outcomes.append("refused")
        if len(outcomes) == 4:
            is_over.set()

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 3 + ["runs"]
    assert run_state.read(model_dir).state == "finished"


def test_a_trainer_that_lost_its_claim_stops_and_writes_nothing(model_dir):
    other = ELSEWHERE._replace(claim="b", beat=20)
    with (
        pytest.raises(run_state.ClaimLostError, match=r"taken over .* step 7 is not"),
        run_state.Heartbeat(model_dir, 60) as heartbeat,
    ):
        heartbeat.step = 7
        heartbeat.check_claim()
        run_state.write(model_dir, other)
        heartbeat.check_seen()
        heartbeat.check_claim()
    assert run_state.read(model_dir) == other
    with (
        pytest.raises(run_state.ClaimLostError),
        run_state.Heartbeat(f"{model_dir}/b", 0.01) as heartbeat,
    ):
        run_state.write(f"{model_dir}/b", other)
        while True:
            heartbeat.check_seen()
    assert run_state.read(f"{model_dir}/b") == other


@pytest.mark.parametrize("num_failures", [2, 99])
def test_a_final_state_that_cannot_be_written_hides_no_error(
    model_dir, monkeypatch, caplog, num_failures
):
    write, failures = run_state.write, [None] * num_failures

    def fail(*args):
        if failures:
            failures.pop()
            raise tf.errors.ResourceExhaustedError(None, None, "No space left")
        write(*args)

    monkeypatch.setattr(run_state, "_FINAL_PAUSES_SECS", (0, 0, 0))
    with pytest.raises(KeyError), run_state.Heartbeat(model_dir, 60) as heartbeat:
        heartbeat.state = run_state.PREEMPTED
        monkeypatch.setattr(run_state, "write", fail)
        raise KeyError
    is_written = num_failures < 3
    state = "preempted" if is_written else "running"
    assert run_state.read(model_dir).state == state
    assert ("it lacks the final state 'preempted'" in caplog.text) != is_written


def test_the_heartbeat_ends_with_the_final_state(model_dir):
    with run_state.Heartbeat(f"{model_dir}/new", 0.01) as heartbeat:
        assert run_state.read(f"{model_dir}/new")[:3] == ("running", 0, 1)
        heartbeat.step = 40
        state = wait_for_beat(f"{model_dir}/new", 5)
        assert state.state == "running" and state.step == 40
    ended = run_state.read(f"{model_dir}/new")
    assert ended.state == "finished" and ended.step == 40
    assert run_state.FILE_NAME in tf.io.gfile.listdir(f"{model_dir}/new")
    assert files.list_directory(f"{model_dir}/new/leases") == []


def test_an_error_is_a_failure_unless_the_run_was_preempted(model_dir):
    with pytest.raises(ValueError), run_state.Heartbeat(model_dir, 60):
        raise ValueError
    assert run_state.read(model_dir)[:3] == ("failed", 0, 2)
    with pytest.raises(OSError), run_state.Heartbeat(model_dir, 60) as heartbeat:
        heartbeat.state, heartbeat.step = run_state.PREEMPTED, 7
        raise OSError
    # A restart continues to count, so that a reader sees a change.
    assert run_state.read(model_dir)[:3] == ("preempted", 7, 4)


def test_transient_storage_errors_do_not_stop_the_heartbeat(model_dir, monkeypatch):
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


def test_a_monitor_measures_from_the_last_change_by_its_own_clock(model_dir):
    now = [100.0]
    monitor = run_state.TrainerMonitor(model_dir, clock=lambda: now[0])
    now[0] = 130.0
    assert monitor.poll() is None and monitor.secs_since_change() == 30
    run_state.write(model_dir, RUNNING)
    assert monitor.secs_since_change() == 0
    now[0] = 150.0
    run_state.write(model_dir, RUNNING)  # The same beat: no change.
    assert monitor.secs_since_change() == 20
    run_state.write(model_dir, RUNNING._replace(beat=9))
    assert monitor.secs_since_change() == 0 and monitor.poll().beat == 9
    tf.io.gfile.remove(f"{model_dir}/{run_state.FILE_NAME}")
    now[0] = 155.0
    assert monitor.secs_since_change() == 5 and monitor.poll().beat == 9
