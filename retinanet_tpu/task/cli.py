"""What the commands share: flags, reading the configuration, owning a model_dir."""

import contextlib
import functools
import os
import pathlib
import zlib
from collections.abc import Iterator

import tensorflow as tf
from absl import flags, logging

from retinanet_tpu import errors
from retinanet_tpu.data import category_map, pipeline, record_files
from retinanet_tpu.estimator import gin_files, train_and_evaluate
from retinanet_tpu.estimator.model_dir import checkpoints, files
from retinanet_tpu.model.backbones import pretrained
from retinanet_tpu.task import configurables, setting_ranges
from retinanet_tpu.task.renamed_settings import RENAMED
from retinanet_tpu.task.run import Run

CONFIG_FILE = "config.gin"
# Settings that a run may go on with otherwise: who makes its batches.
_MAY_CHANGE = ("DATA_SERVICE_ADDRESS", "Data.service_address")
# A run goes on, and is evaluated, from any working directory.
_PATHS = {
    "Data.dir": (),
    "WarmStartSettings.checkpoint": (),
    "make_run.backbone_checkpoint": (pretrained.IMAGENET,),
}
_PACKAGE = pathlib.Path(__file__).parents[1]
# A wheel contains gin_configs/; in a checkout it lies beside the package.
_PLACES = [parent / "gin_configs" for parent in (_PACKAGE, _PACKAGE.parent)]
GIN_CONFIGS = str(next(filter(pathlib.Path.is_dir, _PLACES), _PLACES[0]))

MODEL_DIR = flags.DEFINE_string("model_dir", None, "Directory of the run.")
GIN_FILE = flags.DEFINE_multi_string("gin_file", [], "Gin file; may be repeated.")
GIN_PARAM = flags.DEFINE_multi_string(
    "gin_param", [], 'One setting, such as "MAX_STEPS = 100"; may be repeated.'
)


@functools.cache
def checkpoint_flag() -> flags.FlagHolder:
    """Defines --checkpoint for the commands that read one."""
    return flags.DEFINE_string(
        "checkpoint", None, "A checkpoint, MODEL_DIR/model.ckpt-N; default: the latest."
    )


def parse_files(*overrides: str) -> str:
    """Reads --gin_file and --gin_param; returns the whole configuration.

    Args:
      overrides: bindings that the command wants, above --gin_param.
    Raises:
      UserError: no file was named, or a setting is wrong.
    """
    if not GIN_FILE.value:
        raise errors.UserError(
            "--gin_file is missing: a gin file, such as coco_r50_640_3x.gin."
        )
    return gin_files.parse(
        GIN_FILE.value,
        [*GIN_PARAM.value, *overrides],
        known=configurables.CONFIGURABLES,
        ranges=setting_ranges.RANGES,
        paths=_PATHS,
        search_path=[GIN_CONFIGS],
        renamed=RENAMED,
    )


def parse_model_dir(*overrides: str) -> str:
    """Reads the configuration that the run was started with, and --gin_param.

    Args:
      overrides: bindings that the command wants, below --gin_param.
    Raises:
      MissingFileError: there is no run.
      UserError: --model_dir is missing, or a setting is wrong.
    """
    path = f"{model_dir()}/{CONFIG_FILE}"
    if not tf.io.gfile.exists(path):
        raise errors.MissingFileError(f"No {path}; is --model_dir that of a run?")
    return gin_files.parse(
        GIN_FILE.value,
        [*overrides, *GIN_PARAM.value],
        known=configurables.CONFIGURABLES,
        ranges=setting_ranges.RANGES,
        saved=path,
        paths=_PATHS,
        search_path=[GIN_CONFIGS],
        renamed=RENAMED,
    )


def model_dir() -> str:
    """Returns --model_dir without a slash at its end.

    Raises:
      UserError: the flag is missing, or TensorFlow takes the path for a pattern.
    """
    if not MODEL_DIR.value:
        raise errors.UserError("--model_dir is missing: the directory of the run.")
    files.check_path(MODEL_DIR.value, "--model_dir")
    return MODEL_DIR.value.rstrip("/")


def check_model_dir(text: str, run: Run, *, accept_changes: bool) -> None:
    """Checks that the model_dir belongs to the run, or to none; writes nothing.

    Raises:
      UserError: the model_dir was started with another configuration, or a worker was;
        or files of the run in it are missing or corrupt.
    """
    # Workers may have other working directories.
    shared = text.replace(f"{os.getcwd()}/", "")
    run.estimator.workers.check_same(
        zlib.crc32(shared.encode()), "The configuration's CRC"
    )
    train_and_evaluate.check_nothing_lost(model_dir())
    if accept_changes or not checkpoints.latest(model_dir()):
        return
    _check_has(CONFIG_FILE)
    before = gin_files.read_saved(f"{model_dir()}/{CONFIG_FILE}", RENAMED)
    changes = gin_files.differences(before, text, _MAY_CHANGE)
    if changes:
        raise errors.UserError(
            f"{model_dir()} belongs to another configuration; it differs in\n  "
            + "\n  ".join(changes)
            + "\nUse another --model_dir, or go on with the new: --accept_changes."
        )
    _check_has(category_map.FILE_NAME)


def _check_has(name):
    """Raises an error if checkpoints have lost a file that says what they are of."""
    if not tf.io.gfile.exists(f"{model_dir()}/{name}"):
        raise errors.UserError(
            f"{model_dir()} has checkpoints, but no {name}, so that it cannot be told "
            "whether they are of this run. Restore the file, use another --model_dir, "
            "or go on with the present settings: --accept_changes."
        )


def write_settings(text: str, run: Run) -> None:
    """Writes configuration and classes to the model_dir; for its only trainer."""
    if not run.estimator.workers.is_chief:
        return
    tf.io.gfile.makedirs(model_dir())
    # Whole, for a kill at this moment must leave what can be resumed.
    files.write_whole(f"{model_dir()}/{CONFIG_FILE}", text)
    classes = category_map.to_json(run.recipe.categories)
    files.write_whole(f"{model_dir()}/{category_map.FILE_NAME}", classes)


@contextlib.contextmanager
def data_errors_explained(run: Run) -> Iterator[None]:
    """Turns a step's failure over a damaged record into an error that names it.

    Raises:
      UserError: says file, record and image.
    """
    try:
        yield
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
        logging.error("A step failed; looking for a record that is to blame")
        splits = (run.data.train_split, run.data.eval_split)
        files = []
        for split in splits:
            with contextlib.suppress(FileNotFoundError):
                files += record_files.find(run.data.dir, split)
        found = pipeline.explain_failure(error, files, run.recipe.categories)
        raise found or error from error
