"""Reads and writes checkpoints `model.ckpt-N`, which any TensorFlow tool can read.

A checkpoint contains plain names and tensors. It is complete if its index file and all
data shards exist; TensorFlow writes the index last. The text file `checkpoint` contains
the name of the newest checkpoint for tools that read it. This module relies only on the
files of the checkpoints themselves.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tpu import errors
from retinanet_tpu.estimator.model_dir import files

_PREFIX = "model.ckpt-"
# Transient storage errors; they do not mean that the checkpoint is corrupt.
TRANSIENT_ERRORS = (
    tf.errors.AbortedError,
    tf.errors.DeadlineExceededError,
    tf.errors.PermissionDeniedError,
    tf.errors.ResourceExhaustedError,
    tf.errors.UnauthenticatedError,
    tf.errors.UnavailableError,
)
# Truncated data raise IndexError; a corrupt index raises an OpError of no subclass.
CORRUPTION_ERRORS = (FileNotFoundError, IndexError, tf.errors.OpError)
_INDEX = re.compile(re.escape(_PREFIX) + r"(0|[1-9][0-9]*)\.index")
_SHARD = re.compile(r"\.data-([0-9]{5})-of-([0-9]{5})")
_NAMED = re.compile(rb'^model_checkpoint_path: "(.*)"$', re.MULTILINE)


def save(model_dir: str, step: int, tensors: Mapping[str, np.ndarray]) -> str:
    """Writes named tensors as the checkpoint of a step; returns its path prefix."""
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
    """Returns the tensors of a checkpoint whose names start with a prefix.

    Args:
      path: The path prefix of the checkpoint.
      group: The prefix of the names; "" reads all tensors.
    Returns:
      The tensors by name, without the prefix.
    Raises:
      MissingFileError: There is no complete checkpoint at this path.
      UserError: TensorFlow treats the path as a pattern.
    """
    files.check_path(path, "The checkpoint")
    if not is_complete(path):
        raise errors.MissingFileError(
            f"No complete checkpoint at {path}; expected its .index and .data files."
        )
    # tf.train.load_checkpoint does not find files on ram://.
    reader = tf.compat.v1.train.NewCheckpointReader(path)
    names = [n for n in reader.get_variable_to_shape_map() if n.startswith(group)]
    return {name[len(group) :]: reader.get_tensor(name) for name in sorted(names)}


def latest(model_dir: str) -> str | None:
    """Returns the path prefix of the newest complete checkpoint, or None."""
    complete = steps(model_dir)
    return path_of(model_dir, complete[-1]) if complete else None


def latest_valid(model_dir: str) -> str | None:
    """Returns the path prefix of the newest checkpoint that is not corrupt, or None."""
    for step in reversed(steps(model_dir)):
        path = path_of(model_dir, step)
        corruption = find_corruption(path)
        if not corruption:
            return path
        logging.error(
            "%s is corrupt; falling back to the previous checkpoint: %s",
            path,
            corruption,
        )
    return None


def check_nothing_lost(model_dir: str, known_step: int = 0) -> None:
    """Checks that a directory without a valid checkpoint never had one.

    Otherwise a new run there could overwrite a checkpoint that can still be restored.

    Args:
      model_dir: The directory.
      known_step: The step of a checkpoint that the trainer has reported, 0 for none.
    Raises:
      UserError: There was a checkpoint. The message contains what is left of it and
        what to do.
    """
    names = files.list_directory(model_dir)
    # TensorFlow writes the index last, and `delete` removes it first.
    indexes = sorted(n for n in names if _INDEX.fullmatch(n))
    state = files.read_if_there(f"{model_dir}/checkpoint") or b""
    named = [match.decode(errors="replace") for match in _NAMED.findall(state)]
    if indexes:
        problem = f"contains {', '.join(indexes[-3:])}, but no valid checkpoint"
    elif named:
        problem = f"lacks {named[0]}, which its file `checkpoint` names"
    elif known_step:
        problem = f"lacks the checkpoint of step {known_step}, which was saved there"
    else:
        return
    raise errors.UserError(
        f"{model_dir} {problem}. Training does not start from step 0 over an existing "
        f"run: restore its {_PREFIX}* files; or move them, `checkpoint` and "
        "run_state.json away; or use another --model_dir."
    )


def find_corruption(path: str, group: str = "") -> str | None:
    """Returns what is wrong with a checkpoint, or None if it is valid.

    A file can be truncated after it was written, by a full disk or an interrupted copy.
    Only reading detects this: it verifies the checksums of what it reads.

    Args:
      path: The path prefix of the checkpoint.
      group: The prefix of the names of the tensors to read; "" reads all tensors.
    """
    try:
        read(path, group)
        step = read(path, "global_step").get("")
    except TRANSIENT_ERRORS:
        raise
    except CORRUPTION_ERRORS as error:
        return str(error) or "its data are truncated"  # ram:// has no message.
    if step is None or step == step_of(path):
        return None
    return f"it contains step {step}, which is not the step in its name"


def steps(model_dir: str) -> list[int]:
    """Returns the steps of all complete checkpoints of a directory, rising."""
    names = files.list_directory(model_dir)
    prefixes = [n.removesuffix(".index") for n in names if _INDEX.fullmatch(n)]
    return sorted(step_of(p) for p in prefixes if _shards(p, names))


def is_complete(path: str) -> bool:
    """Returns True if the index and all data shards of a checkpoint exist."""
    return bool(files_of(path))


def files_of(path: str) -> list[str]:
    """Returns the paths of a checkpoint's files; none if it is not complete."""
    directory, prefix = path.rpartition("/")[::2]
    names = files.list_directory(directory or ".")
    index = f"{prefix}.index"
    shards = sorted(_shards(prefix, names))
    if index not in names or not shards:
        return []
    return [path.removesuffix(prefix) + name for name in (index, *shards)]


