"""Checkpoints `model.ckpt-N`: plain names and tensors, for any TensorFlow tool.

A checkpoint is complete when its index file is there and every data shard it counts:
TensorFlow writes the index last. The text file `checkpoint` names the newest, for tools
that look there; this module itself trusts only what lies in the directory.
"""

import re
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

_PREFIX = "model.ckpt-"
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
    _write_state(model_dir)
    return path


def read(path: str, group: str = "") -> dict[str, np.ndarray]:
    """Returns the tensors of a checkpoint whose names start with `group`, without it.

    Raises:
      FileNotFoundError: there is no complete checkpoint at this path.
    """
    if not is_complete(path):
        raise FileNotFoundError(
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
      ValueError: the name does not end in a step.
    """
    number = path.rpartition("-")[2]
    if not number.isdigit():
        raise ValueError(f"Checkpoint {path} is not named like {_PREFIX}1000.")
    return int(number)


def prune(model_dir: str, keep: int | None) -> list[str]:
    """Deletes all but the newest `keep` checkpoints; None or 0 keeps all.

    The state file stops naming a checkpoint before its files go, and the index goes
    before the data, so that a reader sees a checkpoint whole or not at all.
    """
    old = (
        [path_of(model_dir, step) for step in steps(model_dir)[:-keep]] if keep else []
    )
    if not old:
        return []
    _write_state(model_dir, newest=keep)
    for path in old:
        for name in [f"{path}.index", *sorted(tf.io.gfile.glob(f"{path}.data-*"))]:
            if tf.io.gfile.exists(name):
                tf.io.gfile.remove(name)
    return old


def _has_all_shards(prefix, names):
    matches = [_SHARD.search(n) for n in names if n.startswith(f"{prefix}.data-")]
    shards = {(int(m[1]), int(m[2])) for m in matches if m}
    return any(
        {(i, count) for i in range(count)} <= shards for count in {n for _, n in shards}
    )


def _write_state(model_dir, newest=None):
    """Names the newest checkpoints in the file `checkpoint`, as TensorFlow does."""
    names = [f'"{_PREFIX}{step}"' for step in steps(model_dir)[-(newest or 0) :]]
    lines = [f"model_checkpoint_path: {names[-1]}"]
    lines += [f"all_model_checkpoint_paths: {name}" for name in names]
    temporary = f"{model_dir}/checkpoint.tmp"
    with tf.io.gfile.GFile(temporary, "w") as file:
        file.write("\n".join(lines) + "\n")
    tf.io.gfile.rename(temporary, f"{model_dir}/checkpoint", overwrite=True)
