import importlib.util
import pathlib
import socket
import sys

import pytest
from absl import logging

pytest.importorskip("cloud_tpu_client")

import fake_cloud_tpu
from fake_cloud_tpu import node
from retinanet_tpu.estimator.cluster import tpu_nodes

ADDRESS = "grpc://10.0.0.2:8470"


@pytest.fixture
def cloud(monkeypatch, tmp_path):
    monkeypatch.setattr(tpu_nodes.tf, "__version__", "2.20.0")
    with fake_cloud_tpu.serve(monkeypatch, tmp_path) as cloud:
        yield cloud


@pytest.fixture
def log(caplog):
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.INFO)
    yield caplog
    logging.set_verbosity(verbosity)


def wait(cloud, name=fake_cloud_tpu.NAME, **more):
    location = {"zone": fake_cloud_tpu.ZONE, "project": fake_cloud_tpu.PROJECT}
    return tpu_nodes.wait_until_ready(
        name, clock=cloud.clock, sleep=cloud.sleep, **(location | more)
    )


def error_of(cloud, kind=ValueError, **more):
    """Returns the message of the error; checks that the TPU was not changed."""
    with pytest.raises(kind) as caught:
        wait(cloud, **more)
    assert not cloud.changes
    return str(caught.value)


def test_a_ready_tpu_needs_no_wait_and_no_change(cloud):
    assert wait(cloud) == ADDRESS
    assert not cloud.sleeps and not cloud.changes


def test_a_pod_has_an_address_for_each_host(cloud):
    cloud.set_answers(node(hosts=4))
    addresses = wait(cloud).split(",")
    assert addresses == [f"grpc://10.0.0.{i}:8470" for i in range(2, 6)]


def test_zone_and_project_default_to_those_of_the_vm(cloud):
    assert wait(cloud, zone=None, project=None) == ADDRESS
    assert "GET /computeMetadata/v1/instance/zone" in cloud.requests


def test_a_tpu_vm_need_not_report_its_health(cloud):
    cloud.set_answers(node("READY", "tpu-vm-tf-2.20.0-pod-pjrt", health=None))
    assert wait(cloud) == ADDRESS


def test_the_wait_for_a_tpu_is_logged(cloud, log):
    cloud.set_answers(node("CREATING"), node("CREATING"), node())
    assert wait(cloud, wait_secs=100) == ADDRESS
    assert cloud.sleeps == [tpu_nodes.POLL_SECS] * 2
    assert "'my-tpu': CREATING, health None; waiting 100 s more" in log.text
    assert "waiting 80 s more" in log.text
    assert "gcloud" not in log.text


@pytest.mark.parametrize(
    ("answer", "command"),
    [
        (node(health="UNHEALTHY_MAINTENANCE"), "describe"),
        (node("CREATING"), "describe"),
        (node("STOPPED"), "start"),
        (node("PREEMPTED"), "delete"),
        (node("TERMINATED"), "delete"),
        (node("DELETING"), "create"),
    ],
)
def test_the_wait_times_out_with_a_command_to_run(cloud, answer, command):
    cloud.set_answers(answer)
    message = error_of(cloud, TimeoutError, wait_secs=50)
    assert cloud.secs == 50
    assert f"in 50 s: {answer['state']}, health {answer.get('health')}. " in message
    assert (
        f"`gcloud compute tpus {command} my-tpu --zone=here-1a --project=mine`"
        in message
    )
    assert "make_strategy.tpu_wait_secs" in message


def test_a_state_that_does_not_end_logs_its_remedy_at_once(cloud, log):
    cloud.set_answers(node("PREEMPTED", "tpu-vm-tf-2.20.0-pod"), node())
    wait(cloud)
    assert "`gcloud compute tpus tpu-vm delete my-tpu" in log.text


def test_wait_secs_0_polls_once(cloud):
    cloud.set_answers(node("CREATING"))
    error_of(cloud, TimeoutError, wait_secs=0)
    assert not cloud.sleeps


def test_a_preempted_tpu_may_be_recreated_during_the_wait(cloud, log):
    cloud.set_answers(
        node("PREEMPTED"), node("DELETING"), 404, node("CREATING"), node()
    )
    assert wait(cloud) == ADDRESS
    assert "deleted; waiting" in log.text and "create my-tpu" in log.text


def test_a_tpu_that_changes_between_two_requests_is_polled_again(cloud, monkeypatch):
    client = tpu_nodes.cloud_tpu_client.Client
    network_endpoints = client.network_endpoints

    def later(self):
        if not cloud.sleeps:
            cloud.set_answers(node("RESTARTING"), node())
        return network_endpoints(self)

    monkeypatch.setattr(client, "network_endpoints", later)
    assert wait(cloud) == ADDRESS
    assert len(cloud.sleeps) == 1


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_transient_error_of_the_api_is_retried(cloud, log, code):
    cloud.set_answers(code, node())
    assert wait(cloud) == ADDRESS
    assert f"no answer (<HttpError {code}" in log.text


