import numpy as np
import pytest
import tensorflow as tf

import repository
import tool_processes
from retinanet_tpu import errors
from retinanet_tpu.estimator import gin_files
from retinanet_tpu.model import layers
from retinanet_tpu.task import configurables, summary

GIN_CONFIGS = repository.ROOT / "gin_configs"
RUNS = sorted(GIN_CONFIGS.glob("*.gin"))
# ResNet-50 with COCO's 91 indices: the numbers in the specification's log.
SPECIFIED = [
    "Trainable weights: 285",
    "Trainable weights after freezing: 252",
    "Initial l2_regularization: 1.40207",
    "Trainable parameters: 33,865,815",
]


def _parse(path, *bindings):
    return gin_files.parse([str(path)], bindings, known=configurables.CONFIGURABLES)


def _zeros(conv, rng, shape, init_fn):
    """Returns the kernel of a convolution, or of a depthwise one, of zeros."""
    is_depthwise = isinstance(conv, layers.DepthwiseConv)
    return np.zeros(np.array(shape)[[0, 1, 3, 2]] if is_depthwise else shape, "f4")


SLOW = (
    "r152_",
    "net49s_",
    "d1_",
    "d2_",
    "d3_",
    "d4_",
    "net49_",
    "net96_",
    "net143_",
    "net190_",
    # Like other runs but for a depth or numbers.
    "r34_",
    "r101_",
    "r50_1024_",
    "640_6x",
    "400e_",
    "lite0_256",
)


@pytest.mark.long
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, marks=pytest.mark.slow) if any(x in p.stem for x in SLOW) else p
        for p in RUNS
    ],
    ids=lambda path: path.stem,
)
def test_every_run_passes_its_dry_run(path, monkeypatch):
    # Random numbers for the largest kernels would take most of the time.
    monkeypatch.setattr(layers.Conv, "_initial_kernel", _zeros)
    _parse(path)
    lines = summary.summarize_run()
    assert any(line.startswith("Trainable parameters") for line in lines)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_the_saved_configuration_is_complete(path, tmp_path):
    text = _parse(path)
    saved = tmp_path / "config.gin"
    saved.write_text(text)
    assert _parse(saved) == text


@pytest.mark.parametrize("run", ["bccd_r18", "pest_lite0"])
@pytest.mark.parametrize("device", ["xla_gpu", "tpu_vm"])
def test_a_run_for_cpus_passes_its_dry_run_with_another_device(
    run, device, monkeypatch
):
    monkeypatch.setattr(layers.Conv, "_initial_kernel", _zeros)
    paths = [str(GIN_CONFIGS / f"{name}.gin") for name in (run, f"device/{device}")]
    gin_files.parse(paths, [], known=configurables.CONFIGURABLES)
    assert any(line.startswith("Trainable") for line in summary.summarize_run())


def test_the_dry_run_prints_the_counts_of_the_specification():
    _parse(GIN_CONFIGS / "coco_r50_640_6x.gin")
    lines = summary.summarize_run()
    assert lines[:4] == SPECIFIED
    assert "Anchors: 76,725" in lines
    assert "Images: uint8 [256, 640, 640, 3]" in lines


