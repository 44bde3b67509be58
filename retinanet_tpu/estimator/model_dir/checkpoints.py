"""Checkpoints `model.ckpt-N`: plain names and tensors, for any TensorFlow tool.

A checkpoint is complete when its index file is there and every data shard it counts:
TensorFlow writes the index last. The text file `checkpoint` names the newest, for tools
that look there; this module itself trusts only what lies in the directory.
"""

import re
from collections.abc import Collection, Mapping

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tpu import errors
from retinanet_tpu.estimator.model_dir import files

_PREFIX = "model.ckpt-"
# What storage says that cannot be read now; it tells nothing of a checkpoint.
TRANSIENT_ERRORS = (
    tf.errors.AbortedError,
    tf.errors.DeadlineExceededError,
    tf.errors.PermissionDeniedError,
    tf.errors.ResourceExhaustedError,
    tf.errors.UnauthenticatedError,
    tf.errors.UnavailableError,
)
# Data that end too soon are an IndexError; a damaged index is an OpError of no kind.
CORRUPTION_ERRORS = (FileNotFoundError, IndexError, tf.errors.OpError)
_INDEX = re.compile(re.escape(_PREFIX) + r"(0|[1-9][0-9]*)\.index")
_SHARD = re.compile(r"\.data-([0-9]{5})-of-([0-9]{5})")
_NAMED = re.compile(rb'^model_checkpoint_path: "(.*)"$', re.MULTILINE)


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
      UserError: TensorFlow takes the path for a pattern.
    """
    files.check_path(path, "The checkpoint")
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


def latest_valid(model_dir: str) -> str | None:
    """Returns the path of the newest checkpoint without damage, or None."""
    for step in reversed(steps(model_dir)):
        path = path_of(model_dir, step)
        found = find_corruption(path)
        if not found:
            return path
        logging.error("%s is damaged, the one before must do: %s", path, found)
    return None


def check_nothing_lost(model_dir: str, known_step: int = 0) -> None:
    """Checks that a directory without a valid checkpoint never had one.

    A new run there would overwrite what may still be restored.

    Args:
      model_dir: The directory.
      known_step: The step of a checkpoint that the trainer has reported, 0 for none.
    Raises:
      UserError: contains what is left of the checkpoints and what to do.
    """
    names = files.list_directory(model_dir)
    # TensorFlow writes the index last, and `delete` removes it first.
    left = sorted(n for n in names if _INDEX.fullmatch(n))
    state = files.read_if_there(f"{model_dir}/checkpoint") or b""
    named = [match.decode(errors="replace") for match in _NAMED.findall(state)]
    if left:
        found = f"holds {', '.join(left[-3:])}, but no checkpoint that can be read"
    elif named:
        found = f"lacks {named[0]}, which its file `checkpoint` names"
    elif known_step:
        found = f"lacks the checkpoint of step {known_step}, which was saved there"
    else:
        return
    raise errors.UserError(
        f"{model_dir} {found}. Training does not start anew over a run: restore its "
        f"{_PREFIX}* files, or move them, `checkpoint` and run_state.json away, or use "
        "another --model_dir."
    )


def find_corruption(path: str, group: str = "") -> str | None:
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
    except TRANSIENT_ERRORS:
        raise
    except CORRUPTION_ERRORS as error:
        return str(error) or "its data end too soon"  # ram:// says nothing.
    is_named_right = step in (None, step_of(path))
    return None if is_named_right else f"it holds step {step}, not that of its name"


def steps(model_dir: str) -> list[int]:
    """Returns the steps of all complete checkpoints of a directory, rising."""
    names = files.list_directory(model_dir)
    prefixes = [n.removesuffix(".index") for n in names if _INDEX.fullmatch(n)]
    return sorted(step_of(p) for p in prefixes if _shards(p, names))


def is_complete(path: str) -> bool:
    """Tells whether the index and all data shards of a checkpoint are there."""
    return bool(files_of(path))


def files_of(path: str) -> list[str]:
    """Returns the paths of the files of a checkpoint; none if it is not complete."""
    directory, prefix = path.rpartition("/")[::2]
    names = files.list_directory(directory or ".")
    index, shards = f"{prefix}.index", sorted(_shards(prefix, names))
    if index not in names or not shards:
        return []
    return [path.removesuffix(prefix) + name for name in (index, *shards)]


def path_of(model_dir: str, step: int) -> str:
    """Returns the path prefix of the checkpoint of a step."""
    return f"{model_dir.rstrip('/')}/{_PREFIX}{step}"


def step_of(path: str) -> int:
    """Returns the global step that a checkpoint's name says.

    Raises:
      UserError: the name does not end in a step.
    """
    number = path.rpartition("-")[2]
    if not re.fullmatch("[0-9]+", number):
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
    names = files.list_directory(model_dir)
    for step in old:
        prefix = f"{_PREFIX}{step}"
        data = sorted(n for n in names if _is_shard(n, prefix))
        for name in [f"{prefix}.index", *data]:
            files.remove_file(f"{model_dir}/{name}")


def delete_incomplete(model_dir: str) -> list[str]:
    """Deletes the parts of checkpoints whose writing was killed; for the sole writer.

    TensorFlow writes under names of its own and renames what is complete.
    """
    is_part = re.compile(re.escape(_PREFIX) + r"[0-9]+\..*\.tempstate[0-9]+").fullmatch
    names = [n for n in files.list_directory(model_dir) if is_part(n)]
    for name in names:
        files.remove_file(f"{model_dir}/{name}")
    files.remove_temporaries(model_dir)
    return names


def _is_shard(name, prefix):
    return name.startswith(prefix) and _SHARD.fullmatch(name, len(prefix))


def _shards(prefix, names):
    """Returns the data files of a checkpoint if all are there, else none."""
    numbers = [match for n in names if (match := _is_shard(n, prefix))]
    for total in {match[2] for match in numbers}:
        shards = {int(m[1]): m.string for m in numbers if m[2] == total}
        if shards.keys() == set(range(int(total))):
            return [*shards.values()]
    return []


def _write_state(model_dir, listed):
    """Names checkpoints in the file `checkpoint`, as TensorFlow does."""
    if not listed:
        files.remove_file(f"{model_dir}/checkpoint")
        return
    names = [f'"{_PREFIX}{step}"' for step in listed]
    lines = [f"model_checkpoint_path: {names[-1]}"]
    lines += [f"all_model_checkpoint_paths: {name}" for name in names]
    files.write_whole(f"{model_dir}/checkpoint", "\n".join(lines) + "\n")
