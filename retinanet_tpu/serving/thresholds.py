"""Stores the best thresholds of the score beside an export."""

import json
import os
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from retinanet_tpu import errors, json_files

FILE_NAME = "thresholds.json"
_KEYS = ("best_threshold", "best_f1", "per_class_threshold")


def write(directory: str, scores: Mapping[str, Any] | None) -> None:
    """Writes thresholds.json, if the checkpoint was evaluated.

    Args:
      directory: The directory to write to.
      scores: The results of the checkpoint's evaluation, or None.
    """
    found = {key: scores[key] for key in _KEYS if key in scores} if scores else {}
    if not found:
        return
    tf.io.gfile.makedirs(directory)
    with tf.io.gfile.GFile(f"{directory}/{FILE_NAME}", "w") as file:
        file.write(json.dumps(found, ensure_ascii=False, indent=1) + "\n")


def read(path: str) -> float | None:
    """Returns the best threshold of all classes together, or None without a file.

    Args:
      path: The path of a SavedModel, or of another file of an export.
    Raises:
      UserError: The file is corrupt.
    """
    directory = path if tf.io.gfile.isdir(path) else os.path.dirname(path)
    for folder in ("assets.extra", ""):
        file = os.path.join(directory, folder, FILE_NAME)
        if tf.io.gfile.exists(file):
            content = json_files.read(file)
            value: Any = isinstance(content, dict) and content.get("best_threshold")
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not 0 <= value <= 1:
                raise errors.UserError(
                    f"{file} has the best_threshold {value!r}; expected a number "
                    "from 0 to 1. Export again, or remove the file."
                )
            return float(value)
    return None
