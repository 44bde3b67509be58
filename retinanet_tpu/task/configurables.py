"""All functions and classes whose parameters a gin file can set."""

from collections.abc import Callable
from typing import Any

from retinanet_tpu.boxes import adaptive_matcher, anchors, box_coder, matcher
from retinanet_tpu.data import examples
from retinanet_tpu.detections import decode, nms
from retinanet_tpu.estimator import (
    early_stopping,
    exporters,
    gin_files,
    run_config,
    warm_start,
)
from retinanet_tpu.estimator.cluster import strategy
from retinanet_tpu.evaluation import open_images_metric
from retinanet_tpu.learning import (
    aligned_matcher,
    box_losses,
    class_losses,
    loss_scale,
    losses,
    optimizers,
    schedules,
    targets,
    update,
)
from retinanet_tpu.model import (
    activations,
    group_norm,
    heads,
    initializers,
    layers,
    norms,
    quantization,
    retinanet,
)
from retinanet_tpu.model.backbones import (
    efficientnet,
    mobiledet,
    mobilenet_v3,
    resnet,
    spinenet,
)
from retinanet_tpu.model.necks import (
    balanced,
    bifpn,
    fpn,
    fusion,
    identity,
    pooled_fpn,
)
from retinanet_tpu.task import input_fn, recipe, run

CONFIGURABLES: dict[str, Callable[..., Any]] = {
    "Anchors": anchors.Anchors,
    "AnchorOffsets": box_coder.AnchorOffsets,
    "SideDistances": box_coder.SideDistances,
    "SideDistributions": box_coder.SideDistributions,
    "Augmentation": examples.Augmentation,
    "Data": input_fn.Data,
    "ResNet": resnet.ResNet,
    "EfficientNet": efficientnet.EfficientNet,
    "SpineNet": spinenet.SpineNet,
    "Identity": identity.Identity,
    "MobileNetV3": mobilenet_v3.MobileNetV3,
    "MobileDet": mobiledet.MobileDet,
    "FPN": fpn.FPN,
    "PooledFPN": pooled_fpn.PooledFPN,
    "BiFPN": bifpn.BiFPN,
    "BalancedFeatures": balanced.BalancedFeatures,
    "SumFusion": fusion.SumFusion,
    "AttentionFusion": fusion.AttentionFusion,
    "relu": activations.relu,
    "relu6": activations.relu6,
    "swish": activations.swish,
    "hard_swish": activations.hard_swish,
    "Heads": heads.Heads,
    "SeparableConv": layers.SeparableConv,
    "lecun_normal": initializers.lecun_normal,
    "BatchNorm": norms.BatchNorm,
    "FakeQuantization": quantization.FakeQuantization,
    "NoNorm": norms.NoNorm,
    "GroupNorm": group_norm.GroupNorm,
    "RetinaNet": retinanet.RetinaNet,
    "normalize": retinanet.normalize,
    "assign_targets": targets.assign_targets,
    "match_by_iou": matcher.match_by_iou,
    "match_by_atss": adaptive_matcher.match_by_atss,
    "match_by_task_alignment": aligned_matcher.match_by_task_alignment,
    "focal_loss": class_losses.focal_loss,
    "quality_focal_loss": class_losses.quality_focal_loss,
    "varifocal_loss": class_losses.varifocal_loss,
    "huber_loss": box_losses.huber_loss,
    "l1_loss": box_losses.l1_loss,
    "iou_loss": box_losses.iou_loss,
    "giou_loss": box_losses.giou_loss,
    "diou_loss": box_losses.diou_loss,
    "ciou_loss": box_losses.ciou_loss,
    "detection_losses": losses.detection_losses,
    "Recipe": recipe.Recipe,
    "scaled": schedules.scaled,
    "piecewise": schedules.piecewise,
    "cosine": schedules.cosine,
    "constant_rate": schedules.constant,  # gin has a `constant` of its own.
    "SGD": optimizers.SGD,
    "AdamW": optimizers.AdamW,
    "DynamicLossScale": loss_scale.DynamicLossScale,
    "WeightUpdate": update.WeightUpdate,
    "WarmStartSettings": warm_start.WarmStartSettings,
    "decode": decode.decode,
    "NMS": nms.NMS,
    "linear": nms.linear,
    "gaussian": nms.gaussian,
    "TrainingPlan": run.TrainingPlan,
    "BestExporter": exporters.BestExporter,
    "LatestExporter": exporters.LatestExporter,
    "FinalExporter": exporters.FinalExporter,
    "MLPerfLog": run.MLPerfLog,
    "OpenImagesMetric": open_images_metric.OpenImagesMetric,
    "EarlyStopping": early_stopping.EarlyStopping,
    "RunConfig": run_config.RunConfig,
    "TPUConfig": run_config.TPUConfig,
    "make_strategy": strategy.make_strategy,
    "make_run": run.make_run,
}

_BOUND = gin_files.register(CONFIGURABLES)


def make_run(model_dir: str | None, **overrides: Any) -> run.Run:
    """Returns the run that gin configures.

    Args:
      model_dir: The directory of the run, or None; see `run.make_run`.
      overrides: Arguments of `run.make_run` that replace those of gin.
    """
    return _BOUND["make_run"](model_dir, **overrides)
