import json
import re
import socket
import subprocess

import pytest
from absl import flags
from absl.testing import flagsaver

import repository
from retinanet_tpu import data_service, evaluate, train
from retinanet_tpu.exit_codes import ExitCode
from retinanet_tpu.task import cli

pytestmark = pytest.mark.long

yaml = pytest.importorskip("yaml", reason="pip install pyyaml")

FOLDER = repository.ROOT / "tools" / "deploy" / "kubernetes"
# podFailurePolicy is stable since then.
OLDEST_KUBERNETES = "1.31"
TRAINERS = ["trainer_tpu.yaml", "trainer_gpu.yaml"]
MODULES = {
    "retinanet_tpu.train": train,
    "retinanet_tpu.evaluate": evaluate,
    "retinanet_tpu.data_service": data_service,
}


def documents(*names):
    """Returns the objects of the manifests (all by default), without kustomizations."""
    paths = [FOLDER / name for name in names] or sorted(FOLDER.glob("*.yaml"))
    objects = [x for path in paths for x in yaml.safe_load_all(path.read_text())]
    return [x for x in objects if x["kind"] != "Kustomization"]


def one(kind, name, *manifests):
    """Returns the object of that kind and name."""
    matching = [
        x
        for x in documents(*manifests)
        if (x["kind"], x["metadata"]["name"]) == (kind, name)
    ]
    (only,) = matching
    return only


def pods():
    """Returns (manifest, name, pod template) of all jobs and deployments."""
    return [
        (path.name, x["metadata"]["name"], x["spec"]["template"])
        for path in sorted(FOLDER.glob("*.yaml"))
        for x in documents(path.name)
        if x["kind"] in ("Job", "Deployment")
    ]


def container(template):
    """Returns the one container of a pod."""
    (only,) = template["spec"]["containers"]
    return only


def variables(template):
    """Returns the variables of a container's ConfigMaps; later ones win."""
    values = {}
    for source in container(template).get("envFrom", []):
        values |= one("ConfigMap", source["configMapRef"]["name"])["data"]
    return values


def arguments(template):
    """Returns a container's arguments after Kubernetes has replaced variables."""
    known = variables(template)
    return [
        re.sub(r"\$\((\w+)\)", lambda match: known[match[1]], argument)
        for argument in container(template)["args"]
    ]


def outcome(job, code=None, condition=None):
    """Returns the action of the first matching rule for a pod's end, or "Count"."""
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions", [])
        if codes and codes["operator"] == "In" and code in codes["values"]:
            return rule["action"]
        if condition in [x["type"] for x in conditions if x["status"] == "True"]:
            return rule["action"]
    return "Count"


def trainer_templates():
    return [
        (name, one("Job", "trainer", name)["spec"]["template"]) for name in TRAINERS
    ]


def settings(template):
    """Returns the --gin_param of a trainer by name."""
    params = [x.partition("=")[2] for x in arguments(template) if "--gin_param=" in x]
    return {
        name.strip(): value.strip()
        for name, _, value in (p.partition("=") for p in params)
    }


def gin_files(template):
    return [x.partition("=")[2] for x in arguments(template) if "--gin_file=" in x]


def bound(name, *paths):
    """Returns the integer that the last of the gin files binds to a name."""
    text = "\n".join((repository.ROOT / path).read_text() for path in paths)
    return int(re.findall(rf"^{name} = (\d+)", text, re.MULTILINE)[-1])


def test_every_object_is_valid():
    validate = pytest.importorskip(
        "kubernetes_validate", reason="pip install kubernetes-validate"
    ).validate
    for document in documents():
        validate(document, OLDEST_KUBERNETES, strict=True)


def test_the_schema_refuses_a_misspelt_field():
    library = pytest.importorskip("kubernetes_validate")
    job = one("Job", "sidecar")
    job["spec"]["podFailurePolicies"] = job["spec"].pop("podFailurePolicy")
    with pytest.raises(library.ValidationError, match="podFailurePolicies"):
        library.validate(job, OLDEST_KUBERNETES, strict=True)


def test_the_kustomization_starts_a_run_with_one_image():
    page = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    assert all((FOLDER / name).exists() for name in page["resources"])
    (image,) = page["images"]
    assert {container(template)["image"] for _, _, template in pods()} == {
        image["name"]
    }


