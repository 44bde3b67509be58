"""Where a new run takes its first weights from."""

import ast
import functools
import re
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from retinanet_tpu import errors, replicas
from retinanet_tpu.estimator import gin_files, train_step, warm_start
from retinanet_tpu.estimator.model_dir import checkpoints, files
from retinanet_tpu.model import retinanet
from retinanet_tpu.model.backbones import pretrained
from retinanet_tpu.task.renamed_settings import RENAMED


def resolve_init(
    warm_start_from: warm_start.WarmStartSettings | None,
    backbone_checkpoint: str | None,
) -> warm_start.WarmStartSettings | Callable[[tf.Module], None] | None:
    """Returns what gives a new network its weights, None for random ones.

    Args:
      warm_start_from: another run, for all that agrees with it.
      backbone_checkpoint: see pretrained.load; for the backbone alone.
    Raises:
      UserError: both are given, or a path that TensorFlow takes for a pattern.
    """
    has_run = bool(warm_start_from and warm_start_from.checkpoint)
    if has_run and backbone_checkpoint:
        raise errors.UserError(
            f"WARM_START is {warm_start_from.checkpoint} and BACKBONE_CHECKPOINT is "
            f"{backbone_checkpoint}; a warm start has a backbone, set one to None."
        )
    if backbone_checkpoint:
        if pretrained.is_run(backbone_checkpoint):
            files.check_path(backbone_checkpoint, "BACKBONE_CHECKPOINT")
        return functools.partial(_load_backbone, backbone_checkpoint)
    return warm_start_from if has_run else None


def check_frozen_are_initialized(
    network: tf.Module,
    given: warm_start.WarmStartSettings | Callable[[tf.Module], None] | None,
) -> None:
    """Checks that nothing stays at random values for good.

    Args:
      network: about to be trained.
      given: what `source` returned.
    Raises:
      UserError: a frozen weight has no source.
    """
    frozen = [v for v in network.weights if not v.trainable]
    if callable(given):
        frozen = [
            v for v in frozen if not replicas.variable_path(v).startswith("backbone/")
        ]
    elif given:
        return
    if frozen:
        raise errors.UserError(
            f"FROZEN keeps {len(frozen)} weights at their random first values, such as "
            f"{replicas.variable_path(frozen[0])}; set WARM_START to a checkpoint that has "
            "trained ones (or BACKBONE_CHECKPOINT, for those of the backbone), or "
            "FROZEN = ()."
        )


def _load_backbone(checkpoint, network):
    pretrained.load(
        network.backbone,
        checkpoint,
        normalize_fn=network.normalize_fn,
        read_run_fn=functools.partial(_read_run, network),
    )


def _read_run(network, path) -> dict[str, np.ndarray]:
    """Returns the weights of a checkpoint, or of a model_dir's latest."""
    path = checkpoints.latest(path) or path
    weights = train_step.network_weights(path)
    _check_settings(network, f"{path.rpartition('/')[0] or '.'}/config.gin")
    return weights


def _check_settings(network, config_file):
    """Raises UserError if a run had other layers or pixels, as its config.gin says."""
    if not tf.io.gfile.exists(config_file):
        return
    text = gin_files.read_saved(config_file, RENAMED).replace("\\\n", " ")
    bindings = dict(re.findall(r"^([\w.]+) *= *(.+?) *$", text, re.MULTILINE))
    wrong = [
        f"ResNet.{name} = {bindings.get(f'ResNet.{name}', 'False')}"
        for name in ("stride_in_1x1", "symmetric_pool_padding")
        if bindings.get(f"ResNet.{name}", "False")
        != str(getattr(network.backbone, name))
    ]
    colors = {
        name: ast.literal_eval(bindings[f"normalize.{name}"])
        for name in ("mean_rgb", "stddev_rgb")
        if bindings.get(f"normalize.{name}", "%")[0] not in "%@"
    }
    pixels = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)
    theirs = retinanet.normalize(pixels, **colors)
    if not np.allclose(theirs, network.normalize_fn(pixels), rtol=1e-3):
        wrong += [f"normalize.{name} = {value}" for name, value in colors.items()]
        wrong = wrong or ["normalize as it comes"]
    if wrong:
        raise errors.UserError(
            f"BACKBONE_CHECKPOINT was trained with {'; '.join(wrong)} ({config_file}), "
            "and this run is not; include the model/pretrained_*.gin that it had."
        )
