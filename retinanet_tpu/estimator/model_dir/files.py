"""Small text files that other processes read at any moment, and paths."""

import contextlib
import os
import re
import uuid

import tensorflow as tf

from retinanet_tpu import errors

_TEMPORARY = re.compile(r".+\.[0-9a-f]{12}\.tmp")
# TensorFlow's readers of checkpoints treat their path as a pattern. These parts of it
# do not match themselves; "*" and "?" do.
_PATTERN = re.compile(r"\\|\[.*\]")


def check_path(path: str, name: str) -> None:
    """Checks that TensorFlow can read checkpoints and SavedModels below a path.

    Args:
      path: The path, before anything is written there.
      name: The flag or setting that contains the path, for the message.
    Raises:
      UserError: The path contains a part that TensorFlow reads as a pattern.
    """
    if found := _PATTERN.search(path):
        raise errors.UserError(
            f"{name} is {path}, and TensorFlow cannot read checkpoints there, because "
            f"it takes '{found[0]}' for a pattern; use a path without brackets and "
            "backslashes."
        )


def write_whole(path: str, text: str) -> None:
    """Writes a text file; a reader sees what was there before, or all of it.

    The text goes to a file of its own first, so a writer that is killed leaves the old
    file as it was. Several processes may write at the same time: one of them wins.
    """
    temporary = f"{path}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        with tf.io.gfile.GFile(temporary, "w") as file:
            file.write(text)
        tf.io.gfile.rename(temporary, path, overwrite=True)
    except tf.errors.OpError:
        with contextlib.suppress(tf.errors.OpError):
            tf.io.gfile.remove(temporary)
        raise


def remove_temporaries(directory: str) -> None:
    """Removes what killed calls of `write_whole` left; for the sole writer."""
    for name in list_directory(directory):
        if _TEMPORARY.fullmatch(name):
            remove_file(f"{directory}/{name}")


def list_directory(path: str) -> list[str]:
    """Returns the names in a directory, without slashes; none if it does not exist.

    Names that are not UTF-8 are left out: TensorFlow has no path for them.
    """
    try:
        return [name.rstrip("/") for name in tf.io.gfile.listdir(path)]
    except tf.errors.NotFoundError:
        return []
    except UnicodeDecodeError:  # Only local file systems have such names.
        return [
            os.fsdecode(name)
            for name in os.listdir(os.fsencode(path))
            if _is_utf8(name)
        ]


def read_if_there(path: str) -> bytes | None:
    """Returns the content of a file, None if there is none (any more)."""
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            # read() would ask gs:// for a cached length.
            return b"".join(file.readlines())
    except tf.errors.NotFoundError:
        return None


def remove_file(path: str) -> None:
    """Removes a file, if it is still there."""
    with contextlib.suppress(tf.errors.NotFoundError):
        tf.io.gfile.remove(path)


def rename_directory(source: str, target: str) -> None:
    """Renames a directory: locally in one step; on gs:// and ram:// file by file."""
    if not source.startswith("ram://"):
        tf.io.gfile.rename(source, target)
        return
    # There TensorFlow renames a directory without what is in it, and lists in `assets`
    # what is in `assets.extra`.
    for directory, _, names in list(tf.io.gfile.walk(source)):
        place = target + directory.removeprefix(source)
        tf.io.gfile.makedirs(place)
        for name in names:
            if tf.io.gfile.exists(f"{directory}/{name}"):
                tf.io.gfile.rename(f"{directory}/{name}", f"{place}/{name}")
    remove_directory(source)


def remove_directory(path: str) -> None:
    """Removes a directory and what is in it, if it is still there."""
    with contextlib.suppress(tf.errors.NotFoundError):
        tf.io.gfile.rmtree(path)


def _is_utf8(name: bytes) -> bool:
    return name.decode(errors="ignore").encode() == name
