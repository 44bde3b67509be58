import ast
import json
import os
import re
import signal
import stat
import subprocess

import pytest

import fake_gcloud
import repository
from retinanet_tpu.estimator import gin_files
from retinanet_tpu.task import cli, configurables
from retinanet_tpu.xla import roofline

SCRIPTS = repository.ROOT / "tools" / "deploy" / "tpu_vm"
# The packages that look TPUs up by name and keep an installed TensorFlow.
TPU_NAMES = ast.literal_eval(repository.setting("tpu-names"))
# The settings of a slice whose hosts all run a trainer.
PJRT = {"EXTRA": "xla-tpu", "RUNTIME_VERSION": "v2-alpha-tpuv6e"}
FLAGS = [
    "--gin_file=gin_configs/coco_r50_640_6x.gin",
    "--model_dir=gs://bucket/run 1",
    "--gin_param=DATA_DIR = 'gs://bucket/co\"co'",
    "--gin_param=FROZEN = ('backbone/stem', 'heads/*norm*', '$HOME `id` \\ & ;')",
]


@pytest.fixture
def cloud(tmp_path):
    fake = fake_gcloud.Cloud(tmp_path, FLAGS)
    yield fake
    fake.end()


@pytest.fixture
def pod(tmp_path):
    fake = fake_gcloud.Cloud(tmp_path, FLAGS, num_hosts=4)
    yield fake
    fake.end()


def wait_for_end(host):
    """Waits until a trainer and the loop that restarts it have ended."""
    lock = host / "retinanet_tpu_run" / "lock"
    timeout = f"--wait={fake_gcloud.DEADLINE_SECS}"
    subprocess.run(["flock", timeout, str(lock), "true"], check=True)


def python_calls(host):
    """Returns (folder, arguments, environment variables) of each call of Python."""
    lines = (host / "python_calls").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.sh")), ids=lambda p: p.name)
def test_every_script_parses_and_all_but_the_shared_one_can_be_run(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert bool(script.stat().st_mode & stat.S_IXUSR) == (script.name != "common.sh")


def test_a_slice_is_created_with_the_settings_and_extra_flags(cloud):
    done = cloud.run("create.sh", "--network=mine")
    assert done.returncode == 0, done.stdout
    assert cloud.calls() == [
        ["describe", "big", "--format=value(state)"],
        [
            "create",
            "big",
            "--accelerator-type=v3-8",
            "--version=tpu-vm-tf-2.20.0-pjrt",
            "--network=mine",
        ],
    ]
    assert "hosts: 1" in done.stdout and "setup.sh" in done.stdout


def test_a_ready_slice_is_kept(cloud):
    (cloud.folder / "state").write_text("READY")
    assert cloud.run("create.sh").returncode == 0
    assert [call[0] for call in cloud.calls()] == ["describe"]


def test_a_preempted_slice_is_replaced_and_may_be_spot(pod):
    (pod.folder / "state").write_text("PREEMPTED")
    done = pod.run("create.sh", SPOT="1")
    assert done.returncode == 0, done.stdout
    assert [call[0] for call in pod.calls()] == ["describe", "delete", "create"]
    assert "--quiet" in pod.calls()[1] and "--spot" in pod.calls()[2]


def test_a_slice_that_is_being_created_is_an_error(cloud):
    (cloud.folder / "state").write_text("CREATING")
    done = cloud.run("create.sh")
    assert done.returncode == 1 and "big is CREATING; wait" in done.stdout
    assert len(cloud.calls()) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"NAME": None}, "NAME is not set"),
        ({"PROJECT": ""}, "PROJECT is not set"),
        ({"ZONE": None}, "ZONE is not set"),
        ({"ACCELERATOR_TYPE": None}, "ACCELERATOR_TYPE is not set"),
        ({"RUNTIME_VERSION": None}, "RUNTIME_VERSION is not set"),
        ({"ACCELERATOR_TYPE": "v3-33"}, "known are v3-32"),
        ({"SPOT": "yes"}, "SPOT is yes; set it to 1 or 0"),
        (
            {"ACCELERATOR_TYPE": "v3-32"},
            "4 hosts and requires a RUNTIME_VERSION with -pod",
        ),
        ({"RUNTIME_VERSION": "tpu-vm-tf-2.20.0-pod-pjrt"}, "VERSION without -pod"),
        ({"EXTRA": "xla"}, "EXTRA is xla; set it to tpu"),
        ({"EXTRA": "xla-tpu"}, "VERSION without TensorFlow, such as v2-alpha-tpuv6e"),
    ],
)
def test_an_invalid_setting_is_an_error_before_any_call(cloud, changes, message):
    done = cloud.run("create.sh", **changes)
    assert done.returncode == 1 and message in done.stdout
    assert cloud.calls() == []


