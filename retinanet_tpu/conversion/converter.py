"""Writes annotated images as record files, mending what can be mended."""

import collections
import concurrent.futures
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from retinanet_tpu import look_ahead
from retinanet_tpu.conversion import box_cleaning, checks, shard_progress
from retinanet_tpu.data import annotations, image_decoding, record_files, tf_example

# Images that are converted ahead of the one to be written: enough for no worker to
# wait for a slow one, few enough to hold in memory.
_AHEAD_OF_WORKER = 4
_OUTSIDE_FOLDER = "images whose path leaves the folder, left out"
_NAMED_PLACES = 3  # How many places a line of the summary names.
_MAX_BOXES = 100  # The default of Data.max_boxes, beyond which training drops some.
_CROWDED = f"images with more than {_MAX_BOXES} boxes"
_TURNED_BOXES = "boxes turned with their image (EXIF)"


class Conversion(NamedTuple):
    """What became of a set of images."""

    images: list[annotations.AnnotatedImage]  # as stored, the images' true sizes
    events: list[annotations.ConversionEvent]  # where a person should look

    @property
    def counts(self) -> collections.Counter:
        """Returns what happened -> how often."""
        objects = [item for image in self.images for item in image.objects]
        counts = collections.Counter(finding.kind for finding in self.events)
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
    progress_fn: Callable[[], Any] = lambda: None,
    keeps_states: bool = False,
) -> Conversion:
    """Writes a split's record files, the same bytes whatever the number of workers.

    `deal` says which images are in which shard. Files get their names when all are
    written; until then those that are whole are kept for another start of the same
    conversion, which writes only the others.

    Args:
      annotated: images and categories.
      images_dir: what the images' file names are relative to.
      output_dir: the data directory, made if absent.
      split: first part of the files' names.
      num_shards: number of files.
      num_workers: images converted at once. They are threads: reading, decoding and
        compressing leave Python, and TensorFlow is in memory once.
      progress_fn: called after each image.
      keeps_states: leaves what tells another start that the files are whole, until
        `shard_states.forget`.

    Returns:
      The images that were stored, in the order given, and what happened.

    Raises:
      ValueError: no image could be stored, what was stored is of no use to training,
        or records cannot hold an image id; nothing is left behind.
    """
    for image in annotated.images:
        tf_example.check_image_id(image)
    tf.io.gfile.makedirs(output_dir)
    names = {category["id"]: category["name"] for category in annotated.categories}
    prefix = os.path.join(output_dir, split)
    dealt = deal(annotated.images, num_shards)
    shards = _make_shards(annotated.images, dealt, names, prefix)
    with concurrent.futures.ThreadPoolExecutor(num_workers) as workers:
        stamp_fn = functools.partial(_stamp, images_dir=images_dir)

        def stamps_fn(images):
            return list(workers.map(stamp_fn, images))

        outcomes = [shard_progress.read(shard, stamps_fn) for shard in shards]
        # One shard after another, so that a kill costs one and not one a worker.
        todo = [i for i, outcome in enumerate(outcomes) if outcome is None]
        for outcome in outcomes:
            for _ in outcome or ():
                progress_fn()
        results = look_ahead.map_ordered(
            workers,
            functools.partial(_convert, images_dir=images_dir, names=names),
            (image for index in todo for image in shards[index].images),
            ahead=_AHEAD_OF_WORKER * num_workers,
        )
        for index in todo:
            outcomes[index] = _write_shard(shards[index], results, progress_fn)
    conversion = _merged(outcomes, dealt)
    try:
        checks.check_conversion(*conversion, annotated=annotated.images)
    except ValueError:
        shard_progress.abort(shards)
        raise
    shard_progress.commit(shards)
    if not keeps_states:
        shard_progress.clear(output_dir, split)
    return conversion


def summary(conversion: Conversion) -> str:
    """Returns a table of what happened, with the places that need a look."""
    lines = []
    # Rows of 0 would hide those that matter.
    counts = {what: count for what, count in conversion.counts.items() if count}
    for what, count in sorted(counts.items()):
        places = [f.location for f in conversion.events if f.kind == what]
        named = "; ".join(places[:_NAMED_PLACES])
        more = "; ..." if len(places) > _NAMED_PLACES else ""
        lines.append(f"{count:10,d}  {what:40s} {named}{more}".rstrip())
    return "\n".join(lines)


def deal(
    images: Sequence[annotations.AnnotatedImage], num_shards: int
) -> list[list[int]]:
    """Returns the images of each shard, by their places in `images`.

    They are dealt in turn in the order of a hash of their names. Names often sort by
    class or time, and batches of similar images train badly.

    Args:
      images: As annotated. The same names give the same shards.
      num_shards: number of files.
    """

    def digest(place: int) -> bytes:
        name = images[place].file_name.encode("utf-8", "surrogatepass")
        return hashlib.sha256(name).digest()

    order = sorted(range(len(images)), key=digest)
    return [order[index::num_shards] for index in range(num_shards)]


