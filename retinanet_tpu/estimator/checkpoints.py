"""Checkpoints `model.ckpt-N`: plain names and tensors, for any TensorFlow tool.

A checkpoint is complete when its index file is there and every data shard it counts:
TensorFlow writes the index last. The text file `checkpoint` names the newest, for tools
that look there; this module itself trusts only what lies in the directory.
"""

import contextlib
import re
from collections.abc import Collection, Mapping

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tpu import errors
from retinanet_tpu.estimator import files

_PREFIX = "model.ckpt-"
# What storage says that cannot be read now; it tells nothing of a checkpoint.
PASSING = (
    tf.errors.AbortedError,
    tf.errors.DeadlineExceededError,
    tf.errors.PermissionDeniedError,
    tf.errors.ResourceExhaustedError,
    tf.errors.UnauthenticatedError,
    tf.errors.UnavailableError,
)
# Data that end too soon are an IndexError; a damaged index is an OpError of no kind.
DAMAGED = (FileNotFoundError, IndexError, tf.errors.OpError)
_SHARD = re.compile(r"\.data-(\d{5})-of-(\d{5})$")


def save(model_dir: str, step: int, tensors: Mapping[str, np.ndarray]) -> str:
    """Writes tensors by name as the checkpoint of a step; returns its path prefix."""
    path = path_of(model_dir, step)
    names = sorted(tensors)
    tf.raw_ops.SaveV2(
        prefix=path,
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.convert_to_tensor(tensors[name]) for name in names],
    )
    _write_state(model_dir, steps(model_dir))
    return path


def read(path: str, group: str = "") -> dict[str, np.ndarray]:
    """Returns the tensors of a checkpoint whose names start with `group`, without it.

    Raises:
      MissingFileError: there is no complete checkpoint at this path.
    """
    if not is_complete(path):
        raise errors.MissingFileError(
            f"No complete checkpoint at {path}; expected its .index and .data files."
        )
    # tf.train.load_checkpoint looks for files in a way that ram:// does not answer.
    reader = tf.compat.v1.train.NewCheckpointReader(path)
    names = [n for n in reader.get_variable_to_shape_map() if n.startswith(group)]
    return {name[len(group) :]: reader.get_tensor(name) for name in sorted(names)}


def latest(model_dir: str) -> str | None:
    """Returns the path of the newest complete checkpoint, or None."""
    found = steps(model_dir)
    return path_of(model_dir, found[-1]) if found else None


def latest_sound(model_dir: str) -> str | None:
    """Returns the path of the newest checkpoint without damage, or None."""
    for step in reversed(steps(model_dir)):
        path = path_of(model_dir, step)
        found = damage(path)
        if not found:
            return path
        logging.error("%s is damaged, the one before must do: %s", path, found)
    return None


def damage(path: str, group: str = "") -> str | None:
    """Returns what is wrong with a checkpoint; None if it is whole and its name right.

    Files can be cut short after they were written, by a full disk or a copy that broke
    off. Reading finds that, and checks what it reads.

    Args:
      path: of the checkpoint.
      group: how the names of the tensors begin that are read, by default all.
    """
    try:
        read(path, group)
        step = read(path, "global_step").get("")
    except PASSING:
        raise
    except DAMAGED as error:
        return str(error) or "its data end too soon"  # ram:// says nothing.
    is_named_right = step in (None, step_of(path))
    return None if is_named_right else f"it holds step {step}, not that of its name"


def steps(model_dir: str) -> list[int]:
    """Returns the steps of all complete checkpoints of a directory, rising."""
    if not tf.io.gfile.isdir(model_dir):
        return []
    names = tf.io.gfile.listdir(model_dir)
    indexed = [n for n in names if re.fullmatch(re.escape(_PREFIX) + r"\d+\.index", n)]
    complete = [n for n in indexed if _has_all_shards(n.removesuffix(".index"), names)]
    return sorted(step_of(name.removesuffix(".index")) for name in complete)


def is_complete(path: str) -> bool:
    """Tells whether the index and all data shards of a checkpoint are there."""
    directory, prefix = path.rpartition("/")[::2]
    if not tf.io.gfile.isdir(directory or "."):
        return False
    names = tf.io.gfile.listdir(directory or ".")
    return f"{prefix}.index" in names and _has_all_shards(prefix, names)


def path_of(model_dir: str, step: int) -> str:
    """Returns the path prefix of the checkpoint of a step."""
    return f"{model_dir.rstrip('/')}/{_PREFIX}{step}"


def step_of(path: str) -> int:
    """Returns the global step that a checkpoint's name says.

    Raises:
      UserError: the name does not end in a step.
    """
    number = path.rpartition("-")[2]
    if not number.isdigit():
        raise errors.UserError(f"Checkpoint {path} is not named like {_PREFIX}1000.")
    return int(number)


def delete(model_dir: str, old: Collection[int]) -> None:
    """Deletes the checkpoints of some steps.

    The state file stops naming a checkpoint before its files go, and the index goes
    before the data, so that a reader sees a checkpoint whole or not at all.
    """
    if not old:
        return
    _write_state(model_dir, [step for step in steps(model_dir) if step not in old])
    for path in [path_of(model_dir, step) for step in old]:
        for name in [f"{path}.index", *sorted(tf.io.gfile.glob(f"{path}.data-*"))]:
            _remove(name)


def remove_remains(model_dir: str) -> list[str]:
    """Deletes the parts of checkpoints whose writing was killed; for the sole writer.

    TensorFlow writes under names of its own and renames what is complete.
    """
    names = tf.io.gfile.glob(f"{model_dir}/{_PREFIX}*.tempstate*")
    for name in names:
        _remove(name)
    return names


def _has_all_shards(prefix, names):
    matches = [_SHARD.search(n) for n in names if n.startswith(f"{prefix}.data-")]
    shards = {(int(m[1]), int(m[2])) for m in matches if m}
    return any(
        {(i, count) for i in range(count)} <= shards for count in {n for _, n in shards}
    )


def _remove(name):
    with contextlib.suppress(tf.errors.NotFoundError):
        tf.io.gfile.remove(name)


def _write_state(model_dir, listed):
    """Names checkpoints in the file `checkpoint`, as TensorFlow does."""
    names = [f'"{_PREFIX}{step}"' for step in listed]
    lines = [f"model_checkpoint_path: {names[-1]}"]
    lines += [f"all_model_checkpoint_paths: {name}" for name in names]
    files.write_whole(f"{model_dir}/checkpoint", "\n".join(lines) + "\n")