@pytest.mark.parametrize("script", ["setup.sh", "start.sh", "tail.sh", "stop.sh"])
def test_every_script_requires_a_name(cloud, script):
    done = cloud.run(script, NAME=None)
    assert done.returncode == 1 and "error: NAME is not set" in done.stdout


@pytest.mark.parametrize(
    ("script", "arguments"),
    [("setup.sh", ["x"]), ("start.sh", []), ("tail.sh", ["-f"]), ("stop.sh", ["now"])],
)
def test_invalid_arguments_show_the_usage(cloud, script, arguments):
    done = cloud.run(script, *arguments)
    assert done.returncode == 2 and f"tools/deploy/tpu_vm/{script}" in done.stdout
    assert cloud.calls() == []


def test_the_checkout_is_installed_on_every_host(pod):
    if subprocess.run(
        ["git", "-C", repository.ROOT, "rev-parse"], capture_output=True
    ).returncode:
        pytest.skip("This is no git checkout, and setup.sh copies one.")
    done = pod.run("setup.sh")
    assert done.returncode == 0, done.stdout
    assert [call[0] for call in pod.calls()] == ["scp", "ssh"]
    assert all("--worker=all" in call for call in pod.calls())
    for host in sorted(pod.folder.glob("host*")):
        copy = host / "retinanet_tpu" / "retinanet_tpu" / "train.py"
        assert (
            copy.read_bytes()
            == (repository.ROOT / "retinanet_tpu" / "train.py").read_bytes()
        )
        version, pip, check = python_calls(host)
        assert "(3, 10) <= sys.version_info" in version[1][1]
        assert pip[0] == str(host / "retinanet_tpu")
        assert pip[1][-4:] == ["-e", ".", *TPU_NAMES]
        # Like the trainer, including libtpu.
        assert check[1][1].startswith("import retinanet_tpu.startup.tpu\nimport tensor")
        assert "m.__version__" in check[1][1] and check[2] == {}


def test_an_image_without_tensorflow_gets_that_of_the_extra(cloud):
    done = cloud.run("setup.sh", RUNTIME_VERSION="v2-alpha-tpuv5-lite")
    assert done.returncode == 0, done.stdout
    _, words, _ = python_calls(cloud.host)[1]
    assert words[:2] == ["-m", "pip"] and words[-2:] == ["-e", ".[tpu]"]


def test_the_extra_of_an_image_without_tensorflow_can_be_chosen(cloud):
    settings = {"RUNTIME_VERSION": "v2-alpha-tpuv6e", "EXTRA": "tpu219"}
    done = cloud.run("setup.sh", **settings)
    assert done.returncode == 0, done.stdout
    _, words, _ = python_calls(cloud.host)[1]
    assert words[-2:] == ["-e", ".[tpu219]"]
    done = cloud.run("setup.sh", **settings | {"EXTRA": "tpu220"})
    assert done.returncode == 1
    assert "error: EXTRA is tpu220; set it to tpu" in done.stdout


def test_a_host_on_which_tensorflow_aborts_is_not_set_up(pod):
    (pod.folder / "host2" / "code_ends").write_text("134")
    done = pod.run("setup.sh")
    assert done.returncode != 0
    assert "error: tensorflow cannot be imported on " in done.stdout
    assert "stop.sh" in done.stdout and "docs/guides/tpu.md" in done.stdout
    assert "are set up" not in done.stdout


def test_flags_reach_the_trainer_unchanged(cloud):
    cloud.install("0")
    done = cloud.run("start.sh", *FLAGS)
    assert done.returncode == 0, done.stdout
    assert cloud.run("tail.sh").returncode == 0
    ((folder, flags, variables),) = cloud.trainers()
    assert flags == FLAGS
    assert folder == str(cloud.host / "retinanet_tpu")
    assert variables == {"NEXT_PLUGGABLE_DEVICE_USE_C_API": "true"}


