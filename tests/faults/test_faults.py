"""Injects faults into the processes of a run and checks its results.

After every fault:
  * the run finishes
  * each remaining checkpoint has one line in eval.jsonl, under its own step
  * all results are equal to those of an undisturbed run

The first test is the short version. `tools/test.sh -n0 -s -m slow tests/faults` runs
the others. Each injects one fault many times and prints a row of the README's table:
fault | number of times | processes | evaluated checkpoints | kept checkpoints | time.
"""

import contextlib
import importlib.util
import os
import pathlib
import random
import signal
import subprocess
import time

import numpy as np
import pytest

import commands
import processes
import toy_data
from retinanet_tpu import evaluate, train
from retinanet_tpu.estimator.cluster import preemption
from retinanet_tpu.estimator.model_dir import run_state

pytestmark = pytest.mark.long
needs_jax = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None, reason="needs the extra [xla-cpu]"
)


def steps(last, every):
    """Returns bindings with which SIGTERM also saves only at multiples of `every`."""
    return (
        f"MAX_STEPS = {last}",
        f"RunConfig.save_checkpoints_steps = {every}",
        f"TPUConfig.iterations_per_loop = {every}",
    )


SHORT = steps(20, 4)
LONG = steps(1500, 25)
KEEP_ALL = "RunConfig.keep_checkpoint_max = None"
SIDECAR_FLAGS = ("--policy=all", "--timeout_secs=60")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return toy_data.write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def make_reference(tmp_path_factory, data_dir):
    """Returns an undisturbed run, trained and evaluated in this process."""
    references = {}

    def make(bindings, device="cpu"):
        key = (bindings, device)
        if key not in references:
            directory = tmp_path_factory.mktemp("reference") / "run"
            run = processes.Run(directory, data_dir, *bindings, KEEP_ALL, device=device)
            if device == "cpu":
                commands.run(train.main, run.model_dir, data_dir, *run.bindings)
            else:
                trainer = run.train()
                assert trainer.wait() == 0, trainer.tail()
            evaluate_here(run)
            assert sorted(processes.results(run.records())) == run.steps()
            references[key] = run
        return references[key]

    return make


def evaluate_here(run):
    """Runs a sidecar in this process."""
    flags = {"policy": "all", "timeout_secs": 60}
    handlers = {n: signal.getsignal(n) for n in preemption.stop_signals()}
    try:
        commands.run(evaluate.main, run.model_dir, None, **flags)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.fixture
def make_run(tmp_path, data_dir):
    runs = []

    def make(*bindings, model_dir=None, device="cpu"):
        model_dir = model_dir or tmp_path / "run"
        runs.append(processes.Run(model_dir, data_dir, *bindings, device=device))
        return runs[-1]

    yield make
    for run in runs:
        run.end()


@pytest.mark.slow
def test_a_run_with_many_faults_has_the_results_of_an_undisturbed_run(
    make_run, make_reference
):
    reference = make_reference(SHORT)
    run = make_run(*SHORT)
    # The sidecar starts first. It is killed before it records its first results.
    killed = run.evaluate(*SIDECAR_FLAGS, fault="killed_before_record")
    trainer = run.train()
    run.wait_for(lambda: len(run.steps()) >= 3)
    trainer.kill()
    assert trainer.wait() == -signal.SIGKILL
    assert run_state.read(str(run.model_dir)).state == "running"
    steps = run.steps()
    run.truncate(steps[-1])
    run.delete(steps[-2])
    assert killed.wait() == -signal.SIGKILL
    assert run.records() == []
    # Two sidecars at once; for one of them the disk is full for a while.
    trainer = run.train(fault="clock_jumps")
    sidecar = run.evaluate(*SIDECAR_FLAGS, fault="full_disk")
    evaluate_here(run)
    assert (trainer.wait(), sidecar.wait()) == (0, 0), sidecar.tail()
    run.check(reference)
    got, expected = run.last_weights(), reference.last_weights()
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