def test_selectors_match_the_right_pods_only():
    labels = {(file, name): x["metadata"]["labels"] for file, name, x in pods()}
    expected = {"trainer": {"trainer"}, "data-dispatcher": {"data-dispatcher"}}
    expected["data-worker"] = {"data-worker"}
    for document in documents():
        selector = document["spec"].get("selector") if "spec" in document else None
        if selector is None:
            continue
        pairs = selector.get("matchLabels", selector).items()
        chosen = {name for (_, name), x in labels.items() if pairs <= x.items()}
        assert chosen == expected[document["metadata"]["name"]], document["kind"]


def test_the_data_service_accepts_its_own_pods_and_trainers_only():
    spec = one("NetworkPolicy", "data-service")["spec"]
    key = "app.kubernetes.io/component"
    components = {x["metadata"]["labels"][key] for _, _, x in pods()}
    (inside,) = spec["podSelector"]["matchExpressions"]
    (rule,) = spec["ingress"]
    (allowed,) = rule["from"][0]["podSelector"]["matchExpressions"]
    assert inside["key"] == allowed["key"] == key
    assert set(inside["values"]) == {"data-dispatcher", "data-worker"}
    assert set(allowed["values"]) == {"trainer", "data-worker"}
    assert set(inside["values"]) | set(allowed["values"]) <= components
    opened = {x["port"] for x in rule["ports"]}
    served = [container(x) for f, _, x in pods() if f == "data_service.yaml"]
    assert {p["containerPort"] for x in served for p in x["ports"]} == opened


@pytest.mark.parametrize("manifest", TRAINERS)
def test_a_preempted_trainer_restarts_and_a_failed_one_does_not(manifest):
    job = one("Job", "trainer", manifest)
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert job["spec"]["podReplacementPolicy"] == "Failed"
    assert outcome(job, code=ExitCode.PREEMPTED) == "Ignore"
    assert outcome(job, condition="DisruptionTarget") == "Ignore"
    # A node that is taken away may break its pods before the signal arrives.
    assert outcome(job, code=1, condition="DisruptionTarget") == "Ignore"
    assert outcome(job, code=1) == outcome(job, code=ExitCode.DIVERGED) == "FailJob"
    assert outcome(job, code=137) == "Count" and job["spec"]["backoffLimit"] > 0


def test_a_sidecar_restarts_unless_it_finished_or_failed():
    job = one("Job", "sidecar")
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert outcome(job, code=143) == "Ignore"  # SIGTERM
    for code in (ExitCode.FAILED, ExitCode.TRAINER_GONE, ExitCode.TRAINER_FAILED):
        assert outcome(job, code=code) == "FailJob"


@pytest.mark.parametrize(("manifest", "template"), trainer_templates())
def test_a_trainer_has_time_to_finish_its_loop_and_save(manifest, template):
    steps = bound("TPUConfig.iterations_per_loop", *device_files(template))
    # A step takes less than a second; a minute is for the checkpoint.
    assert template["spec"]["terminationGracePeriodSeconds"] >= steps * 1 + 60


def device_files(template):
    """Returns the device's gin file, after those that it includes."""
    (path,) = [name for name in gin_files(template) if "/device/" in name]
    included = re.findall(
        r"^include '(.+)'", (repository.ROOT / path).read_text(), re.MULTILINE
    )
    return [*(f"gin_configs/{name}" for name in included), path]


@pytest.mark.parametrize(("manifest", "template"), trainer_templates())
def test_a_trainer_leaves_evaluation_to_the_sidecar_of_its_model_dir(
    manifest, template
):
    assert settings(template)["TrainingPlan.evaluate_during_training"] == "False"
    beside = one("Job", "sidecar")["spec"]["template"]
    (model_dir,) = [x for x in arguments(template) if x.startswith("--model_dir=")]
    assert model_dir in arguments(beside) and "gs://" in model_dir


@pytest.mark.parametrize(("manifest", "template"), trainer_templates())
def test_the_schedule_has_eight_images_for_each_accelerator(manifest, template):
    spec = one("Job", "trainer", manifest)["spec"]
    limits = container(template)["resources"]["limits"]
    (devices,) = limits.values()
    assert container(template)["resources"]["requests"] == limits
    replicas = devices * spec.get("completions", 1)
    (schedule,) = [name for name in gin_files(template) if "/schedule/" in name]
    assert bound("BATCH_SIZE", schedule) == 8 * replicas