def test_the_first_of_several_hosts_trains_with_the_name_of_the_slice(pod):
    pod.install("0")
    assert pod.run("start.sh", "--model_dir=gs://b/run").returncode == 0
    assert pod.run("tail.sh").returncode == 0
    assert "--worker=0" in pod.calls()[0]
    ((_, flags, variables),) = pod.trainers()
    assert flags[1:] == [
        "--gin_file=gin_configs/device/tpu_pod.gin",
        "--gin_param=TPU_NAME = 'big'",
    ]
    assert variables == {"TPU_NAME": "big", "TPU_LOAD_LIBRARY": "0"}


def test_pjrt_needs_no_image_with_tensorflow_servers(pod):
    done = pod.run("create.sh", **PJRT)
    assert done.returncode == 0, done.stdout
    assert "--version=v2-alpha-tpuv6e" in pod.calls()[-1]


def test_pjrt_is_installed_and_imported_with_the_chosen_python(cloud):
    done = cloud.run("setup.sh", PYTHON="python3.12", **PJRT)
    assert done.returncode == 0, done.stdout
    version, pip, check = python_calls(cloud.host)
    assert "(3, 11) <= sys.version_info" in version[1][1]
    assert pip[1][-2:] == ["-e", ".[xla-tpu]"]
    assert "import tensorflow, jax" in check[1][1]


def test_a_host_whose_python_is_too_old_for_jax_is_not_set_up(pod):
    (pod.hosts[2] / "python_is_old").touch()
    done = pod.run("setup.sh", **PJRT)
    assert done.returncode == 1 and "are set up" not in done.stdout
    assert "EXTRA=xla-tpu needs Python 3.11 to 3.12 on " in done.stdout
    assert len(python_calls(pod.hosts[2])) == 2  # Not pip.


def test_pjrt_runs_the_same_trainer_on_every_host(pod):
    pod.install("42", "0")
    (pod.folder / "bin" / "python3").unlink()  # Only the chosen one remains.
    flags = ["--model_dir=gs://b/run", "--gin_param=SEED = 1"]
    done = pod.run("start.sh", *flags, PYTHON="python3.12", **PJRT)
    assert done.returncode == 0, done.stdout
    assert pod.run("tail.sh", **PJRT).returncode == 0
    for host in pod.hosts:
        wait_for_end(host)
        expected = [*flags, "--gin_file=gin_configs/device/xla_tpu.gin"]
        starts = [(seen_flags, seen) for _, seen_flags, seen in pod.trainers(host)]
        assert starts == [(expected, {})] * 2


def test_stopping_ends_the_trainers_of_all_hosts(pod):
    pod.install("stopped")
    pod.start(pod.hosts, **PJRT)
    done = pod.run("stop.sh", **PJRT)
    assert done.returncode == 0 and done.stdout.count("ended with 42") == 4
    assert [len(pod.trainers(host)) for host in pod.hosts] == [1] * 4


def test_several_hosts_require_a_bucket(pod):
    done = pod.run("start.sh", "--model_dir=/tmp/run")
    assert done.returncode == 1 and "gs://" in done.stdout and pod.calls() == []


@pytest.mark.long
def test_a_preempted_trainer_starts_again_until_it_is_done(cloud):
    cloud.install("42", "42", "0")
    cloud.run("start.sh", *FLAGS)
    tail = cloud.run("tail.sh")
    assert tail.returncode == 0 and "the trainer ended with 0" in tail.stdout
    assert [flags for _, flags, _ in cloud.trainers()] == [FLAGS] * 3


@pytest.mark.long
@pytest.mark.parametrize("code", [1, 5, 137])
def test_a_trainer_that_failed_does_not_start_again(cloud, code):
    cloud.install(str(code), "0")
    cloud.run("start.sh", *FLAGS)
    tail = cloud.run("tail.sh")
    assert tail.returncode == code
    assert f"the trainer ended with {code}" in tail.stdout
    assert len(cloud.trainers()) == 1


def test_the_same_start_twice_makes_one_trainer_and_another_is_refused(cloud):
    cloud.install("stopped", "0")
    cloud.start()
    again = cloud.run("start.sh", *FLAGS)
    assert again.returncode == 0 and "runs already" in again.stdout
    other = cloud.run("start.sh", "--model_dir=gs://bucket/run2")
    assert other.returncode == 1 and "Another trainer runs here" in other.stdout
    assert len(cloud.trainers()) == 1