def test_an_api_that_is_unreachable_times_out(cloud, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("TPU_API_DISCOVERY_URL", f"http://127.0.0.1:{port}/")
    message = error_of(cloud, TimeoutError, wait_secs=50)
    assert "no answer" in message and "refused" in message
    assert cloud.secs == 50


def test_an_unknown_name_is_an_error_with_the_command_that_lists_names(cloud):
    message = error_of(cloud, name="my-tpo")
    assert "There is no TPU 'my-tpo'" in message
    assert "`gcloud compute tpus tpu-vm list --zone=here-1a --project=mine`" in message
    assert "make_strategy.tpu_zone" in message
    assert not cloud.sleeps


def test_an_empty_name_is_an_error_even_if_the_environment_has_one(cloud, monkeypatch):
    monkeypatch.setenv("TPU_NAME", fake_cloud_tpu.NAME)
    assert "make_strategy.tpu is empty" in error_of(cloud, name="")
    assert not cloud.requests


def test_outside_the_cloud_zone_and_project_are_required(cloud, monkeypatch):
    client = tpu_nodes.cloud_tpu_client.client
    monkeypatch.setattr(client, "_GCE_METADATA_ENDPOINT", "http://127.0.0.1:1")
    message = error_of(cloud, project=None)
    assert "make_strategy.tpu_zone and make_strategy.tpu_project" in message


def test_missing_credentials_are_an_error_with_the_login_command(cloud, monkeypatch):
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    message = error_of(cloud)
    assert "No credentials" in message
    assert "`gcloud auth application-default login`" in message


def test_expired_credentials_are_an_error(cloud):
    cloud.token_code = 400
    assert "No credentials" in error_of(cloud)
    assert not cloud.sleeps


def test_an_account_without_access_is_an_error_with_the_role_it_needs(cloud):
    cloud.set_answers(403)
    assert "roles/tpu.viewer" in error_of(cloud)
    assert not cloud.sleeps


def test_another_version_is_an_error_before_the_tpu_is_ready(cloud):
    cloud.set_answers(node("CREATING", "2.12.1"))
    message = error_of(cloud)
    assert "runs TensorFlow 2.12.1, this program 2.20.0" in message
    assert "Install tensorflow~=2.12.0 here" in message
    assert "--version=2.20.0, or set make_strategy.may_change_tpu_ver" in message
    assert not cloud.sleeps


@pytest.mark.parametrize("may_change_version", [False, True])
def test_the_image_of_a_tpu_vm_cannot_be_changed(cloud, may_change_version):
    cloud.set_answers(node("READY", "tpu-vm-tf-2.16.1-pod-pjrt"))
    message = error_of(cloud, may_change_version=may_change_version)
    assert "--version=tpu-vm-tf-2.20.0-pod-pjrt." in message
    assert "may_change_tpu_version" not in message


@pytest.mark.parametrize("version", ["2.20.0", "2.20", "2.20.1", "tpu-vm-tf-2.20.0"])
def test_the_same_release_is_never_restarted(cloud, log, version):
    cloud.set_answers(node("READY", version))
    assert wait(cloud, may_change_version=True) == ADDRESS
    assert not cloud.changes and "names no version" not in log.text


@pytest.mark.parametrize("version", ["nightly", "v2-alpha-tpuv5-lite", "tpu-vm-pt-2.0"])
def test_an_unknown_version_is_a_warning(cloud, log, version):
    cloud.set_answers(node("READY", version))
    assert wait(cloud, may_change_version=True) == ADDRESS
    assert f"runs '{version}', which names no version" in log.text
    assert not cloud.changes


def test_if_allowed_every_host_is_restarted_with_our_version(cloud, log):
    cloud.set_answers(node("CREATING", "2.12.0", 2), node("READY", "2.12.0", 2))
    assert len(wait(cloud, may_change_version=True).split(",")) == 2
    path = "/requestversion/10.0.0.{}/2.20.0?restartType=ifNeeded"
    assert sorted(cloud.changes) == [f"POST {path.format(i)}" for i in (2, 3)]
    assert "Restarting TPU 'my-tpu' with TensorFlow 2.20.0" in log.text


@pytest.mark.parametrize("code", [404, 500])
def test_a_version_change_that_fails_is_an_error(cloud, code):
    cloud.set_answers(node("READY", "2.12.0"))
    cloud.version_code = code
    with pytest.raises(ValueError, match=r"did not accept TensorFlow 2\.20\.0"):
        wait(cloud, may_change_version=True)


def test_a_fault_of_this_program_is_not_retried(cloud, monkeypatch):
    client = tpu_nodes.cloud_tpu_client.Client
    monkeypatch.setattr(client, "health", lambda self: {}["missing"])
    error_of(cloud, KeyError)
    assert not cloud.sleeps


def test_a_missing_package_is_an_error_with_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "cloud_tpu_client", None)
    path = pathlib.Path(tpu_nodes.__file__)
    spec = importlib.util.spec_from_file_location("tpu_nodes_alone", path)
    alone = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(alone)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[tpu\]'"):
        alone.wait_until_ready("my-tpu")