def test_the_run_of_mlperf_has_its_epochs_anchors_and_logged_settings(monkeypatch):
    monkeypatch.setattr(layers.Conv, "_initial_kernel", _zeros)
    _parse(GIN_CONFIGS / "openimages_mlperf_rx50_800.gin")
    run = configurables.make_run(None, strategy_fn=tf.distribute.get_strategy)
    plan, logged = run.plan, run.mlperf_log.hyperparameters
    assert plan.eval_every_steps == -(-1_170_301 // plan.batch_size)
    assert plan.max_steps == 8 * plan.eval_every_steps
    assert plan.early_stopping.target == 0.34
    learning_rate = run.update_fn(run.make_network()).learning_rate
    base = float(learning_rate(plan.max_steps))
    assert logged["opt_base_learning_rate"] == pytest.approx(base)
    assert logged["opt_learning_rate_warmup_factor"] * base == pytest.approx(
        float(learning_rate(0))
    )
    # P3 to P7 of 800 px have 100, 50, 25, 13 and 7 cells per side.
    cells = 100**2 + 50**2 + 25**2 + 13**2 + 7**2
    boxes = run.recipe.anchors.boxes_cyxhw((800, 800))
    assert sum(map(len, boxes)) == 9 * cells
    assert not run.recipe.keep_aspect_ratio


@pytest.mark.parametrize(("step", "rate"), [(200, 0.069), (400, 0.132), (600, 0.195)])
def test_the_learning_rates_are_those_of_the_specification(step, rate):
    _parse(GIN_CONFIGS / "coco_r50_640_6x.gin")
    run = configurables.make_run(None, strategy_fn=tf.distribute.get_strategy)
    learning_rate = run.update_fn(tf.Module()).learning_rate
    assert round(float(learning_rate(step)), 3) == rate


MODERN = {
    "assign_targets.match_fn = @match_by_atss",
    "detection_losses.box_loss_fn = @giou_loss",
    "detection_losses.box_weight = 2.0",
    "detection_losses.class_loss_fn = @quality_focal_loss",
    "WeightUpdate.averaging_decay = 0.9998",
}


def test_the_modern_recipe_is_one_file_that_changes_only_losses_matching_and_averages():
    run = GIN_CONFIGS / "coco_r50_640_3x.gin"
    classic = set(_parse(run).splitlines())
    files = [str(run), str(GIN_CONFIGS / "recipe/modern.gin")]
    text = gin_files.parse(files, [], known=configurables.CONFIGURABLES)
    modern = set(text.splitlines())
    assert modern - classic == MODERN
    removed = {line.partition(" = ")[0] for line in classic - modern}
    assert removed < {line.partition(" = ")[0] for line in MODERN}


@pytest.mark.parametrize("run", sorted(GIN_CONFIGS.glob("*_modern.gin")))
def test_the_modern_runs_include_the_modern_recipe(run):
    assert set(_parse(run).splitlines()) >= MODERN


DEVICES = sorted(
    path.stem
    for path in (GIN_CONFIGS / "device").glob("*.gin")
    if path.stem != "defaults"
)
# Settings of devices. The name of a TPU is not among them: it must be set by hand.
OF_DEVICES = (
    "make_strategy.device = ",
    "make_strategy.engine = ",
    "COMPUTE_DTYPE = ",
    "TPUConfig.jit_compile = ",
    "RunConfig.deterministic = ",
    "WeightUpdate.loss_scale = ",
)


def _settings_of_devices(*devices):
    files = [GIN_CONFIGS / "coco_r50_640_30x.gin"]
    files += [GIN_CONFIGS / f"device/{device}.gin" for device in devices]
    names = ["TPU_NAME = 'x'"] if devices[-1] in ("tpu_node", "tpu_pod") else []
    text = gin_files.parse(
        list(map(str, files)), names, known=configurables.CONFIGURABLES
    )
    return {line for line in text.splitlines() if line.startswith(OF_DEVICES)}


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_file_replaces_an_earlier_one(device):
    alone = _settings_of_devices(device)
    assert len(alone) == len(OF_DEVICES)
    kind = device.removeprefix("xla_").partition("_")[0]
    assert f"make_strategy.device = '{kind}'" in alone
    for earlier in ("cpu", "xla_gpu_float16"):
        assert _settings_of_devices(earlier, device) == alone


def test_a_shorter_run_must_move_its_boundaries():
    _parse(GIN_CONFIGS / "coco_r50_640_30x.gin", "MAX_STEPS = 5000")
    with pytest.raises(ValueError, match="never reaches its last rate"):
        summary.summarize_run()


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("NUM_CLASES = 3", "NUM_CLASES is set.*Did you mean NUM_CLASSES"),
        ("ResNet.dept = 18", "(?s)dept.*Did you mean depth"),
        ("Resnet.depth = 18", "(?s)Resnet.*Did you mean ResNet"),
        ("make_run.update_fn = @WeightUpdte", "(?s)Did you mean WeightUpdate"),
    ],
)
def test_a_misspelled_name_is_an_error_with_a_suggestion(binding, message):
    with pytest.raises(ValueError, match=message):
        _parse(GIN_CONFIGS / "quickstart.gin", binding)


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("IMAGE_SIZE = 640", "must be .a whole number, a whole"),
        ("IMAGE_SIZE = (600, 640)", "multiple of 32"),
        ("Anchors.max_level = 6", "levels"),
        ("BATCH_SIZE = 0", "at least 1"),
        ("Augmentation.scale_jitter = (2.0, 0.5)", "smallest, largest"),
        ("RunConfig.save_checkpoints_steps = 9000", "never fires"),
        ("EVAL_EVERY = 33", "never be"),
        ("TPUConfig.iterations_per_loop = 0", "at least 1"),
        ("ResNet.depth = 20", "depth 20"),
        ("FROZEN = ('backbone/stagge2',)", "backbone/stage2"),
    ],
)
def test_settings_that_do_not_fit_fail_before_the_first_step(binding, message):
    with pytest.raises(errors.UserError, match=message):
        _parse(GIN_CONFIGS / "quickstart.gin", binding)
        summary.summarize_run()


@pytest.mark.long
def test_a_folder_with_the_name_of_an_included_folder_is_no_obstacle(tmp_path):
    for folder in ("data", "model", "device", "schedule"):
        (tmp_path / folder).mkdir()
    command = ("-m", "retinanet_tpu.train", "--dry_run")
    flag = "--gin_file=coco_r50_640_3x.gin"
    done = tool_processes.run_python(*command, flag, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
