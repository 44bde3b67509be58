"""The files of a data directory beside the records: COCO files and lists of issues."""

import os

import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.conversion.formats import splits
from retinanet_tpu.data import annotations


def check_no_other_files(output_dir: str, split: str, num_shards: int) -> None:
    """Raises UserError if foreign files would be lost or older shards would remain.

    Args:
      output_dir: The data directory.
      split: The name of the split.
      num_shards: The number of record files to write.
    """
    path = os.path.join(output_dir, f"{split}.json")
    if tf.io.gfile.exists(path) and not annotations.has_description(
        path, _description(split)
    ):
        raise errors.UserError(
            f"{path} would be replaced, and no conversion wrote it; choose another "
            "--output_dir."
        )
    others = [
        name
        for name in splits.record_names(output_dir)
        if name.startswith(f"{split}-") and f"-of-{num_shards:05d}." not in name
    ]
    if others:
        raise errors.UserError(
            f"{output_dir} holds shards of an earlier conversion, such as "
            f"{others[0]}; delete its {split}-*.tfrecord* files, or choose another "
            "--output_dir."
        )


def write_annotations(
    stored: annotations.AnnotatedSet, output_dir: str, split: str
) -> None:
    """Writes <split>.json. Its existence marks a finished conversion.

    Args:
      stored: The images as stored, and the categories.
      output_dir: The data directory.
      split: The name of the split.
    """
    path = os.path.join(output_dir, f"{split}.json")
    annotations.write_coco(stored, path, description=_description(split))


def write_issues(
    events: list[annotations.ConversionEvent], output_dir: str, split: str
) -> str | None:
    """Writes <split>.issues.txt, or deletes an older one if there are no issues.

    Args:
      events: The issues and changes, one line each.
      output_dir: The data directory.
      split: The name of the split.

    Returns:
      The path of the file, or None.
    """
    path = os.path.join(output_dir, f"{split}.issues.txt")
    if tf.io.gfile.exists(path):
        tf.io.gfile.remove(path)
    if not events:
        return None
    lines = [
        f"{e.location}: {e.kind}" + (f" ({e.detail})" if e.detail else "") + "\n"
        for e in events
    ]
    with tf.io.gfile.GFile(path, "w") as file:
        file.write("".join(lines))
    return path


def _description(split: str) -> str:
    return f"{split} split"
