"""What is done of a conversion, so that one that was killed can go on.

A record file is written as `<name>.tmp`. When it is whole, `<name>.state` is written
beside it: what became of its images, and what it was made of.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from retinanet_tpu.data import annotations, record_files

# Part of the fingerprint: counts up when the same annotations become other records.
_VERSION = 1


class FileFingerprint(NamedTuple):
    """What tells an image's file from a changed one."""

    length: int  # bytes
    mtime_nsec: int


class ImageResult(NamedTuple):
    """What became of one image."""

    image: annotations.AnnotatedImage | None  # as stored, None if left out
    events: tuple[annotations.ConversionEvent, ...]
    stamp: FileFingerprint | None  # None where there is no file


class Shard(NamedTuple):
    """A record file to be."""

    path: str
    images: list[annotations.AnnotatedImage]
    fingerprint: str  # of the images and all else that its records depend on

    @property
    def temporary_path(self) -> str:
        """Returns where the records are until the whole split is converted."""
        return f"{self.path}.tmp"

    @property
    def state_path(self) -> str:
        """Returns where it stands that the records are whole."""
        return f"{self.path}.state"


def make_shard(
    path: str, images: list[annotations.AnnotatedImage], names: dict[int, str]
) -> Shard:
    """Returns a shard with its fingerprint; names are those of the category ids."""
    digest = hashlib.sha256(repr((_VERSION, sorted(names.items()))).encode())
    for image in images:
        digest.update(repr(tuple(image)).encode())
    return Shard(path, images, digest.hexdigest())


def read(
    shard: Shard,
    stamps_fn: Callable[
        [Sequence[annotations.AnnotatedImage]], list[FileFingerprint | None]
    ],
) -> list[ImageResult] | None:
    """Returns what became of a shard's images if it is whole and still true, or None.

    Args:
      shard: to look for.
      stamps_fn: images -> the stamps of their images now.
    """
    try:
        with tf.io.gfile.GFile(shard.state_path) as file:
            state = json.load(file)
        # The kill may have come when files were being given their names.
        is_named = not tf.io.gfile.exists(shard.temporary_path)
        path = shard.path if is_named else shard.temporary_path
        length = tf.io.gfile.stat(path).length
    except (tf.errors.NotFoundError, ValueError):
        return None
    if state["fingerprint"] != shard.fingerprint or state["length"] != length:
        return None
    outcomes = [_outcome(entry) for entry in state["outcomes"]]
    if stamps_fn(shard.images) != [outcome.stamp for outcome in outcomes]:
        return None
    return outcomes


def write(shard: Shard, outcomes: Sequence[ImageResult]) -> None:
    """Notes that a shard's records are whole."""
    state = {
        "fingerprint": shard.fingerprint,
        "length": tf.io.gfile.stat(shard.temporary_path).length,
        "outcomes": outcomes,
    }
    with tf.io.gfile.GFile(shard.state_path, "w") as file:
        file.write(json.dumps(state))


def commit(shards: Sequence[Shard]) -> None:
    """Gives the record files their names."""
    for shard in shards:
        if tf.io.gfile.exists(shard.temporary_path):
            tf.io.gfile.rename(shard.temporary_path, shard.path, overwrite=True)


def clear(output_dir: str, split: str) -> None:
    """Removes what says which shards of a split are whole."""
    for path in record_files.list_files(output_dir, split, r"\.state"):
        tf.io.gfile.remove(path)


def abort(shards: Sequence[Shard]) -> None:
    """Removes all that an unfinished conversion has written."""
    for shard in shards:
        remove(shard.state_path)
        remove(shard.temporary_path)


def remove(path: str) -> None:
    """Removes a file if it is there."""
    if tf.io.gfile.exists(path):
        tf.io.gfile.remove(path)


def _outcome(entry: list) -> ImageResult:
    """Returns what was written as JSON, where tuples are lists."""
    image, findings, stamp = entry
    if image is not None:
        image = annotations.AnnotatedImage(*image)
        objects = [annotations.AnnotatedObject(*item) for item in image.objects]
        objects = tuple(o._replace(box_xywh=tuple(o.box_xywh)) for o in objects)
        image = image._replace(objects=objects)
    return ImageResult(
        image,
        tuple(annotations.ConversionEvent(*finding) for finding in findings),
        None if stamp is None else FileFingerprint(*stamp),
    )
