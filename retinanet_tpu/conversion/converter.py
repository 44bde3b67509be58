"""Converts annotated images to record files."""

import collections
import concurrent.futures
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import tensorflow as tf

from retinanet_tpu import errors, look_ahead
from retinanet_tpu.conversion import box_cleaning, checks, shard_progress
from retinanet_tpu.data import (
    annotations,
    image_decoding,
    record_files,
    record_index,
    tf_example,
)

# The number of images that are converted ahead of the one being written. Enough that
# no worker waits for a slow image, and few enough to hold in memory.
_AHEAD_OF_WORKER = 4
_NUM_NAMED = 3  # The number of locations in a line of the summary.
_MAX_BOXES = 100  # The default of Data.max_boxes. Training drops boxes beyond it.
_CROWDED = f"images with more than {_MAX_BOXES} boxes"
_ROTATED_BOXES = "boxes rotated with their image (EXIF)"


class _Encoded(NamedTuple):
    """The result of one image, and its record."""

    result: shard_progress.ImageResult
    serialized: bytes | None  # None if the image was left out.


class Conversion(NamedTuple):
    """The result of a conversion.

    Attributes:
      images: The images as stored, with their true sizes.
      events: The issues and changes.
    """

    images: list[annotations.AnnotatedImage]
    events: list[annotations.ConversionEvent]

    @property
    def counts(self) -> collections.Counter[str]:
        """Returns the number of events of each kind, and of images and boxes."""
        objects = [item for image in self.images for item in image.objects]
        counts = collections.Counter(event.kind for event in self.events)
        counts["images stored"] = len(self.images)
        counts["images without boxes"] = sum(not i.objects for i in self.images)
        counts[_CROWDED] += 0
        counts["boxes stored"] = len(objects)
        counts["boxes of crowds"] = sum(item.is_crowd for item in objects)
        return counts


def write_shards(
    annotated: annotations.AnnotatedSet,
    *,
    images_dir: str,
    output_dir: str,
    split: str,
    num_shards: int,
    num_workers: int = 1,
    progress_fn: Callable[[], object] = lambda: None,
    keep_progress: bool = False,
) -> Conversion:
    """Writes a split's records and their index, the same for any number of workers.

    `assign_to_shards` distributes the images. The files are renamed to their final
    names when all are complete. If the conversion is killed, the complete files are
    kept, and a second run of the same conversion writes only the others.

    Args:
      annotated: The images and categories.
      images_dir: The folder to which the images' file names are relative.
      output_dir: The data directory, created if absent.
      split: The name of the split, with which the file names start.
      num_shards: The number of record files.
      num_workers: The number of images that are converted at once, in threads.
        Reading, decoding and compressing release Python's lock, and TensorFlow is in
        memory only once.
      progress_fn: The function that is called after each image.
      keep_progress: Keeps the progress files, which mark complete record files, until
        `shard_progress.clear`.

    Returns:
      The stored images, in the given order, and the events.

    Raises:
      UserError: No image could be stored, the stored images cannot be trained on, or an
        image id is invalid. All written files are deleted.
    """
    for image in annotated.images:
        tf_example.check_image_id(image)
    tf.io.gfile.makedirs(output_dir)
    names = {category["id"]: category["name"] for category in annotated.categories}
    prefix = os.path.join(output_dir, split)
    assigned = assign_to_shards(annotated.images, num_shards)
    shards = _make_shards(annotated.images, assigned, names, prefix)
    with concurrent.futures.ThreadPoolExecutor(num_workers) as workers:
        fingerprint_fn = functools.partial(_fingerprint, images_dir=images_dir)

        def fingerprints_fn(
            images: Sequence[annotations.AnnotatedImage],
        ) -> list[shard_progress.FileFingerprint | None]:
            return list(workers.map(fingerprint_fn, images))

        complete = [shard_progress.read(shard, fingerprints_fn) for shard in shards]
        for _ in itertools.chain.from_iterable(filter(None, complete)):
            progress_fn()
        # The workers share one shard at a time: a kill loses one shard, not one for
        # each worker.
        encoded = look_ahead.map_ordered(
            workers,
            functools.partial(_encode, images_dir=images_dir, names=names),
            (
                image
                for shard, results in zip(shards, complete, strict=True)
                if results is None
                for image in shard.images
            ),
            ahead=_AHEAD_OF_WORKER * num_workers,
        )
        results_of_shards = [
            _write_shard(shard, encoded, progress_fn) if results is None else results
            for shard, results in zip(shards, complete, strict=True)
        ]
    conversion = _merged(results_of_shards, assigned)
    try:
        checks.check_conversion(
            conversion.images, conversion.events, annotated=annotated.images
        )
    except errors.UserError:
        shard_progress.abort(shards)
        raise
    # Before the files change: the index of an earlier conversion may pass for theirs.
    record_index.remove(shards[0].path)
    shard_progress.commit(shards)
    record_index.write(_record_sizes(shards, results_of_shards))
    if not keep_progress:
        shard_progress.clear(output_dir, split)
    return conversion


