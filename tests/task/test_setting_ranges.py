import typing
from collections.abc import Callable

import pytest

import toy_data
from retinanet_tpu import errors
from retinanet_tpu.estimator import gin_files, setting_types
from retinanet_tpu.task import configurables, setting_ranges

# Numbers that the code passes, which no gin file sets, one that may be negative, and
# some that are only logged.
UNBOUNDED = {
    "EarlyStopping.target",
    "MLPerfLog.hyperparameters",
    "FPN.channels",
    "Identity.channels",
    "PooledFPN.channels",
    "BiFPN.channels",
    "BalancedFeatures.channels",
    "Heads.in_channels",
    "Heads.levels",
    "Heads.num_classes",
    "Heads.num_anchors",
    "SeparableConv.in_channels",
    "SeparableConv.out_channels",
    "SeparableConv.kernel_size",
    "SeparableConv.stride",
    "SeparableConv.initial_bias",
    "SeparableConv.seed",
    "lecun_normal.shape",
    "SumFusion.num_inputs",
    "SumFusion.num_channels",
    "AttentionFusion.num_inputs",
    "AttentionFusion.num_channels",
    "NoNorm.num_channels",
    "NoNorm.initial_gamma",
    "GroupNorm.num_channels",
    "GroupNorm.initial_gamma",
    "BatchNorm.num_channels",
    "BatchNorm.initial_gamma",
    "RetinaNet.num_classes",
    "RetinaNet.num_anchors",
    "assign_targets.image_size",
    "decode.image_size",
    "decode.num_classes",
    "linear.iou_threshold",
}


def _holds_numbers(annotation):
    parts = typing.get_args(annotation)
    if typing.get_origin(annotation) is Callable:
        return False
    return annotation in (int, float) or any(map(_holds_numbers, parts))


def test_every_number_that_can_be_set_has_a_range():
    numbers = {
        f"{name}.{parameter}"
        for name, target in configurables.CONFIGURABLES.items()
        for parameter, annotation in setting_types.annotations(target).items()
        if _holds_numbers(annotation)
    }
    assert numbers - UNBOUNDED == set(setting_ranges.RANGES)


@pytest.mark.parametrize(
    ("binding", "name"),
    [
        ("NUM_CLASSES = 0", "NUM_CLASSES is 0"),
        ("SEED = -1", "SEED is -1"),
        ("Heads.prior = 1.0", r"Heads\.prior is 1\.0"),
        ("NMS.iou_threshold = 50", r"NMS\.iou_threshold is 50"),
        ("AdamW.beta_1 = 1.0", r"AdamW\.beta_1 is 1\.0"),
        ("IMAGE_SIZE = (0, 128)", r"IMAGE_SIZE is \(0, 128\)"),
        ("MAX_STEPS = 2e5", r"MAX_STEPS is 200000\.0.* Write 200000\."),
    ],
)
def test_a_number_out_of_its_range_is_refused_before_a_run(binding, name):
    path = toy_data.GIN_CONFIGS / "quickstart.gin"
    with pytest.raises(errors.UserError, match=name):
        gin_files.parse(
            [str(path)],
            [binding],
            known=configurables.CONFIGURABLES,
            ranges=setting_ranges.RANGES,
        )
