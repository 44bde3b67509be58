"""Writes, reads and removes small files that other processes may read at any time."""

import contextlib
import os
import re
import uuid
from collections.abc import Iterator

import tensorflow as tf

from retinanet_tpu import errors

_TEMPORARY = re.compile(r".+\.[0-9a-f]{12}\.tmp")
# TensorFlow's checkpoint readers treat their path as a glob pattern. Backslashes and
# brackets in it do not match themselves; "*" and "?" do.
_PATTERN = re.compile(r"\\|\[.*\]")


def check_path(path: str, name: str) -> None:
    """Checks that TensorFlow can read checkpoints and SavedModels below a path.

    Args:
      path: The path, before anything is written there.
      name: The flag or setting that contains the path, for the message.
    Raises:
      UserError: The path contains a part that TensorFlow reads as a pattern.
    """
    if match := _PATTERN.search(path):
        raise errors.UserError(
            f"{name} is {path}, and TensorFlow cannot read checkpoints there, because "
            f"it treats '{match[0]}' as a pattern; use a path without brackets and "
            "backslashes."
        )


def write_whole(path: str, text: str) -> None:
    """Writes a text file atomically: a reader gets the old content or the new one.

    The text is written to a temporary file, which is then renamed. If the writer is
    killed, the old file remains. If several processes write at the same time, the last
    rename wins.
    """
    with whole_file(path) as temporary, tf.io.gfile.GFile(temporary, "w") as file:
        file.write(text)


@contextlib.contextmanager
def whole_file(path: str) -> Iterator[str]:
    """Yields the path of a temporary file, which is renamed to `path` at the end.

    The block must create and close the file. If it raises an exception, the file is
    removed.
    """
    temporary = f"{path}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        yield temporary
        tf.io.gfile.rename(temporary, path, overwrite=True)
    except BaseException:  # Also KeyboardInterrupt.
        with contextlib.suppress(tf.errors.OpError):
            tf.io.gfile.remove(temporary)
        raise


def remove_temporaries(directory: str) -> None:
    """Removes the temporary files of killed `write_whole` calls.

    Only the sole writer of the directory may call this.
    """
    for name in list_directory(directory):
        if _TEMPORARY.fullmatch(name):
            remove_file(f"{directory}/{name}")


def list_directory(path: str) -> list[str]:
    """Returns the names in a directory, without slashes; none if it does not exist.

    Names that are not UTF-8 are omitted, because TensorFlow cannot open such paths.
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
    """Returns the content of a file, or None if the file does not exist."""
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            # read() uses the file's cached length on gs://; readlines() does not.
            return b"".join(file.readlines())
    except tf.errors.NotFoundError:
        return None


def remove_file(path: str) -> None:
    """Removes a file if it exists."""
    with contextlib.suppress(tf.errors.NotFoundError):
        tf.io.gfile.remove(path)


def rename_directory(source: str, target: str) -> None:
    """Renames a directory: atomically on local disks, else file by file."""
    if not source.startswith("ram://"):
        tf.io.gfile.rename(source, target)
        return
    # On ram:// TensorFlow renames a directory without its content. Its listing of
    # `assets` also contains the files of `assets.extra`.
    for directory, _, names in list(tf.io.gfile.walk(source)):
        target_directory = target + directory.removeprefix(source)
        tf.io.gfile.makedirs(target_directory)
        for name in names:
            if tf.io.gfile.exists(f"{directory}/{name}"):
                tf.io.gfile.rename(f"{directory}/{name}", f"{target_directory}/{name}")
    remove_directory(source)


def remove_directory(path: str) -> None:
    """Removes a directory and its content if it exists."""
    with contextlib.suppress(tf.errors.NotFoundError):
        tf.io.gfile.rmtree(path)


def _is_utf8(name: bytes) -> bool:
    return name.decode(errors="ignore").encode() == name