def summary(conversion: Conversion) -> str:
    """Returns a table of the counts, with the first locations of each kind."""
    lines = []
    # Rows of 0 would hide the others.
    counts = {kind: count for kind, count in conversion.counts.items() if count}
    for kind, count in sorted(counts.items()):
        locations = [e.location for e in conversion.events if e.kind == kind]
        named = "; ".join(locations[:_NUM_NAMED])
        more = "; ..." if len(locations) > _NUM_NAMED else ""
        lines.append(f"{count:10,d}  {kind:40s} {named}{more}".rstrip())
    return "\n".join(lines)


def assign_to_shards(
    images: Sequence[annotations.AnnotatedImage], num_shards: int
) -> list[list[int]]:
    """Returns the indexes of each shard's images.

    The images are distributed in turn, in the order of a hash of their names. The order
    of the names themselves often follows class or time, and batches of similar images
    train badly.

    Args:
      images: The annotated images. The same names give the same shards.
      num_shards: The number of record files.
    """

    def digest(index: int) -> bytes:
        name = images[index].file_name.encode("utf-8", "surrogatepass")
        return hashlib.sha256(name).digest()

    order = sorted(range(len(images)), key=digest)
    return [order[first::num_shards] for first in range(num_shards)]


def convert_image(
    image: annotations.AnnotatedImage, images_dir: str, names: dict[int, str]
) -> tuple[Conversion, bytes | None]:
    """Reads, checks and serializes one image.

    Args:
      image: The annotated image.
      images_dir: The folder to which its file name is relative.
      names: The category names by id.

    Returns:
      The conversion of this image, and the serialized tf.train.Example, or None if the
      image was left out.
    """
    if not _is_inside(image.file_name):
        return _left_out(image, checks.OUTSIDE_FOLDER)
    try:
        with tf.io.gfile.GFile(os.path.join(images_dir, image.file_name), "rb") as file:
            encoded = file.read()
    except tf.errors.NotFoundError:
        return _left_out(image, annotations.MISSING_IMAGE)
    except (tf.errors.OpError, UnicodeError) as error:
        return _left_out(image, image_decoding.UNREADABLE, str(error))
    try:
        stored = image_decoding.prepare(encoded)
    except image_decoding.UnusableError as error:
        return _left_out(image, error.kind, str(error))
    size = (stored.height, stored.width)
    events = [annotations.ConversionEvent(c, image.file_name) for c in stored.changes]
    annotated_size = (image.height, image.width)
    if all(annotated_size) and annotated_size != size:
        if not stored.has_swapped_sides or annotated_size != size[::-1]:
            height, width = annotated_size
            detail = f"{width} x {height} annotated, is {size[1]} x {size[0]}"
            return _left_out(image, checks.OTHER_SIZE, detail)
        image = image._replace(
            objects=box_cleaning.rotate_boxes_for_exif(image.objects, stored)
        )
        events.append(annotations.ConversionEvent(_ROTATED_BOXES, image.file_name))
    objects, box_events = box_cleaning.clip_and_filter_boxes(image, stored)
    events += box_events
    if len(objects) > _MAX_BOXES:
        events.append(
            annotations.ConversionEvent(_CROWDED, image.file_name, f"{len(objects)}")
        )
    converted = image._replace(
        height=size[0], width=size[1], objects=objects, is_norm=False
    )
    serialized = tf_example.encode(
        converted, stored.encoded, image_format=stored.image_format, names=names
    )
    return Conversion([converted], events), serialized


