"""Small text files that other processes read at any moment."""

import contextlib

import tensorflow as tf


def write_whole(path: str, text: str) -> None:
    """Writes a text file; a reader sees what was there before, or all of it.

    The text goes to a file of its own first, so a writer that is killed leaves the old
    file as it was.
    """
    temporary = f"{path}.tmp"
    with tf.io.gfile.GFile(temporary, "w") as file:
        file.write(text)
    tf.io.gfile.rename(temporary, path, overwrite=True)


def read_if_there(path: str) -> str | None:
    """Returns the text of a file, None if there is none (any more)."""
    try:
        with tf.io.gfile.GFile(path) as file:
            return file.read()
    except tf.errors.NotFoundError:
        return None


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