@pytest.mark.parametrize("worker", range(4))
def test_tf_config_contains_all_workers_and_the_own_index(worker):
    job = one("Job", "trainer", "trainer_gpu.yaml")
    service = one("Service", "trainer", "trainer_gpu.yaml")
    spec, template = job["spec"], job["spec"]["template"]
    index, tf_config = container(template)["env"]  # In this order; see the manifest.
    path = index["valueFrom"]["fieldRef"]["fieldPath"]
    assert path == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    text = tf_config["value"].replace(f"$({index['name']})", str(worker))
    config = json.loads(text)
    assert config["task"] == {"type": "worker", "index": worker}
    (port,) = service["spec"]["ports"]
    assert spec["completionMode"] == "Indexed"
    assert template["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert config["cluster"] == {
        "worker": [f"trainer-{i}.trainer:{port['port']}" for i in range(4)]
    }
    assert spec["completions"] == spec["parallelism"] == 4


def test_only_trainers_take_accelerators():
    for file, name, template in pods():
        resources = container(template)["resources"]
        requested = {x for part in resources.values() for x in part}
        accelerators = {"google.com/tpu", "nvidia.com/gpu"} & requested
        assert bool(accelerators) == (file in TRAINERS), name
        assert accelerators or "cpu" in requested


def test_a_tpu_node_has_the_chips_of_its_topology():
    spec = one("Job", "trainer", "trainer_tpu.yaml")["spec"]["template"]["spec"]
    sides = spec["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = spec["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert int(sides[0]) * int(sides[1]) == chips


@pytest.mark.parametrize(("manifest", "template"), trainer_templates())
def test_applying_the_data_service_points_trainers_at_it(manifest, template):
    ours, its = container(template)["envFrom"]
    assert its["configMapRef"]["optional"] is True
    alone = one("ConfigMap", ours["configMapRef"]["name"])["data"]
    assert alone["DATA_SERVICE_ADDRESS"] == "None"
    address = settings(template)["DATA_SERVICE_ADDRESS"]
    service = one("Service", "data-dispatcher")
    (port,) = service["spec"]["ports"]
    host = f"{service['metadata']['name']}:{port['port']}"
    assert address == f"'grpc://{host}'"
    roles = {
        name: arguments(template)
        for file, name, template in pods()
        if file == "data_service.yaml"
    }
    assert f"--port={port['port']}" in roles["data-dispatcher"]
    assert f"--dispatcher={host}" in roles["data-worker"]


@pytest.mark.parametrize(("manifest", "template"), trainer_templates())
def test_a_trainer_waits_for_its_data_service_if_it_has_one(manifest, template):
    (before,) = template["spec"]["initContainers"]
    assert before["envFrom"] == container(template)["envFrom"]
    (script,) = before["args"]
    assert before["command"] == ["bash", "-c"] and "data-dispatcher/5050" in script

    def end(address, port):
        here = script.replace("data-dispatcher/5050", f"127.0.0.1/{port}")
        # `sleep` fails, so that the script ends instead of waiting.
        return subprocess.run(
            ["bash", "-c", "sleep() { exit 7; }; " + here],
            env={"DATA_SERVICE_ADDRESS": address},
        ).returncode

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert end(settings(template)["DATA_SERVICE_ADDRESS"], port) == 0
    assert end(settings(template)["DATA_SERVICE_ADDRESS"], port) == 7
    assert end("None", port) == 0


@pytest.mark.parametrize(("manifest", "template"), trainer_templates())
def test_the_configuration_of_a_trainer_is_valid(manifest, template, monkeypatch):
    monkeypatch.chdir(repository.ROOT)
    with flagsaver.flagsaver():
        flags.FLAGS(["command", *arguments(template)])
        text = cli.parse_files()
    assert "TrainingPlan.evaluate_during_training = False" in text
    device = "tpu" if manifest == "trainer_tpu.yaml" else "gpu"
    assert f"make_strategy.device = '{device}'" in text


@pytest.mark.parametrize(("file", "name", "template"), pods())
def test_the_command_defines_its_flags(file, name, template):
    command = container(template)["command"]
    if command[:2] == ["python", "-m"]:
        module = MODULES[command[2]]
        own = flags.FLAGS.flags_by_module_dict()
        known = own[module.__name__] + own["retinanet_tpu.task.cli"]
        names = {flag.name for flag in known}
        with flagsaver.flagsaver():
            rest = flags.FLAGS(["command", *arguments(template)])
        assert rest == ["command"]
    else:
        # Its flags would clash with those of the modules above in one process.
        source = (repository.ROOT / command[1]).read_text()
        names = set(re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', source))
    used = {x.removeprefix("--").partition("=")[0] for x in arguments(template)}
    assert used <= names
