"""The parts that commands share: flags, the configuration, the model_dir."""

import contextlib
import functools
import os
import zlib
from collections.abc import Iterator

import tensorflow as tf
from absl import flags, logging

from retinanet_tpu import errors
from retinanet_tpu.data import category_map, pipeline, record_files
from retinanet_tpu.estimator import (
    gin_files,
    setting_differences,
    train_and_evaluate,
)
from retinanet_tpu.estimator.model_dir import checkpoints, files
from retinanet_tpu.task import configurables, settings
from retinanet_tpu.task.renamed_settings import RENAMED
from retinanet_tpu.task.run import Run

CONFIG_FILE = gin_files.CONFIG_FILE
GIN_CONFIGS = settings.GIN_CONFIGS
# Settings that may change when a run resumes: the source of its batches.
_MAY_CHANGE = ("DATA_SERVICE_ADDRESS", "Data.service_address")

MODEL_DIR = flags.DEFINE_string("model_dir", None, "The directory of the run.")
GIN_FILE = flags.DEFINE_multi_string(
    "gin_file", [], "A gin file, by path or name; may be repeated."
)
GIN_PARAM = flags.DEFINE_multi_string(
    "gin_param", [], 'A setting, such as "MAX_STEPS = 100"; may be repeated.'
)


@functools.cache
def checkpoint_flag() -> flags.FlagHolder:
    """Defines --checkpoint, for commands that read a checkpoint."""
    return flags.DEFINE_string(
        "checkpoint",
        None,
        "The checkpoint, MODEL_DIR/model.ckpt-N; default: the latest.",
    )


def parse_files(*overrides: str) -> str:
    """Reads --gin_file and --gin_param; returns the whole configuration.

    Args:
      overrides: Settings of the command, which override --gin_param.
    Raises:
      UserError: --gin_file is missing, or a setting is wrong.
    """
    if not GIN_FILE.value:
        raise errors.UserError(
            "--gin_file is missing: a gin file, such as coco_r50_640_3x.gin."
        )
    return settings.parse(GIN_FILE.value, [*GIN_PARAM.value, *overrides])


def parse_model_dir(*overrides: str) -> str:
    """Reads the run's saved configuration, --gin_file and --gin_param.

    Args:
      overrides: Settings of the command, which --gin_param overrides.
    Returns:
      The whole configuration.
    Raises:
      MissingFileError: The model_dir has no saved configuration.
      UserError: --model_dir is missing, or a setting is wrong.
    """
    path = f"{model_dir()}/{CONFIG_FILE}"
    if not tf.io.gfile.exists(path):
        raise errors.MissingFileError(f"No {path}; is --model_dir that of a run?")
    return settings.parse(GIN_FILE.value, [*overrides, *GIN_PARAM.value], saved=path)


def model_dir() -> str:
    """Returns --model_dir without a slash at its end.

    Raises:
      UserError: The flag is missing, or the path contains characters of a glob pattern.
    """
    if not MODEL_DIR.value:
        raise errors.UserError("--model_dir is missing: the directory of the run.")
    files.check_path(MODEL_DIR.value, "--model_dir")
    return MODEL_DIR.value.rstrip("/")


def check_model_dir(text: str, run: Run, *, accept_changes: bool) -> None:
    """Checks that the model_dir is empty or belongs to the run; writes nothing.

    Args:
      text: The whole configuration of the run.
      run: The run.
      accept_changes: Whether the run may resume with another configuration.
    Raises:
      UserError: The model_dir or another worker was started with another configuration;
        or files of the run in it are missing or corrupt.
    """
    # Workers may have different working directories.
    shared = text.replace(f"{os.getcwd()}/", "")
    run.estimator.workers.check_same(
        zlib.crc32(shared.encode()), "The configuration's CRC"
    )
    train_and_evaluate.check_nothing_lost(model_dir())
    if accept_changes or not checkpoints.latest(model_dir()):
        return
    _check_has(CONFIG_FILE)
    before = gin_files.read_saved(f"{model_dir()}/{CONFIG_FILE}", RENAMED)
    changes = setting_differences.differences(
        before, text, configurables.CONFIGURABLES, _MAY_CHANGE
    )
    if changes:
        raise errors.UserError(
            f"{model_dir()} belongs to another configuration; it differs in\n  "
            + "\n  ".join(changes)
            + "\nUse another --model_dir, or resume with the new one: --accept_changes."
        )
    _check_has(category_map.FILE_NAME)


def _check_has(name: str) -> None:
    """Raises UserError if a model_dir with checkpoints lacks a file of the run."""
    if not tf.io.gfile.exists(f"{model_dir()}/{name}"):
        raise errors.UserError(
            f"{model_dir()} has checkpoints, but no {name}, so that they cannot be "
            "matched with this run. Restore the file, use another --model_dir, or "
            "resume with the present settings: --accept_changes."
        )


def write_settings(text: str, run: Run) -> None:
    """Writes the configuration and categories to the model_dir, on the chief only.

    Args:
      text: The whole configuration of the run.
      run: The run.
    """
    if not run.estimator.workers.is_chief:
        return
    tf.io.gfile.makedirs(model_dir())
    # Each file is written atomically, so that a killed run can be resumed.
    files.write_whole(f"{model_dir()}/{CONFIG_FILE}", text)
    categories = category_map.to_json(run.recipe.categories)
    files.write_whole(f"{model_dir()}/{category_map.FILE_NAME}", categories)


@contextlib.contextmanager
def explain_data_errors(run: Run) -> Iterator[None]:
    """Converts the failure of a step on a corrupt record into an error that names it.

    Args:
      run: The run, whose training and evaluation records are searched.
    Raises:
      UserError: A record is corrupt; contains file, record and image.
    """
    try:
        yield
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
        logging.error("A step failed; searching the records for a corrupt one")
        paths: list[str] = []
        for split in (run.data.train_split, run.data.eval_split):
            with contextlib.suppress(FileNotFoundError):
                paths += record_files.find(run.data.dir, split)
        cause = pipeline.explain_failure(error, paths, run.recipe.categories)
        raise cause or error from error
