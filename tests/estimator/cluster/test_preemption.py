import os
import signal
import threading
import time

import pytest

import metadata_server
from retinanet_tpu.estimator.cluster import preemption

QUIET = {"preempted": "FALSE", "maintenance-event": "NONE"}


def wait_for_reason(listener):
    end = time.monotonic() + 20
    while listener.reason() is None:
        assert time.monotonic() < end, "The listener has no reason."
    return listener.reason()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_is_a_reason_to_stop(name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with preemption.PreemptionListener() as listener:
        assert listener.reason() is None
        os.kill(os.getpid(), number)
        assert listener.reason() == f"signal {name}"
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_stops_at_once():
    with pytest.raises(KeyboardInterrupt), preemption.PreemptionListener():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_process_under_nohup_ignores_sighup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with preemption.PreemptionListener() as listener:
            os.kill(os.getpid(), signal.SIGHUP)
            with preemption.preserve_signal_handlers():
                os.kill(os.getpid(), signal.SIGHUP)
            assert listener.reason() is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("step", "num_lost", "message"),
    [
        (0, 0, "Stopped at step 0; nothing is saved: enough."),
        (0, 3, "Stopped at step 3; nothing is saved: enough."),
        (4, 0, "Stopped at step 4, which is saved: enough."),
        (4, 3, "Stopped at step 7; the newest checkpoint is of step 4: enough."),
    ],
)
def test_the_message_of_a_stop_contains_the_saved_step(step, num_lost, message):
    stop = preemption.Preempted("enough", step, num_lost=num_lost)
    assert str(stop) == message and stop.step == step


def test_signal_handlers_are_set_in_the_main_thread_only():
    def listen():
        with preemption.PreemptionListener() as listener:
            states.append((signal.getsignal(signal.SIGTERM), listener.reason()))

    states, before = [], signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert states == [(before, None)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("preempted", "TRUE"),
        ("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE"),
    ],
)
def test_a_notice_of_the_cloud_is_a_reason_to_stop(name, text):
    values = dict(QUIET)
    with (
        metadata_server.serve(values) as host,
        preemption.PreemptionListener(host, poll_secs=0.01) as listener,
    ):
        assert preemption.read_metadata(host, "instance/preempted") == "FALSE"
        assert listener.reason() is None
        values[name] = text
        assert wait_for_reason(listener) == f"the machine's {name} is {text}"


def test_a_live_migration_is_no_reason_to_stop():
    asked = []

    class Values(dict):
        def get(self, path):
            asked.append(path)
            return super().get(path)

    values = Values(QUIET | {"maintenance-event": "MIGRATE_ON_HOST_MAINTENANCE"})
    with (
        metadata_server.serve(values) as host,
        preemption.PreemptionListener(host, poll_secs=0.01) as listener,
    ):
        end = time.monotonic() + 20
        while asked.count("maintenance-event") < 3:
            assert time.monotonic() < end, "The listener does not poll."
        assert listener.reason() is None


def test_without_an_answer_there_is_no_notice():
    with metadata_server.serve({}) as host:
        assert preemption.read_metadata(host, "instance/preempted") is None
    assert preemption.read_metadata(host, "instance/preempted") is None


def test_only_a_google_cloud_vm_has_a_metadata_host(monkeypatch, tmp_path):
    monkeypatch.delenv("GCE_METADATA_HOST", raising=False)
    product = tmp_path / "product_name"
    monkeypatch.setattr(preemption, "_PRODUCT", str(product))
    assert preemption.find_metadata_host() is None
    product.write_text("Standard PC\n")
    assert preemption.find_metadata_host() is None
    product.write_text("Google Compute Engine\n")
    assert preemption.find_metadata_host() == "metadata.google.internal"
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:1")
    assert preemption.find_metadata_host() == "127.0.0.1:1"
    monkeypatch.setenv("GCE_METADATA_HOST", "")
    assert preemption.find_metadata_host() is None


def test_items_are_yielded_until_there_is_a_reason():
    reasons = iter([None, None, "enough"])
    got = []
    with pytest.raises(preemption.Preempted, match=r"step 8.*enough") as caught:
        for item in preemption.stop_when(lambda: next(reasons), "abc", 8):
            got.append(item)
    assert got == ["a", "b"] and caught.value.step == 8