class Pair:
    """A trainer and a sidecar; each is restarted when it exits with an error."""

    def __init__(self, run, *, trainer_fault="", sidecar_faults=()):
        self.run = run
        self.trainer_fault = trainer_fault
        self.sidecar_faults = list(sidecar_faults)
        self.num_done = 0
        self.trainer = self.sidecar = None

    def run_to_end(self, faults, secs=1800):
        """Runs both until they succeed, while a generator injects faults."""
        end = time.monotonic() + secs
        while any(p is None or p.code != 0 for p in (self.trainer, self.sidecar)):
            assert time.monotonic() < end, self.sidecar.tail()
            if self.trainer is None or self.trainer.code not in (None, 0):
                self.trainer = self.run.train(fault=self.trainer_fault)
            if self.sidecar is None or self.sidecar.code not in (None, 0):
                fault = self.sidecar_faults.pop(0) if self.sidecar_faults else ""
                self.sidecar = self.run.evaluate(*SIDECAR_FLAGS, fault=fault)
            next(faults, None)
            time.sleep(0.02)


def pause(secs):
    end = time.monotonic() + secs
    while time.monotonic() < end:
        yield


def signals(pair, rng, name, number, count):
    """Sends a signal at random times, alternately during start-up and during work."""
    progress = pair.run.steps if name == "trainer" else pair.run.records
    for i in range(count):
        before = progress()
        if i % 2:
            yield from pause(rng.uniform(0, 12))
        else:
            while progress() == before:
                yield
            yield from pause(rng.uniform(0, 1.5))
        while getattr(pair, name).code is not None:
            if pair.trainer.code == pair.sidecar.code == 0:
                return
            yield
        process = getattr(pair, name)
        process.kill(number)
        pair.num_done += 1
        while process.code is None:
            yield


def deletions(pair, rng, count):
    """Deletes random checkpoints except the newest."""
    while pair.num_done < count and pair.trainer.code != 0:
        yield from pause(rng.uniform(0, 1))
        if older := pair.run.steps()[:-1]:
            pair.run.delete(rng.choice(older))
            pair.num_done += 1
        yield


def truncations(pair, rng, count):
    """Kills the trainer and truncates the newest checkpoint."""
    while pair.num_done < count and pair.trainer.code != 0:
        before = pair.run.steps()
        while pair.run.steps() == before:
            yield
        yield from pause(rng.uniform(0, 2))
        if pair.trainer.code is None:
            pair.trainer.kill()
            pair.trainer.wait()
            pair.run.truncate(pair.run.steps()[-1])
            pair.num_done += 1
        yield


def full_disks(pair, rng, count):
    """Fills the disk for a while."""
    filler = pair.run.model_dir.parent / "filler"
    while pair.num_done < count and pair.trainer.code != 0:
        before = pair.run.steps()
        while pair.run.steps() == before:
            yield
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        pair.num_done += 1
        yield from pause(rng.uniform(5, 20))
        filler.unlink()
        yield


def old_and_new_files(pair, rng, count):
    """Moves modification times by a day, as a clock that jumps does."""
    while pair.num_done < count and pair.trainer.code != 0:
        yield from pause(0.5)
        for path in pair.run.model_dir.rglob("*"):
            with contextlib.suppress(OSError):
                stamp = time.time() + rng.choice([-86400, 0, 86400])
                os.utime(path, (stamp, stamp))
        pair.num_done += 1


def corruptions(pair, rng, count):
    """Overwrites files with random bytes, or appends such bytes to eval.jsonl."""
    names = ["run_state.json", "checkpoint", "eval/eval.jsonl", "leases/x.json"]
    while pair.num_done < count and pair.trainer.code != 0:
        yield from pause(rng.uniform(0, 2))
        path = pair.run.model_dir / rng.choice(names)
        path.parent.mkdir(exist_ok=True)
        with path.open("ab" if path.suffix == ".jsonl" else "wb") as file:
            file.write(rng.randbytes(100) + b"\n")
        pair.num_done += 1
        yield


def read_only_times(pair, rng, count):
    """Makes all writes fail for a while."""
    mark = pathlib.Path(f"{pair.run.model_dir}.read_only")
    while pair.num_done < count and pair.trainer.code != 0:
        before = pair.run.steps()
        while pair.run.steps() == before:
            yield
        mark.touch()
        pair.num_done += 1
        yield from pause(rng.uniform(5, 20))
        mark.unlink()
        yield


def second_trainers(pair, rng, count):
    """Starts further trainers while one runs."""
    while pair.run.steps() == []:
        yield
    while pair.num_done < count and pair.trainer.code is None:
        second = pair.run.train()
        while second.code is None:
            yield
        if pair.trainer.code is None:
            assert second.code == 1 and "is training in" in second.tail()
            pair.num_done += 1


