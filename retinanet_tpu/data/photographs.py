"""Pictures as files in folders, outside any data set."""

import io
import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps, UnidentifiedImageError

from retinanet_tpu import errors

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")


def find(patterns: Sequence[str]) -> list[str]:
    """Returns the files that folders, globs and file names stand for, each once.

    Args:
      patterns: a folder stands for the pictures right inside it, told by extension.
    Raises:
      UserError: nothing was asked for, or one of the patterns matches no file.
    """
    if not patterns:
        raise errors.UserError(
            "No images asked for; set --images to a folder, glob or file."
        )
    paths = []
    for pattern in patterns:
        if tf.io.gfile.isdir(pattern):
            names = tf.io.gfile.listdir(pattern)
            pictures = [name for name in names if name.lower().endswith(EXTENSIONS)]
            found = [os.path.join(pattern, name) for name in pictures]
        elif tf.io.gfile.exists(pattern):
            found = [pattern]
        else:
            found = tf.io.gfile.glob(pattern)
        if not found:
            raise errors.UserError(
                f"--images={pattern} matches no picture; give a folder with "
                f"{', '.join(EXTENSIONS)} files, a glob in quotes, or a file."
            )
        paths += sorted(found)
    return list(dict.fromkeys(paths))


def load(path: str) -> np.ndarray:
    """Reads a picture the way a viewer shows it.

    Returns:
      uint8 [H, W, 3] RGB, turned by its EXIF orientation; transparency is dropped.
    Raises:
      UserError: the file cannot be read or is not a picture.
    """
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            image = Image.open(io.BytesIO(file.read()))
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):
            # convert() would clip all above 255 to white.
            image = Image.fromarray((np.array(image) >> 8).astype(np.uint8))
        return np.array(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise errors.UserError(f"{path} is no picture that Pillow knows.") from error
    except Exception as error:  # Pillow's decoders raise errors of ten kinds.
        raise errors.UserError(
            f"{path} cannot be read as a picture: {error}"
        ) from error
