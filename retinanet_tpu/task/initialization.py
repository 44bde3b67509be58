"""The first weights of a new run: a warm start, a pretrained backbone, or random."""

import functools
import inspect
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from retinanet_tpu import errors, replicas
from retinanet_tpu.estimator import gin_files, train_step, warm_start
from retinanet_tpu.estimator.model_dir import checkpoints, files
from retinanet_tpu.model import retinanet
from retinanet_tpu.model.pretrained import loading
from retinanet_tpu.task.renamed_settings import RENAMED

# Settings of the backbone that change what a weight means, not its shape.
_LAYER_SETTINGS = ("stride_in_1x1", "symmetric_pool_padding", "symmetric_padding")
_COLOR_SETTINGS = ("mean_rgb", "stddev_rgb")

LoadBackboneFn = Callable[[retinanet.RetinaNet], None]
Initialization = warm_start.WarmStartSettings | LoadBackboneFn | None


def resolve_init(
    warm_start_from: warm_start.WarmStartSettings | None,
    backbone_checkpoint: str | None,
) -> Initialization:
    """Returns the source of a new network's weights; None means random weights.

    Args:
      warm_start_from: Another run, whose weights are taken where path and shape agree.
      backbone_checkpoint: The origin of the backbone's weights; see loading.load.
    Raises:
      UserError: Both are given, or a path contains characters of a glob pattern.
    """
    if warm_start_from and not warm_start_from.checkpoint:
        warm_start_from = None
    if not backbone_checkpoint:
        return warm_start_from
    if warm_start_from:
        raise errors.UserError(
            f"WARM_START is {warm_start_from.checkpoint} and BACKBONE_CHECKPOINT is "
            f"{backbone_checkpoint}; a warm start has a backbone, set one to None."
        )
    if loading.is_run(backbone_checkpoint):
        files.check_path(backbone_checkpoint, "BACKBONE_CHECKPOINT")
    return functools.partial(_load_backbone, backbone_checkpoint)


def check_frozen_are_initialized(
    network: tf.Module, initialization: Initialization
) -> None:
    """Checks that no frozen weight keeps its random initial value.

    Args:
      network: The network that is about to be trained.
      initialization: The source of its weights, from `resolve_init`.
    Raises:
      UserError: A frozen weight has no source.
    """
    if isinstance(initialization, warm_start.WarmStartSettings):
        return
    frozen = [replicas.variable_path(v) for v in network.weights if not v.trainable]
    if initialization is not None:
        frozen = [path for path in frozen if not path.startswith("backbone/")]
    if frozen:
        raise errors.UserError(
            f"FROZEN keeps {len(frozen)} weights at their random first values, such as "
            f"{frozen[0]}; set WARM_START to a checkpoint with trained values (or "
            "BACKBONE_CHECKPOINT for those of the backbone), or FROZEN = ()."
        )


def _load_backbone(checkpoint: str, network: retinanet.RetinaNet) -> None:
    loading.load(
        network.backbone,
        checkpoint,
        normalize_fn=network.normalize_fn,
        read_run_fn=functools.partial(_read_run, network),
    )


def _read_run(network: retinanet.RetinaNet, path: str) -> dict[str, np.ndarray]:
    """Returns the weights of a checkpoint, or of a model_dir's latest checkpoint."""
    path = checkpoints.latest(path) or path
    weights = train_step.network_weights(path)
    _check_settings(network, f"{path.rpartition('/')[0] or '.'}/config.gin")
    return weights


def _check_settings(network: retinanet.RetinaNet, config_file: str) -> None:
    """Raises UserError if the saved run had other layers or pixel values."""
    if not tf.io.gfile.exists(config_file):
        return
    saved = gin_files.read_saved_settings(config_file, RENAMED)
    differences = []
    backbone = type(network.backbone).__name__
    for name, (value, default) in _layer_settings(network.backbone).items():
        saved_value = saved.get(f"{backbone}.{name}", default)
        if saved_value != value:
            differences.append(f"{backbone}.{name} = {saved_value}")
    colors = {
        name: saved[f"normalize.{name}"]
        for name in _COLOR_SETTINGS
        if f"normalize.{name}" in saved
    }
    black_and_white = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)
    saved_pixels = retinanet.normalize(black_and_white, **colors)
    pixels = network.normalize_fn(black_and_white)
    if not np.allclose(saved_pixels, pixels, rtol=1e-3):
        differences += [f"normalize.{name} = {value}" for name, value in colors.items()]
        differences = differences or ["the defaults of normalize"]
    if differences:
        raise errors.UserError(
            f"BACKBONE_CHECKPOINT was trained with {'; '.join(differences)} "
            f"({config_file}), which differs from this run's settings; include the "
            "model/pretrained_*.gin of its run."
        )


def _layer_settings(backbone: tf.Module) -> dict[str, tuple[bool, bool]]:
    """Returns the value and the default of each of _LAYER_SETTINGS that it has."""
    parameters = inspect.signature(type(backbone)).parameters
    settings = {}
    for name in _LAYER_SETTINGS:
        # ResNet has its padding in its layers only.
        owner = backbone if hasattr(backbone, name) else None
        if owner is None and name in parameters:
            owner = getattr(backbone, "stem_conv", None)
        if owner is not None and hasattr(owner, name):
            is_on = name in parameters and parameters[name].default is True
            settings[name] = getattr(owner, name), is_on
    return settings
