"""Trains, exports and compiles one network of each kind.

Every network has its full backbone. Images and pyramids are small: 64 px, P4 and P5.

Exports require the extra [onnx], TPU compilations the extra [preflight].
"""

import functools
import importlib.util
import re
from typing import NamedTuple

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

import toy_data
from retinanet_tpu import export, preflight, replicas
from retinanet_tpu.estimator import gin_files
from retinanet_tpu.estimator.cluster import strategy
from retinanet_tpu.estimator.model_dir import checkpoints
from retinanet_tpu.planning import step_functions
from retinanet_tpu.serving import formats
from retinanet_tpu.task import configurables
from retinanet_tpu.xla import compiler, lower, roofline

pytestmark = [pytest.mark.slow, pytest.mark.long]
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason=f"needs {compiler.INSTALL}"
)
needs_onnx = pytest.mark.skipif(
    importlib.util.find_spec("tf2onnx") is None, reason="needs the extra [onnx]"
)


_FORMATS = ("saved_model", "onnx", "tflite", "tflite_float16", "tflite_int8")
# Calibration alone ruins networks with swish: of SpineNet-49S, no detection remains.
_NOT_INT8 = _FORMATS[:-1]


class Kind(NamedTuple):
    """A kind of network.

    Attributes:
      file: The name of its file in gin_configs/model, without the suffix.
      bindings: Further gin bindings.
      formats: The formats whose detections are those of the checkpoint.
    """

    file: str
    bindings: tuple[str, ...] = ()
    formats: tuple[str, ...] = _FORMATS


KINDS = {
    "r18": Kind("r18_fpn"),
    "resnext50": Kind("resnext50_fpn"),
    "efficientnet_lite0": Kind("efficientnet_lite0_fpn"),
    "mobilenet_v3_large": Kind("mobilenet_v3_large_fpn"),
    "mobilenet_v3_small": Kind("mobilenet_v3_small_fpn"),
    "mobiledet_cpu": Kind("mobiledet_cpu_fpn"),
    "mobiledet_edge_tpu": Kind("mobiledet_edge_tpu_fpn"),
    "mobiledet_dsp": Kind("mobiledet_dsp_fpn"),
    "mobiledet_gpu": Kind("mobiledet_gpu_fpn"),
    "efficientdet_d0": Kind(
        "efficientdet_d0",
        ("BiFPN.min_level = 4", "BiFPN.max_level = 5", "PYRAMID_CHANNELS = 16"),
        _NOT_INT8,
    ),
    "spinenet49s": Kind(
        "spinenet49s",
        (
            "IMAGE_SIZE = (128, 128)",  # Its blocks reach level 7.
            *(f"{name}.min_level = 4" for name in ("SpineNet", "Identity")),
            *(f"{name}.max_level = 5" for name in ("SpineNet", "Identity")),
        ),
        _NOT_INT8,
    ),
    "distributions": Kind(
        "r18_fpn",
        (
            "Anchors.box_coder = @SideDistributions()",
            "detection_losses.box_loss_fn = @giou_loss",
            "detection_losses.box_weight = 2.0",
        ),
    ),
    "attention_fusion": Kind("r18_fpn", ("FPN.fusion_fn = @AttentionFusion",)),
    "pooled_fpn": Kind(
        "r18_fpn",
        (
            "RetinaNet.neck_fn = @PooledFPN",
            "PooledFPN.num_channels = 16",
            "PooledFPN.min_level = 4",
            "PooledFPN.max_level = 5",
        ),
    ),
    "balanced_features": Kind(
        "r18_fpn",
        ("RetinaNet.neck_fn = @BalancedFeatures", "BalancedFeatures.level = 5"),
    ),
    # Without norms, TFLite has no int8 kernels for the ranges after 16 steps.
    "torchvision": Kind("torchvision_retinanet", formats=_NOT_INT8),
    "torchvision_v2": Kind("torchvision_retinanet_v2", ("GroupNorm.num_groups = 8",)),
}
_SMALL = (
    *(binding for binding in toy_data.TINY if not binding.startswith("ResNet.")),
    *toy_data.TWO_LEVELS,
)
_TRAINED = (
    # A weight that moves has a gradient: nothing decays.
    "AdamW.weight_decay = 0.0",
    "AdamW.learning_rate = @constant_rate",
    "constant_rate.base = 0.01",
    "TPUConfig.iterations_per_loop = 2",
    "RunConfig.save_checkpoints_steps = %MAX_STEPS",
    # After a few steps the moving averages must be those of the batches.
    "BatchNorm.momentum = 0.5",
    "WeightUpdate.averaging_decay = None",
    # There must be detections to compare, which score 0.1 above the last one.
    "Heads.prior = 0.3",
    "decode.num_candidates = 300",
    "NMS.max_detections = 100",
)
DTYPES = {
    "float32": ("MAX_STEPS = 16",),
    "bfloat16": ("COMPUTE_DTYPE = 'bfloat16'", "MAX_STEPS = 2"),
    "float16": (
        "COMPUTE_DTYPE = 'float16'",
        "MAX_STEPS = 2",
        "WeightUpdate.loss_scale = @DynamicLossScale()",
    ),
}
# A normalization follows, which subtracts the bias again.
_WITHOUT_GRADIENT = re.compile(
    r"(balanced/)?fpn/output\d/bias|(pooled_fpn|bifpn)/.*/bias|heads/.*/conv\d/bias"
)
TOPOLOGIES = ("v3-8", "v5litepod-8", "v6e-8")