def test_a_trainer_without_its_loop_still_holds_the_lock(cloud):
    cloud.install("stopped", "0")
    cloud.start()
    os.kill(int((cloud.host / "retinanet_tpu_run" / "pid").read_text()), signal.SIGKILL)
    other = cloud.run("start.sh", "--model_dir=gs://bucket/run2")
    assert other.returncode == 1 and "Another trainer runs here" in other.stdout
    assert "disappeared without an exit code" in cloud.run("tail.sh").stdout


@pytest.mark.long
def test_stopping_lets_the_trainer_save_and_does_not_restart_it(cloud):
    cloud.install("stopped", "0")
    cloud.start()
    done = cloud.run("stop.sh")
    assert done.returncode == 0 and "ended with 42" in done.stdout
    assert "still exists and is billed" in done.stdout
    assert len(cloud.trainers()) == 1
    assert cloud.run("start.sh", *FLAGS).returncode == 0  # It can be resumed.
    assert cloud.run("tail.sh").returncode == 0
    assert len(cloud.trainers()) == 2


def test_stopping_and_deleting_saves_first(cloud):
    cloud.install("stopped")
    cloud.start()
    done = cloud.run("stop.sh", "--delete")
    assert done.returncode == 0, done.stdout
    assert [call[0] for call in cloud.calls()[1:]] == ["describe", "ssh", "delete"]
    assert "ended with 42" in done.stdout and not (cloud.folder / "state").exists()


def test_a_slice_that_never_trained_or_is_preempted_is_deleted_too(cloud):
    for state in ("READY", "PREEMPTED"):
        (cloud.folder / "state").write_text(state)
        assert cloud.run("stop.sh", "--delete").returncode == 0
        assert not (cloud.folder / "state").exists()
    done = cloud.run("stop.sh", "--delete")
    assert done.returncode == 1 and "big does not exist in us-east1-d" in done.stdout


@pytest.mark.parametrize("script", ["create.sh", "stop.sh"])
def test_an_unreadable_state_is_not_an_absent_slice(cloud, script):
    (cloud.folder / "error").write_text("ERROR: (gcloud) PERMISSION_DENIED: not yours")
    done = cloud.run(script)
    assert done.returncode == 1 and "PERMISSION_DENIED: not yours" in done.stdout
    assert "does not exist" not in done.stdout


def test_the_configuration_of_pjrt_is_valid(monkeypatch):
    monkeypatch.chdir(repository.ROOT)
    text = gin_files.parse(
        ["gin_configs/coco_r50_640_6x.gin", "gin_configs/device/xla_tpu.gin"],
        ["TrainingPlan.evaluate_during_training = False"],
        known=configurables.CONFIGURABLES,
        search_path=[cli.GIN_CONFIGS],
    )
    assert "make_strategy.engine = 'pjrt'" in text


def test_the_configuration_for_several_hosts_contains_the_slice(monkeypatch):
    monkeypatch.chdir(repository.ROOT)
    text = gin_files.parse(
        ["gin_configs/coco_r50_640_6x.gin", "gin_configs/device/tpu_pod.gin"],
        ["TPU_NAME = 'big'"],
        known=configurables.CONFIGURABLES,
        search_path=[cli.GIN_CONFIGS],
    )
    assert "TPU_NAME = 'big'" in text and "make_strategy.tpu = %TPU_NAME" in text


def test_the_guide_lists_the_correct_slices():
    rows = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in (repository.ROOT / "docs/guides/tpu.md").read_text().splitlines()
        if line.startswith("| v")
    ]
    slices = 0
    for names, _, devices, hosts, batch, _ in rows:
        names = re.findall(r"v[\w-]+", names)
        accelerators = [roofline.accelerator(name) for name in names]
        numbers = [int(number) for number in hosts.split(",")]
        assert {x.num_devices for x in accelerators} == {int(devices)}, names
        assert [x.num_hosts for x in accelerators] in (numbers, numbers * len(names)), (
            names
        )
        assert int(batch) == 8 * int(devices)
        slices += len(names)
    assert slices >= 12