def path_of(model_dir: str, step: int) -> str:
    """Returns the path prefix of the checkpoint of a step."""
    return f"{model_dir.rstrip('/')}/{_PREFIX}{step}"


def step_of(path: str) -> int:
    """Returns the global step in the name of a checkpoint.

    Raises:
      UserError: The name does not end in a step.
    """
    number = path.rpartition("-")[2]
    if not re.fullmatch("[0-9]+", number):
        raise errors.UserError(
            f"Checkpoint {path} does not end in a step; expected a name like "
            f"{_PREFIX}1000."
        )
    return int(number)


def delete(model_dir: str, old: Collection[int]) -> None:
    """Deletes the checkpoints of some steps.

    The file `checkpoint` is rewritten before the files are deleted, and each index is
    deleted before its data. A reader therefore sees a complete checkpoint or none.

    Args:
      model_dir: The directory.
      old: The steps of the checkpoints to delete.
    """
    if not old:
        return
    _write_state(model_dir, [step for step in steps(model_dir) if step not in old])
    names = files.list_directory(model_dir)
    for step in old:
        prefix = f"{_PREFIX}{step}"
        data = sorted(n for n in names if _match_shard(n, prefix))
        for name in [f"{prefix}.index", *data]:
            files.remove_file(f"{model_dir}/{name}")


def delete_incomplete(model_dir: str) -> list[str]:
    """Deletes the files of checkpoints whose writer was killed; returns their names.

    TensorFlow writes to temporary names and renames complete files. Only the sole
    writer of the directory may call this.
    """
    is_part = re.compile(re.escape(_PREFIX) + r"[0-9]+\..*\.tempstate[0-9]+").fullmatch
    names = [n for n in files.list_directory(model_dir) if is_part(n)]
    for name in names:
        files.remove_file(f"{model_dir}/{name}")
    files.remove_temporaries(model_dir)
    return names


def _match_shard(name: str, prefix: str) -> re.Match[str] | None:
    return _SHARD.fullmatch(name, len(prefix)) if name.startswith(prefix) else None


def _shards(prefix: str, names: Iterable[str]) -> list[str]:
    """Returns the data files of a checkpoint if all of them exist, else none."""
    matches = [match for n in names if (match := _match_shard(n, prefix))]
    for total in {match[2] for match in matches}:
        shards = {int(m[1]): m.string for m in matches if m[2] == total}
        if shards.keys() == set(range(int(total))):
            return [*shards.values()]
    return []


def _write_state(model_dir: str, listed: Sequence[int]) -> None:
    """Writes the steps to the file `checkpoint`, in TensorFlow's format."""
    if not listed:
        files.remove_file(f"{model_dir}/checkpoint")
        return
    names = [f'"{_PREFIX}{step}"' for step in listed]
    lines = [f"model_checkpoint_path: {names[-1]}"]
    lines += [f"all_model_checkpoint_paths: {name}" for name in names]
    files.write_whole(f"{model_dir}/checkpoint", "\n".join(lines) + "\n")
