import os
import threading
import time

import pytest
import tensorflow as tf

from retinanet_tpu.estimator.model_dir import leases

PATH = "run/model.ckpt-40"


class Clock:
    """A clock that a test moves."""

    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture(params=["local", "ram"])
def directory(request, tmp_path):
    return str(tmp_path) if request.param == "local" else f"ram://{tmp_path.name}"


def files_in(directory):
    return tf.io.gfile.listdir(f"{directory}/leases")


def write_expired_lease(directory, name="40-read-0.json"):
    tf.io.gfile.makedirs(f"{directory}/leases")
    path = f"{directory}/leases/{name}"
    with tf.io.gfile.GFile(path, "w") as file:
        file.write('{"beat": 3}\n')
    return path


def wait_until(condition, secs=10):
    end = time.monotonic() + secs
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_lease_lasts_as_long_as_its_block(directory):
    table = leases.LeaseTable(directory, 60)
    assert table.held_steps() == set()
    with (
        leases.lease_checkpoint(directory, PATH),
        leases.lease_checkpoint(directory, "run/model.ckpt-50"),
    ):
        assert table.held_steps() == {40, 50}
    assert table.held_steps() == set() and files_in(directory) == []


def test_each_reader_of_a_checkpoint_has_its_own_lease(directory):
    table = leases.LeaseTable(directory, 60)
    with leases.lease_checkpoint(directory, PATH):
        with leases.lease_checkpoint(directory, PATH):
            assert len(table.active_leases()) == 2
        assert table.held_steps() == {40}


def test_a_lease_is_released_after_an_error(directory):
    with pytest.raises(RuntimeError), leases.lease_checkpoint(directory, PATH):
        raise RuntimeError
    assert files_in(directory) == []


def test_an_active_lease_is_renewed_and_never_expires(directory, monkeypatch):
    monkeypatch.setattr(leases, "RENEW_SECS", 0.01)
    clock = Clock()
    table = leases.LeaseTable(directory, 60, clock)
    with leases.lease_checkpoint(directory, PATH) as name:
        for _ in range(3):
            assert table.held_steps() == {40}
            before = leases._content(f"{directory}/leases/{name}")
            wait_until(
                lambda b=before: leases._content(f"{directory}/leases/{name}") != b
            )
            clock.now += 1000
        assert table.held_steps() == {40}


def test_a_lease_that_does_not_change_expires_and_is_removed(directory):
    write_expired_lease(directory)
    clock = Clock()
    table = leases.LeaseTable(directory, 60, clock)
    assert table.held_steps() == {40}
    clock.now += 59
    assert table.held_steps() == {40}
    clock.now += 2
    assert table.held_steps() == set()
    assert files_in(directory) == []


def test_other_files_in_the_lease_directory_are_ignored(tmp_path):
    names = ["x", "x-y.json", "²-read-0.json", "40-read-0.txt", "write.json", "40"]
    for name in names:
        write_expired_lease(str(tmp_path), name)
    (tmp_path / "leases" / "folder").mkdir()
    open(os.fsencode(tmp_path) + b"/leases/\xff", "w").close()
    before, clock = sorted(os.listdir(tmp_path / "leases")), Clock()
    table = leases.LeaseTable(str(tmp_path), 60, clock)
    for _ in range(2):
        assert table.active_leases() == [] and table.held_steps() == set()
        clock.now += 1000
    with leases.directory_lock(str(tmp_path), patience_secs=0):
        pass
    assert sorted(os.listdir(tmp_path / "leases")) == before


def test_a_lease_that_is_not_text_counts(tmp_path):
    with open(write_expired_lease(str(tmp_path)), "wb") as file:
        file.write(b"\xff\xfe\0")
    assert leases.LeaseTable(str(tmp_path), 60).held_steps() == {40}


def test_leases_are_selected_by_purpose(directory):
    table = leases.LeaseTable(directory, 60)
    with (
        leases.lease_checkpoint(directory, PATH),
        leases.lease_checkpoint(directory, "a/b-7", "eval_a-b"),
    ):
        assert table.held_steps(purposes=["eval_a-b"]) == {7}
        assert table.held_steps(purposes=["eval_a"]) == set()


@pytest.mark.parametrize("year_secs", [0, 4e9])
def test_the_modification_time_of_a_lease_does_not_matter(tmp_path, year_secs):
    path = write_expired_lease(str(tmp_path))
    os.utime(path, (year_secs, year_secs))
    clock = Clock()
    table = leases.LeaseTable(str(tmp_path), 60, clock)
    assert table.held_steps() == {40}
    os.utime(path, (4e9 - year_secs, 4e9 - year_secs))
    clock.now += 61
    assert table.held_steps() == set()


def test_a_holder_writes_a_removed_lease_again(directory, monkeypatch):
    monkeypatch.setattr(leases, "RENEW_SECS", 0.01)
    with leases.lease_checkpoint(directory, PATH) as name:
        tf.io.gfile.remove(f"{directory}/leases/{name}")
        wait_until(lambda: files_in(directory) == [name])
    assert files_in(directory) == []


def test_a_failed_renewal_is_retried(directory, monkeypatch):
    monkeypatch.setattr(leases, "RENEW_SECS", 0.01)
    write, beats = leases._write, []

    def full_disk(path, beat):
        beats.append(beat)
        if beat in (1, 2):
            raise tf.errors.ResourceExhaustedError(None, None, "No space left")
        write(path, beat)

    monkeypatch.setattr(leases, "_write", full_disk)
    with leases.lease_checkpoint(directory, PATH):
        wait_until(lambda: len(beats) > 4)
    assert files_in(directory) == []


def test_a_lease_that_cannot_be_written_is_an_error_and_leaves_no_file(
    directory, monkeypatch
):
    def full_disk(path, beat):
        write_expired_lease(directory, path.rpartition("/")[2])
        raise tf.errors.ResourceExhaustedError(None, None, "No space left")

    monkeypatch.setattr(leases, "_write", full_disk)
    with (
        pytest.raises(tf.errors.ResourceExhaustedError),
        leases.lease_checkpoint(directory, PATH),
    ):
        pass
    assert files_in(directory) == []


def test_one_writer_at_a_time_has_the_lock(directory):
    shared = {"count": 0, "inside": 0, "most": 0}

    def count():
        for _ in range(5):
            with leases.directory_lock(directory):
                shared["inside"] += 1
                shared["most"] = max(shared["most"], shared["inside"])
                before = shared["count"]
                time.sleep(0.002)  # A second writer here would read the same count.
                shared["count"] = before + 1
                shared["inside"] -= 1

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shared == {"count": 20, "inside": 0, "most": 1}


def test_the_lock_of_a_writer_that_died_expires(directory, monkeypatch):
    monkeypatch.setattr(leases, "TIMEOUT_SECS", 0.3)
    write_expired_lease(directory, "write-0.json")
    start = time.monotonic()
    with leases.directory_lock(directory):
        assert time.monotonic() - start > 0.3


def test_waiting_too_long_for_the_lock_is_an_error(directory):
    with (
        leases.directory_lock(directory),
        pytest.raises(TimeoutError, match=r"held by others for 0\.1 s"),
        leases.directory_lock(directory, patience_secs=0.1),
    ):
        pass