def convert_image(
    image: annotations.AnnotatedImage, images_dir: str, names: dict[int, str]
) -> tuple[Conversion, bytes | None]:
    """Reads and checks one image and serializes it.

    Args:
      image: as annotated.
      images_dir: what its file name is relative to.
      names: category id -> name.

    Returns:
      What happened, and the serialized tf.train.Example or None if it was left out.
    """
    if not _is_inside(image.file_name):
        return _left_out(image, _OUTSIDE_FOLDER)
    try:
        with tf.io.gfile.GFile(os.path.join(images_dir, image.file_name), "rb") as file:
            encoded = file.read()
    except tf.errors.NotFoundError:
        return _left_out(image, annotations.MISSING_IMAGE)
    except (tf.errors.OpError, UnicodeError) as error:
        return _left_out(image, image_decoding.UNREADABLE, str(error))
    try:
        picture = image_decoding.prepare(encoded)
    except image_decoding.UnusableError as error:
        return _left_out(image, error.kind, str(error))
    size = (picture.height, picture.width)
    findings = [
        annotations.ConversionEvent(c, image.file_name) for c in picture.changes
    ]
    annotated_size = (image.height, image.width)
    if all(annotated_size) and annotated_size != size:
        if not picture.has_swapped_sides or annotated_size != size[::-1]:
            height, width = annotated_size
            detail = f"{width} x {height} annotated, is {size[1]} x {size[0]}"
            return _left_out(image, checks.OTHER_SIZE, detail)
        image = image._replace(
            objects=box_cleaning.rotate_boxes_for_exif(image.objects, picture)
        )
        findings.append(annotations.ConversionEvent(_TURNED_BOXES, image.file_name))
    objects = tuple(box_cleaning.clip_and_filter_boxes(image, picture, findings))
    if len(objects) > _MAX_BOXES:
        findings.append(
            annotations.ConversionEvent(_CROWDED, image.file_name, f"{len(objects)}")
        )
    stored = image._replace(
        height=size[0], width=size[1], objects=objects, is_norm=False
    )
    serialized = tf_example.encode(
        stored, picture.encoded, image_format=picture.image_format, names=names
    )
    return Conversion([stored], findings), serialized


def _is_inside(path: str) -> bool:
    """Returns whether a path, relative to a folder, stays in it."""
    if not path or path.startswith("/") or "://" in path or "\0" in path:
        return False
    return ".." not in path.replace("\\", "/").split("/")


def _make_shards(
    images: list[annotations.AnnotatedImage],
    dealt: list[list[int]],
    names: dict[int, str],
    prefix: str,
) -> list[shard_progress.Shard]:
    return [
        shard_progress.make_shard(
            record_files.file_name(prefix, index, len(dealt)),
            [images[place] for place in places],
            names,
        )
        for index, places in enumerate(dealt)
    ]


def _left_out(
    image: annotations.AnnotatedImage, reason: str, detail: str = ""
) -> tuple[Conversion, None]:
    source = f"annotated in {image.source}" if image.source else ""
    detail = "; ".join(filter(None, (detail, source)))
    return Conversion(
        [], [annotations.ConversionEvent(reason, image.file_name, detail)]
    ), None


def _convert(
    image: annotations.AnnotatedImage, *, images_dir: str, names: dict[int, str]
) -> tuple[shard_progress.ImageResult, bytes | None]:
    # Before the image is read: a change in between must show.
    stamp = _stamp(image, images_dir)
    conversion, serialized = convert_image(image, images_dir, names)
    stored = conversion.images[0] if conversion.images else None
    outcome = shard_progress.ImageResult(stored, tuple(conversion.events), stamp)
    return outcome, serialized


def _stamp(
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
    shard: shard_progress.Shard, results: Iterator[Any], progress_fn: Callable[[], Any]
) -> list[shard_progress.ImageResult]:
    # Else an older note could vouch for what is only half written.
    shard_progress.remove(shard.state_path)
    outcomes = []
    with tf.io.TFRecordWriter(shard.temporary_path) as writer:
        for outcome, serialized in itertools.islice(results, len(shard.images)):
            if serialized is not None:
                writer.write(serialized)
            outcomes.append(outcome)
            progress_fn()
    shard_progress.write(shard, outcomes)
    return outcomes


def _merged(
    shards: list[list[shard_progress.ImageResult]], dealt: list[list[int]]
) -> Conversion:
    """Puts the outcomes of all shards in the order of the images."""
    places = itertools.chain.from_iterable(dealt)
    by_place = dict(zip(places, itertools.chain.from_iterable(shards), strict=True))
    ordered = [by_place[place] for place in sorted(by_place)]
    return Conversion(
        [outcome.image for outcome in ordered if outcome.image is not None],
        [finding for outcome in ordered for finding in outcome.events],
    )