def _is_inside(path: str) -> bool:
    """Returns whether a path, relative to a folder, stays in it."""
    if not path or path.startswith("/") or "://" in path or "\0" in path:
        return False
    return ".." not in path.replace("\\", "/").split("/")


def _make_shards(
    images: list[annotations.AnnotatedImage],
    assigned: list[list[int]],
    names: dict[int, str],
    prefix: str,
) -> list[shard_progress.Shard]:
    return [
        shard_progress.make_shard(
            record_files.file_name(prefix, number, len(assigned)),
            [images[index] for index in indexes],
            names,
        )
        for number, indexes in enumerate(assigned)
    ]


def _left_out(
    image: annotations.AnnotatedImage, kind: str, detail: str = ""
) -> tuple[Conversion, None]:
    source = f"annotated in {image.source}" if image.source else ""
    detail = "; ".join(filter(None, (detail, source)))
    event = annotations.ConversionEvent(kind, image.file_name, detail)
    return Conversion([], [event]), None


def _encode(
    image: annotations.AnnotatedImage, *, images_dir: str, names: dict[int, str]
) -> _Encoded:
    # Before the image is read, so that a later change of the file is detected.
    fingerprint = _fingerprint(image, images_dir)
    conversion, serialized = convert_image(image, images_dir, names)
    stored = conversion.images[0] if conversion.images else None
    record_bytes = len(serialized) + record_files.FRAME_BYTES if serialized else 0
    result = shard_progress.ImageResult(
        stored, tuple(conversion.events), fingerprint, record_bytes
    )
    return _Encoded(result, serialized)


def _fingerprint(
    image: annotations.AnnotatedImage, images_dir: str
) -> shard_progress.FileFingerprint | None:
    if not _is_inside(image.file_name):
        return None
    try:
        stat = tf.io.gfile.stat(os.path.join(images_dir, image.file_name))
    except (tf.errors.OpError, UnicodeError):
        return None
    return shard_progress.FileFingerprint(stat.length, stat.mtime_nsec)


def _write_shard(
    shard: shard_progress.Shard,
    encoded: Iterator[_Encoded],
    progress_fn: Callable[[], object],
) -> list[shard_progress.ImageResult]:
    """Writes the next images as one shard; returns their results."""
    # An older progress file must not mark an incomplete shard as complete.
    shard_progress.remove(shard.state_path)
    results = []
    with tf.io.TFRecordWriter(shard.temporary_path) as writer:
        for result, serialized in itertools.islice(encoded, len(shard.images)):
            if serialized is not None:
                writer.write(serialized)
            results.append(result)
            progress_fn()
    shard_progress.write(shard, results)
    return results


def _record_sizes(
    shards: Sequence[shard_progress.Shard],
    results_of_shards: Sequence[Sequence[shard_progress.ImageResult]],
) -> dict[str, list[int]]:
    """Returns the sizes of the records of each file, by path."""
    return {
        shard.path: [r.record_bytes for r in results if r.image is not None]
        for shard, results in zip(shards, results_of_shards, strict=True)
    }


def _merged(
    results_of_shards: list[list[shard_progress.ImageResult]],
    assigned: list[list[int]],
) -> Conversion:
    """Returns the results of all shards in the order of the images."""
    indexes = itertools.chain.from_iterable(assigned)
    results = itertools.chain.from_iterable(results_of_shards)
    by_index = dict(zip(indexes, results, strict=True))
    ordered = [by_index[index] for index in sorted(by_index)]
    return Conversion(
        [result.image for result in ordered if result.image is not None],
        [event for result in ordered for event in result.events],
    )
