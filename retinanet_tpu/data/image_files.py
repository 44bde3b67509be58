"""Finds and loads image files that do not belong to a data set."""

import fnmatch
import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.data import image_decoding

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")


def find(
    patterns: Sequence[str], *, extensions: tuple[str, ...] = EXTENSIONS
) -> list[str]:
    """Returns the files of folders, globs and file names, each once.

    Args:
      patterns: The folders, globs and file names. A folder stands for the files with
        one of the extensions directly in it.
      extensions: The extensions, in lower case.
    Raises:
      UserError: There are no patterns, or a pattern matches no file.
    """
    if not patterns:
        raise errors.UserError(
            "No images given; set --images to a folder, glob or file."
        )
    paths = []
    for pattern in patterns:
        matches = _matches(pattern, extensions)
        if not matches:
            raise errors.UserError(
                f"--images={pattern} matches no image; give a folder with "
                f"{', '.join(extensions)} files, a glob in quotes, or a file."
            )
        paths += sorted(matches)
    return list(dict.fromkeys(paths))


def load(path: str) -> np.ndarray:
    """Reads an image file by the rules of the converter.

    Args:
      path: The local or remote image file.

    Returns:
      uint8 [H, W, 3] RGB, rotated by its EXIF orientation. Transparency is dropped.
    Raises:
      UserError: The file cannot be read or is not an image.
    """
    try:
        path.encode()  # TensorFlow raises TypeError for a name that is not UTF-8.
        with tf.io.gfile.GFile(path, "rb") as file:
            encoded = file.read()
    except UnicodeError as error:
        message = f"{path!a} cannot be read: the name is not UTF-8; rename it."
        raise errors.UserError(message) from error
    except tf.errors.OpError as error:
        reason = error.message.rpartition("; ")[2]
        raise errors.UserError(f"{path} cannot be read: {reason}.") from error
    try:
        return image_decoding.decode(encoded)
    except image_decoding.UnusableError as error:
        message = f"{path} cannot be read as an image: {error}."
        raise errors.UserError(message) from error


def _matches(pattern: str, extensions: tuple[str, ...]) -> list[str]:
    """Returns the files of one folder, glob or file name."""
    try:
        if tf.io.gfile.isdir(pattern):
            names = [n for n in _names(pattern) if n.lower().endswith(extensions)]
            return [os.path.join(pattern, name) for name in names]
        if tf.io.gfile.exists(pattern):
            return [pattern]
        folder, name = os.path.split(pattern)
        if tf.io.gfile.isdir(folder or "."):
            # gfile.glob would also interpret [] in the name of the folder.
            names = [n for n in _names(folder or ".") if fnmatch.fnmatchcase(n, name)]
            return [os.path.join(folder, name) for name in names]
        return tf.io.gfile.glob(pattern)
    except UnicodeError:
        return [pattern]  # `load` raises the error, with the name.


def _names(folder: str) -> list[str]:
    try:
        return tf.io.gfile.listdir(folder)
    except UnicodeError:
        return os.listdir(folder)