@pytest.fixture
def rng():
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture
def report(request, make_reference):
    """Returns a function that checks a run and prints its row of the table."""

    def check_and_print(run, *, times):
        kept, evaluated = run.check(make_reference(LONG, run.device))
        assert run.steps()[-1] == 1500
        name = request.node.name.removeprefix("test_").replace("_", " ")
        started = len(run.processes)
        secs = time.monotonic() - start
        print(
            f"\n| {name} | {times} | {started} | {evaluated} | {kept} | {secs:.0f} s |"
        )

    callspec = getattr(request.node, "callspec", None)
    make_reference(LONG, callspec.params["device"] if callspec else "cpu")
    start = time.monotonic()
    return check_and_print


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "number", "times", "device"),
    [
        ("trainer", "SIGKILL", 20, "cpu"),
        ("sidecar", "SIGKILL", 20, "cpu"),
        ("trainer", "SIGTERM", 10, "cpu"),
        ("trainer", "SIGHUP", 10, "cpu"),
        # The second engine.
        pytest.param("trainer", "SIGKILL", 20, "xla_cpu", marks=needs_jax),
        pytest.param("trainer", "SIGTERM", 10, "xla_cpu", marks=needs_jax),
    ],
)
def test_a_signal_to_the(make_run, rng, report, name, number, times, device):
    keep = [KEEP_ALL] if name == "sidecar" else []
    pair = Pair(make_run(*LONG, *keep, device=device))
    number = getattr(signal, number)
    pair.run_to_end(signals(pair, rng, name, number, times))
    assert pair.num_done == times
    report(pair.run, times=pair.num_done)


@pytest.mark.slow
def test_a_deleted_checkpoint(make_run, rng, report):
    pair = Pair(make_run(*LONG))
    pair.run_to_end(deletions(pair, rng, 20))
    assert pair.num_done == 20
    report(pair.run, times=pair.num_done)


@pytest.mark.slow
def test_a_truncated_data_shard(make_run, rng, report):
    pair = Pair(make_run(*LONG))
    pair.run_to_end(truncations(pair, rng, 5))
    assert pair.num_done == 5
    report(pair.run, times=pair.num_done)


@pytest.mark.slow
def test_a_full_disk(make_run, rng, report, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("Only root may mount a small file system.")
    try:
        pair = Pair(make_run(*LONG, model_dir=disk / "run"))
        pair.run_to_end(full_disks(pair, rng, 3))
        assert pair.num_done == 3
        report(pair.run, times=pair.num_done)
        pair.run.end()
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.slow
def test_corrupt_files(make_run, rng, report):
    pair = Pair(make_run(*LONG))
    pair.run_to_end(corruptions(pair, rng, 20))
    assert pair.num_done == 20
    report(pair.run, times=pair.num_done)


@pytest.mark.slow
def test_a_directory_that_is_temporarily_read_only(make_run, rng, report):
    pair = Pair(
        make_run(*LONG), trainer_fault="read_only", sidecar_faults=["read_only"]
    )
    pair.run_to_end(read_only_times(pair, rng, 3))
    assert pair.num_done == 3
    report(pair.run, times=pair.num_done)


@pytest.mark.slow
def test_further_trainers(make_run, rng, report):
    pair = Pair(make_run(*LONG))
    pair.run_to_end(second_trainers(pair, rng, 5))
    assert pair.num_done
    report(pair.run, times=pair.num_done)


@pytest.mark.slow
def test_a_clock_that_jumps(make_run, rng, report):
    faults = ["clock_jumps"] * 5
    pair = Pair(make_run(*LONG), trainer_fault=faults[0], sidecar_faults=faults)
    pair.run_to_end(old_and_new_files(pair, rng, 20))
    assert pair.num_done == 20
    report(pair.run, times=pair.num_done)


@pytest.mark.slow
def test_two_sidecars_at_once(make_run, report):
    pair = Pair(make_run(*LONG, KEEP_ALL))
    second = pair.run.evaluate(*SIDECAR_FLAGS)
    pair.run_to_end(iter(()))
    assert second.wait() == 0
    report(pair.run, times=1)


@pytest.mark.slow
def test_a_sidecar_killed_before_it_records_its_results(make_run, report):
    pair = Pair(make_run(*LONG), sidecar_faults=["killed_before_record"] * 5)
    pair.run_to_end(iter(()))
    assert pair.sidecar_faults == []
    report(pair.run, times=5)
