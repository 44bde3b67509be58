"""The progress of a conversion, with which a killed one can be resumed.

A record file is written as `<name>.tmp`. When it is complete, `<name>.state` is written
beside it. The state contains the results of its images, and fingerprints of the
annotations and the image files.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import tensorflow as tf

from retinanet_tpu.data import annotations, record_files

# Part of the fingerprint. Increase it when the same annotations give other records.
_VERSION = 2


class FileFingerprint(NamedTuple):
    """The properties of an image file by which a change is detected.

    Attributes:
      length: The length, bytes.
      mtime_nsec: The time of the last change, ns.
    """

    length: int
    mtime_nsec: int


class ImageResult(NamedTuple):
    """The result of converting one image.

    Attributes:
      image: The image as stored, or None if it was left out.
      events: The issues and changes.
      fingerprint: The fingerprint of the image file, or None if it does not exist.
      record_bytes: The size of the image's record, bytes, framing included; 0 if the
        image was left out.
    """

    image: annotations.AnnotatedImage | None
    events: tuple[annotations.ConversionEvent, ...]
    fingerprint: FileFingerprint | None
    record_bytes: int


# Returns the current fingerprints of the files of images.
FingerprintsFn: TypeAlias = Callable[
    [Sequence[annotations.AnnotatedImage]], list[FileFingerprint | None]
]


class Shard(NamedTuple):
    """A record file to write.

    Attributes:
      path: The final path.
      images: The annotated images.
      fingerprint: A hash of the images and all other inputs of the records.
    """

    path: str
    images: list[annotations.AnnotatedImage]
    fingerprint: str

    @property
    def temporary_path(self) -> str:
        """Returns the path of the records until the whole split is converted."""
        return f"{self.path}.tmp"

    @property
    def state_path(self) -> str:
        """Returns the path of the file that marks the records as complete."""
        return f"{self.path}.state"


def make_shard(
    path: str, images: list[annotations.AnnotatedImage], names: dict[int, str]
) -> Shard:
    """Returns a shard with its fingerprint.

    Args:
      path: The final path of the record file.
      images: The annotated images.
      names: The category names by id.
    """
    digest = hashlib.sha256(repr((_VERSION, sorted(names.items()))).encode())
    for image in images:
        digest.update(repr(tuple(image)).encode())
    return Shard(path, images, digest.hexdigest())


def read(shard: Shard, fingerprints_fn: FingerprintsFn) -> list[ImageResult] | None:
    """Returns the results of a shard if it is complete and up to date, or None.

    Args:
      shard: The shard.
      fingerprints_fn: The function that returns the current fingerprints of the files.
    """
    try:
        with tf.io.gfile.GFile(shard.state_path) as file:
            state = json.load(file)
        # The process may have been killed while `commit` renamed the files.
        is_committed = not tf.io.gfile.exists(shard.temporary_path)
        path = shard.path if is_committed else shard.temporary_path
        length = tf.io.gfile.stat(path).length
    except (tf.errors.NotFoundError, ValueError):
        return None
    if state["fingerprint"] != shard.fingerprint or state["length"] != length:
        return None
    results = [_from_json(entry) for entry in state["outcomes"]]
    if fingerprints_fn(shard.images) != [result.fingerprint for result in results]:
        return None
    return results


def write(shard: Shard, results: Sequence[ImageResult]) -> None:
    """Marks a shard's records as complete.

    Args:
      shard: The shard, whose temporary file is complete.
      results: The results of its images.
    """
    state = {
        "fingerprint": shard.fingerprint,
        "length": tf.io.gfile.stat(shard.temporary_path).length,
        "outcomes": results,
    }
    with tf.io.gfile.GFile(shard.state_path, "w") as file:
        file.write(json.dumps(state))


def commit(shards: Sequence[Shard]) -> None:
    """Renames the record files of shards to their final paths."""
    for shard in shards:
        if tf.io.gfile.exists(shard.temporary_path):
            tf.io.gfile.rename(shard.temporary_path, shard.path, overwrite=True)


def clear(output_dir: str, split: str) -> None:
    """Deletes the progress files of a split.

    Args:
      output_dir: The data directory.
      split: The name of the split.
    """
    for path in record_files.list_files(output_dir, split, r"\.state"):
        tf.io.gfile.remove(path)


def abort(shards: Sequence[Shard]) -> None:
    """Deletes all files that an unfinished conversion of shards has written."""
    for shard in shards:
        remove(shard.state_path)
        remove(shard.temporary_path)


def remove(path: str) -> None:
    """Deletes a file if it exists."""
    if tf.io.gfile.exists(path):
        tf.io.gfile.remove(path)


def _from_json(entry: list[Any]) -> ImageResult:
    """Returns the result that was written as JSON, in which tuples are lists."""
    image, events, fingerprint, record_bytes = entry
    return ImageResult(
        None if image is None else _image_from_json(image),
        tuple(annotations.ConversionEvent(*event) for event in events),
        None if fingerprint is None else FileFingerprint(*fingerprint),
        record_bytes,
    )


def _image_from_json(entry: list[Any]) -> annotations.AnnotatedImage:
    image = annotations.AnnotatedImage(*entry)
    objects = [annotations.AnnotatedObject(*item) for item in image.objects]
    return image._replace(
        positive_ids=tuple(image.positive_ids),
        negative_ids=tuple(image.negative_ids),
        objects=tuple(
            item._replace(box_xywh=(left, top, width, height))
            for item in objects
            for left, top, width, height in [item.box_xywh]
        ),
    )
