"""The command preflight: its output and exit code, with and without libtpu."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest
import tensorflow as tf
from absl import flags
from absl.testing import flagsaver

import tool_processes
import toy_data
from retinanet_tpu import preflight
from retinanet_tpu.planning import host_throughput, step_functions
from retinanet_tpu.task import configurables
from retinanet_tpu.xla import compiler, lower, roofline

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason=f"needs {compiler.INSTALL}"
)
GIB = 2**30
# The memory of the fake compiler's programs: for each image, and for the rest.
IMAGE_BYTES, OTHER_BYTES = 0.1 * GIB, 1.05 * GIB
LARGEST = 144  # images per device of a v3: (15.48 - 1.05) / 0.1
TEXT = """HloModule step

ENTRY %main (a: f32[1000]) -> f32[1000] {
  %a = f32[1000]{0} parameter(0)
  ROOT %b = f32[1000]{0} tanh(%a), metadata={op_name="Tanh"}
}
"""
SMALL = (
    *toy_data.TINY,
    *toy_data.TWO_LEVELS,
    "DATA_DIR = 'none'",
    "COMPUTE_DTYPE = 'bfloat16'",
    "TrainingPlan.eval_batch_per_replica = 1",
)


def compile_fake(program, topology):
    images = int(program.hlo)
    needed = int(OTHER_BYTES + images * IMAGE_BYTES)
    if needed > 15.48 * GIB:
        gib = needed / GIB
        raise compiler.OutOfMemoryError(f"Used {gib:.2f}G of 15.48G hbm.")
    return compiler.Compiled(
        argument_bytes=0,
        result_bytes=0,
        temporary_bytes=needed,
        code_bytes=0,
        flops=61.5e12 * images,  # one second of a v3 for each image
        bytes_accessed=8000.0,
        text=TEXT,
    )


def lower_fake(fn, specs, strategy):
    """Returns a program that contains the number of images."""
    return lower.Program(str(specs[0].shape[0]).encode(), tf.Graph())


def tanh_step(images, setting="BATCH_SIZE", num_replicas=8):
    return step_functions.ReplicaFn(
        tf.tanh, lambda n: (tf.TensorSpec([n, 4]),), images, num_replicas, setting
    )


def run_command(monkeypatch, capsys, steps=None, **settings):
    """Runs main() on fake steps; returns its exit code and its output."""
    monkeypatch.setattr(compiler, "check_installed", lambda: None)
    monkeypatch.setattr(compiler, "for_tpu", compile_fake)
    monkeypatch.setattr(lower, "lower", lower_fake)
    monkeypatch.setattr(
        host_throughput, "images_per_core_sec", lambda run: {"train": 0.5, "eval": 1.0}
    )

    def build(run):
        images = run.plan.batch_size // run.estimator.num_replicas
        return steps or {
            "train": tanh_step(images, "BATCH_SIZE", run.estimator.num_replicas),
            "eval": tanh_step(4, "TrainingPlan.eval_batch_per_replica"),
            "predict": tanh_step(1, "", 1),
        }

    monkeypatch.setattr(step_functions, "build", build)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])
    settings = {
        "gin_file": [str(toy_data.GIN_CONFIGS / "quickstart.gin")],
        "gin_param": list(SMALL),
    } | settings
    with flagsaver.flagsaver(**settings), pytest.raises(SystemExit) as ended:
        preflight.main()
    return ended.value.code, capsys.readouterr().out


@pytest.mark.parametrize("largest", [*range(12), 63, 64, 65, 1000])
@pytest.mark.parametrize("start", [1, 2, 3, 8, 100])
def test_the_largest_batch_is_the_largest_that_fits(largest, start):
    tried = []

    def fits(images):
        tried.append(images)
        return images <= largest

    assert preflight.largest_batch(fits, start) == largest
    assert min(tried) >= 1
    # Doubling and halving, not counting.
    assert len(tried) <= 2 * max(largest, start).bit_length() + 1


def test_the_exit_code_is_0_if_all_steps_fit(monkeypatch, capsys):
    code, out = run_command(monkeypatch, capsys, topology="v3-8")
    assert code == 0
    assert out.splitlines()[0].split()[-3:] == ["train", "eval", "predict"]
    assert out.splitlines()[1].split() == ["fits"] * 3


def test_json_is_one_object_with_all_figures(monkeypatch, capsys):
    code, out = run_command(monkeypatch, capsys, topology="v3-8", json=True)
    report = json.loads(out)
    train = report["steps"]["train"]
    assert (code, report["num_devices"], report["num_hosts"]) == (0, 8, 1)
    assert (train["images"], train["num_devices"]) == (1, 8)
    assert train["bound"] == "compute"
    assert train["ms_at_least"] == pytest.approx(1000)
    assert train["images_per_sec_at_most"] == pytest.approx(8)
    assert train["images_per_sec_of_host"] == pytest.approx(8)
    assert train["images_per_core_sec"] == 0.5
    assert train["hbm_traffic_mb"] == pytest.approx(8000 / 1e6)
    assert train["hbm_gib"] == pytest.approx(1.15)
    assert [m["source"] for m in train["largest_moves"]] == ["Tanh"]
    assert "images_per_sec_of_host" not in report["steps"]["predict"]


def test_the_hosts_of_a_slice_share_the_load(monkeypatch, capsys):
    _, out = run_command(
        monkeypatch, capsys, topology="v3-32", batch_size=64, json=True
    )
    train = json.loads(out)["steps"]["train"]
    assert train["images_per_sec_at_most"] == pytest.approx(32)
    assert train["images_per_sec_of_host"] == pytest.approx(8)


def test_the_input_pipeline_need_not_be_measured(monkeypatch, capsys):
    _, out = run_command(monkeypatch, capsys, topology="v3-8", host_rate=False)
    assert "needed of each host" in out and "core" not in out


def test_the_flag_replaces_the_batch_size_of_the_run(monkeypatch, capsys):
    _, out = run_command(monkeypatch, capsys, topology="v3-8", batch_size=24, json=True)
    assert json.loads(out)["steps"]["train"]["images"] == 3


@pytest.mark.parametrize("size, choice", [(20, "16 or 24"), (3, "8")])
def test_a_batch_that_the_devices_cannot_share_is_refused(
    monkeypatch, capsys, size, choice
):
    with pytest.raises(ValueError, match=rf"{size}.*8 devices of v3-8.*try {choice}\."):
        run_command(monkeypatch, capsys, topology="v3-8", batch_size=size)


def test_a_step_that_does_not_fit_fails_the_command(monkeypatch, capsys):
    code, out = run_command(monkeypatch, capsys, topology="v3-8", batch_size=8 * 200)
    assert code == 1
    assert out.splitlines()[-1] == (
        "train does not fit by 5.57 GiB; --find_batch_size finds the largest batch "
        "that does."
    )
    assert out.splitlines()[1].split() == ["does", "not", "fit", "fits", "fits"]


@pytest.mark.parametrize("images", [1, 100, 200])
def test_the_largest_batch_is_found(monkeypatch, capsys, images):
    code, out = run_command(
        monkeypatch,
        capsys,
        topology="v3-8",
        batch_size=8 * images,
        find_batch_size=True,
        json=True,
    )
    steps = json.loads(out)["steps"]
    assert steps["train"]["largest_batch"] == 8 * LARGEST
    assert "largest_batch" not in steps["eval"]  # It fits.
    assert code == (images > LARGEST)


def test_the_largest_evaluation_batch_is_searched_too(monkeypatch, capsys):
    steps = {"eval": tanh_step(1000, "TrainingPlan.eval_batch_per_replica")}
    _, out = run_command(
        monkeypatch, capsys, steps, topology="v3-8", find_batch_size=True
    )
    assert f"{8 * LARGEST:,}, {LARGEST} images on each of 8 devices" in out
    assert "TrainingPlan.eval_batch_per_replica sets it" in out


def test_memory_beyond_the_device_does_not_fit_even_if_it_compiles(monkeypatch, capsys):
    # The fake compiler has the limit of a v3, which has twice as much memory.
    code, out = run_command(
        monkeypatch, capsys, topology="v2-8", batch_size=8 * 100, json=True
    )
    train = json.loads(out)["steps"]["train"]
    assert (code, train["fits"]) == (1, False)
    assert train["missing_gib"] == pytest.approx(1.05 + 10 - 7.48)


def test_dump_hlo_writes_the_programs(monkeypatch, capsys, tmp_path):
    run_command(monkeypatch, capsys, topology="v3-8", dump_hlo=str(tmp_path / "hlo"))
    files = {path.name for path in (tmp_path / "hlo").iterdir()}
    names = ("train", "eval", "predict")
    assert files == {f"{n}.{kind}" for n in names for kind in ("hlo.pb", "tpu.txt")}
    assert (tmp_path / "hlo/train.tpu.txt").read_text() == TEXT


def test_an_operation_without_a_kernel_is_reported_with_its_line():
    def fn(boxes, scores):
        return tf.image.combined_non_max_suppression(boxes, scores, 10, 10)[0]

    line = f"{__file__}:{fn.__code__.co_firstlineno + 1}"
    specs = tf.TensorSpec([1, 10, 1, 4]), tf.TensorSpec([1, 10, 2])
    step = step_functions.ReplicaFn(fn, lambda _: specs, 1, 1, "")
    report = preflight.examine("eval", step, 1, roofline.accelerator("v3-8"))
    assert report.outcome == "does not compile"
    assert report.error == (
        f"CombinedNonMaxSuppression has no kernel for XLA; made at {line}"
    )


@pytest.mark.long
def test_without_the_extra_the_error_names_the_package_to_install():
    code = (
        "import sys; sys.modules['libtpu'] = None\n"
        "from retinanet_tpu import preflight\n"
        "from retinanet_tpu.startup import guard\n"
        "guard.run(preflight.main)"
    )
    ended = tool_processes.run_python("-c", code)
    assert ended.returncode == 1
    assert ended.stdout == "" and "Traceback" not in ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert re.fullmatch(
        r"error: The TPU compiler is missing \(.*libtpu.*\): "
        r"pip install -e '\.\[preflight\]', in an environment without tensorflow-tpu.*",
        last,
    )


def make_steps(num_devices):
    toy_data.parse("none", *SMALL)
    strategy = lower.AheadOfTimeStrategy(num_devices)
    return step_functions.build(
        configurables.make_run(None, strategy_fn=lambda: strategy)
    )


@pytest.fixture(scope="module")
def small_steps():
    """The steps of a small RetinaNet on 8 replicas."""
    return make_steps(8)


@needs_libtpu
@pytest.mark.parametrize("topology", ["v2-8", "v3-8", "v5litepod-8", "v6e-8"])
def test_a_retinanet_trains_on_a_slice(small_steps, topology):
    target = roofline.accelerator(topology)
    report = preflight.examine("train", small_steps["train"], 1, target)
    assert report.fits, report
    assert report.cost.hbm_gib < 0.1
    on_chip = report.cost.on_chip_traffic_mb
    if topology in ("v2-8", "v3-8"):
        # All buffers are in HBM, so the compiler's own sum must agree.
        assert on_chip == 0
        accessed = report.cost.accessed_mb
        assert report.cost.hbm_traffic_mb == pytest.approx(accessed, rel=0.1)
    else:
        assert on_chip > report.cost.hbm_traffic_mb
    moves = report.cost.largest_moves
    assert any("retinanet_tpu/" in move["line"] for move in moves)


@needs_libtpu
@pytest.mark.parametrize("name", ["eval", "predict"])
def test_a_retinanet_evaluates_and_predicts_on_a_slice(small_steps, name):
    target = roofline.accelerator("v5litepod-8")
    report = preflight.examine(name, small_steps[name], 1, target)
    assert report.fits, report


@needs_libtpu
@pytest.mark.slow
def test_the_pod_run_fits_a_v3_32(tmp_path):
    """COCO, ResNet-50, 640 px, 256 images."""
    command = [
        *(sys.executable, "-m", "retinanet_tpu.preflight"),
        *("--topology=v3-32", "--json"),
        f"--gin_file={toy_data.GIN_CONFIGS}/coco_r50_640_3x.gin",
        "--gin_param=FROZEN = ()",
    ]
    ended = subprocess.run(command, stdout=subprocess.PIPE, env=dict(os.environ))
    assert ended.returncode == 0
    steps = json.loads(ended.stdout)["steps"]
    train = steps["train"]
    assert [step["fits"] for step in steps.values()] == [True] * 3
    assert train["images"] * train["num_devices"] == 256
    # ResNet-50-FPN at 640 px takes some 480 GFLOP an image, forwards and backwards.
    assert 400 < train["gflop"] / train["images"] < 650
    assert steps["predict"]["hbm_traffic_mb"] < 2500
