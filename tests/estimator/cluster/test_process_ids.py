import json
import os
import subprocess
import sys

import pytest

from retinanet_tpu.estimator.cluster import process_ids

HERE = process_ids.current()


def test_this_process_has_not_ended():
    assert HERE.pid == os.getpid() and HERE.machine
    assert not process_ids.has_ended(HERE)


@pytest.mark.parametrize(
    ("changes", "has_ended"),
    [
        ({"pid": 2**22 + 1}, True),  # above the highest number of Linux
        ({"start": "1"}, True),  # another process has the number
        ({"machine": "another"}, False),
        ({"machine": "another", "pid": 2**22 + 1}, False),
        ({"machine": ""}, False),
        ({"host": "another"}, False),  # host names are not compared
    ],
)
def test_a_process_has_ended_only_if_that_is_certain(changes, has_ended):
    assert process_ids.has_ended(HERE._replace(**changes)) == has_ended


def test_a_zombie_process_has_ended():
    command = [sys.executable, "-c", "print(open('/proc/self/stat').read())"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        start = child.stdout.read().decode().rpartition(")")[2].split()[19]
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        process = HERE._replace(pid=child.pid, start=start)
        assert process_ids.has_ended(process)


def test_without_proc_nothing_is_certain(monkeypatch, tmp_path):
    monkeypatch.setattr(process_ids, "_PROC", tmp_path)
    assert process_ids.current().machine == ""
    assert not process_ids.has_ended(HERE._replace(start="1"))


def test_an_id_is_restored_from_json():
    assert process_ids.from_json(json.loads(json.dumps(HERE._asdict()))) == HERE


@pytest.mark.parametrize(
    "value",
    [7, "x", [], {}, {**HERE._asdict(), "pid": "x"}, {**HERE._asdict(), "pid": -1}],
)
def test_an_invalid_id_is_an_error(value):
    with pytest.raises((LookupError, TypeError, ValueError)):
        process_ids.from_json(value)
