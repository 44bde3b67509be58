"""Writes SavedModels that appear whole or not at all."""

import time
from collections.abc import Callable, Mapping

import tensorflow as tf


def export_saved_model(
    module: tf.Module,
    base_dir: str,
    *,
    signatures: Mapping[str, Callable],
    assets_extra: Mapping[str, str] | None = None,
) -> str:
    """Saves a module under `base_dir/<10-digit time>`, committed by a rename.

    TensorFlow Serving loads directories whose names are numbers, so the work goes on in
    `temp-<time>`, which it does not see. On gs:// a rename copies, file by file.

    Args:
      module: holds all variables that the signatures use.
      base_dir: gets one version more; others stay.
      signatures: by name; `serving_default` is the one that servers call.
      assets_extra: texts by file name, for the directory assets.extra.
    Returns:
      The new directory.
    """
    version = int(time.time())
    while tf.io.gfile.exists(f"{base_dir}/{version}"):
        version += 1
    temporary = f"{base_dir}/temp-{version}"
    tf.saved_model.save(module, temporary, signatures=dict(signatures))
    tf.io.gfile.makedirs(f"{temporary}/assets.extra")
    for name, text in (assets_extra or {}).items():
        with tf.io.gfile.GFile(f"{temporary}/assets.extra/{name}", "w") as file:
            file.write(text)
    tf.io.gfile.rename(temporary, f"{base_dir}/{version}")
    return f"{base_dir}/{version}"