def parse(kind, data_dir, *bindings):
    """Configures gin for a small network of a kind; returns the configuration."""
    names = ("quickstart", f"model/{kind.file}")
    return gin_files.parse(
        [str(toy_data.GIN_CONFIGS / f"{name}.gin") for name in names],
        [*_SMALL, *kind.bindings, f"DATA_DIR = '{data_dir}'", *bindings],
        known=configurables.CONFIGURABLES,
    )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return toy_data.write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return KINDS[request.param]


def train(model_dir, kind, data_dir, *bindings):
    """Trains; returns the run and the tensors of its last checkpoint."""
    text = parse(kind, data_dir, *_TRAINED, *bindings)
    (model_dir / "config.gin").write_text(text)
    run = configurables.make_run(
        str(model_dir),
        strategy_fn=functools.partial(strategy.make_strategy, "cpu", num_devices=1),
    )
    return run, checkpoints.read(toy_data.train(run))


def assert_every_weight_moved(run, tensors):
    """Compares a checkpoint with the first values of its network."""
    network = run.make_network()
    paths = [replicas.variable_path(v) for v in network.trainable_variables]
    assert len(paths) == len(set(paths)) > 0
    still = [
        path
        for path, first in zip(paths, network.trainable_variables, strict=True)
        if np.array_equal(first.numpy(), tensors[f"weights/{path}"])
        and not _WITHOUT_GRADIENT.fullmatch(path)
    ]
    assert not still, still


@pytest.fixture(scope="module")
def trained(kind, data_dir, tmp_path_factory):
    """The directory of a run in float32, its run and its tensors."""
    model_dir = tmp_path_factory.mktemp("run")
    return model_dir, *train(model_dir, kind, data_dir, *DTYPES["float32"])


def test_every_weight_moves_in_float32(trained):
    _, run, tensors = trained
    assert_every_weight_moved(run, tensors)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_weight_moves_in_half_precision(kind, data_dir, tmp_path, dtype):
    run, tensors = train(tmp_path, kind, data_dir, *DTYPES[dtype])
    assert_every_weight_moved(run, tensors)
    # The loss scale falls until the gradients of a step are finite.
    assert tensors["num_skipped"] <= 1


def run_export(model_dir, names):
    """Exports; returns the shares of detections that agree, by format."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])
    with flagsaver.flagsaver(model_dir=str(model_dir), format=list(names)):
        export.main()
    (folder,) = (model_dir / "export" / "latest").glob("[0-9]*")
    for name in names:
        assert (folder / formats.FORMATS[name].file).exists()
    card = (folder / "model_card.md").read_text()
    agreement = re.findall(r"(\d+) of (\d+) detections agree|no detection to", card)
    print(dict(zip(names, agreement, strict=True)))
    assert all(int(compared or 0) >= 10 for _, compared in agreement)


@needs_onnx
def test_every_format_detects_what_the_checkpoint_detects(kind, trained):
    run_export(trained[0], kind.formats)


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "spinenet49s"])
def test_a_network_trains_with_simulated_int8_and_exports_it(name, data_dir, tmp_path):
    # Squeeze-and-excitation with rounded tensors once aborted the process.
    kind = KINDS[name]
    for directory in ("float", "int8"):
        (tmp_path / directory).mkdir()
    train(tmp_path / "float", kind, data_dir, *DTYPES["float32"])
    quantized = kind._replace(
        bindings=(
            *kind.bindings,
            "RetinaNet.quantize_fn = @FakeQuantization",
            f"WARM_START = '{tmp_path / 'float'}'",
        )
    )
    _, tensors = train(
        tmp_path / "int8",
        quantized,
        data_dir,
        "MAX_STEPS = 4",
        "constant_rate.base = 0.0001",
    )
    ranges = tensors["weights/quantization/moving_ranges"]
    assert np.all(ranges[:, 0] < ranges[:, 1]) and np.isfinite(ranges).all()
    run_export(tmp_path / "int8", ["tflite_int8"])


@pytest.fixture(scope="module")
def steps(kind):
    """The steps in bfloat16 on 8 devices."""
    parse(kind, "none", "COMPUTE_DTYPE = 'bfloat16'")
    return step_functions.build(
        configurables.make_run(None, strategy_fn=lambda: lower.AheadOfTimeStrategy(8))
    )


@needs_libtpu
@pytest.mark.parametrize("name", ["train", "predict"])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_every_step_compiles_for_tpus(steps, topology, name):
    target = roofline.accelerator(topology)
    report = preflight.examine(name, steps[name], 1, target)
    assert report.fits, report
