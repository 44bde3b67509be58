"""Loads a checkpoint of a run as an artifact, with the detections of its export."""

import dataclasses
import os

import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.estimator import gin_files, gin_state, summaries, train_step
from retinanet_tpu.estimator.model_dir import checkpoints, files
from retinanet_tpu.serving import artifacts, runtimes, server
from retinanet_tpu.task import configurables, run as run_module, settings

# The trainer may delete the newest checkpoint during the read; it then has a newer one.
_ATTEMPTS = 5


def load(model_dir: str, checkpoint: str | None = None) -> artifacts.Artifact:
    """Loads a checkpoint as a model in float32.

    Exports and `evaluate` on a CPU also compute in float32. The function writes nothing
    and holds no lease: if the trainer deletes the newest checkpoint during the read,
    the function reads a newer one. It restores the caller's gin configuration.

    Args:
      model_dir: The directory of the run.
      checkpoint: The path prefix of the checkpoint; None for the newest.
    Returns:
      The artifact, of the kind "checkpoint".
    Raises:
      MissingFileError: The checkpoint, config.gin or categories.json does not exist.
      UserError: A file is corrupt, or the checkpoint is of another configuration.
    """
    files.check_path(model_dir, "The model_dir")
    _check_exists(model_dir, checkpoint)  # First, because the network takes seconds.
    with gin_state.separate_configuration():
        settings.parse(
            [],
            ["COMPUTE_DTYPE = 'float32'"],
            saved=os.path.join(model_dir, gin_files.CONFIG_FILE),
        )
        run = configurables.make_run(
            None,  # Without data, which inference does not need.
            strategy_fn=tf.distribute.get_strategy,
            warm_start_from=None,
            backbone_checkpoint=None,
            exporter_fns=(),
        )
        categories = run_module.read_categories(
            model_dir, run.data, run.recipe.num_classes
        )
        network = run.make_network()
        checkpoint = _load_weights(network, model_dir, checkpoint)
        recipe = dataclasses.replace(run.recipe, categories=categories)
        module = server.ServingModule(network, recipe)
        # Traced here: the configurables have their settings only in this block.
        serve = module.detect_images.get_concrete_function()

    # The closure must hold `module`: it owns the weights.
    def detect_images(
        images: tf.Tensor, module: server.ServingModule = module
    ) -> dict[str, tf.Tensor]:
        return serve(images=images)

    return artifacts.Artifact(
        checkpoint,
        "checkpoint",
        categories,
        runtimes.splitting(detect_images),
        _threshold(model_dir, checkpoint),
    )


def _threshold(model_dir: str, checkpoint: str) -> float | None:
    """Returns the score of the highest F1 in the checkpoint's evaluation, or None."""
    step = int(checkpoint.rpartition("-")[2])
    for record in summaries.read_evaluations(summaries.eval_dir(model_dir)):
        if record["global_step"] == step:
            value: float | None = record.get("best_threshold")
            return value
    return None


def _check_exists(model_dir: str, checkpoint: str | None) -> None:
    """Raises MissingFileError without the checkpoint or, for None, without any."""
    steps = checkpoints.steps(model_dir)
    if not steps:
        raise errors.MissingFileError(
            f"No checkpoint in {model_dir}; train first or correct the path."
        )
    if checkpoint and not checkpoints.is_complete(checkpoint):
        raise errors.MissingFileError(
            f"No complete checkpoint at {checkpoint}; the run has those of the steps "
            f"{', '.join(map(str, steps))}."
        )


def _load_weights(network: tf.Module, model_dir: str, checkpoint: str | None) -> str:
    """Loads a checkpoint or the newest one; returns its path prefix."""
    for attempt in range(_ATTEMPTS):
        path = checkpoint or checkpoints.latest(model_dir)
        if path is None:
            break
        try:
            train_step.load(network, path)
            return path
        except checkpoints.CORRUPTION_ERRORS as error:
            is_deleted = checkpoint is None and not checkpoints.is_complete(path)
            if is_deleted and attempt + 1 < _ATTEMPTS:
                continue
            if isinstance(error, errors.UserError):
                raise
            raise errors.UserError(
                f"{path} is corrupt: {str(error) or 'its data are truncated'}. Load "
                "another checkpoint of the run."
            ) from error
    raise errors.MissingFileError(f"All checkpoints in {model_dir} were deleted.")
