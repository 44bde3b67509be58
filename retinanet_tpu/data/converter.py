"""Writes annotated pictures as record files, mending what can be mended."""

import collections
import concurrent.futures
import io
import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import tensorflow as tf

from retinanet_tpu.data import annotations, record_files, tf_example

# COCO's own boxes exceed the picture by rounding; clipping those would change its AP.
EDGE_TOLERANCE = 0.5
# What the TensorFlow decoders of the input pipeline read.
_STORED_FORMATS = ("JPEG", "PNG")
_JPEG_QUALITY = 95


class Conversion(NamedTuple):
    """What became of a set of images."""

    images: list[annotations.AnnotatedImage]  # as stored, the pictures' true sizes
    counts: collections.Counter  # what happened -> how often
    affected: dict[str, list[str]]  # what happened -> files, where a person should look


def write_shards(
    annotated: annotations.AnnotatedSet,
    *,
    images_dir: str,
    output_dir: str,
    split: str,
    num_shards: int,
    num_workers: int = 1,
    progress_fn: Callable[[], None] = lambda: None,
) -> Conversion:
    """Writes a split's record files, the same bytes whatever the number of workers.

    Image i goes to shard i modulo num_shards. Files get their names when all are
    written. The workers are threads: reading, decoding and compressing leave Python.

    Args:
      annotated: images and categories.
      images_dir: what the images' file names are relative to.
      output_dir: the data directory, made if absent.
      split: first part of the files' names.
      num_shards: number of files.
      num_workers: images converted at once.
      progress_fn: called after each image.

    Returns:
      The images that were stored, in the order given, and what happened.

    Raises:
      ValueError: no image could be stored; nothing is left behind.
    """
    tf.io.gfile.makedirs(output_dir)
    names = {category["id"]: category["name"] for category in annotated.categories}
    names_of_files = [
        os.path.join(output_dir, record_files.file_name(split, index, num_shards))
        for index in range(num_shards)
    ]

    def write_shard(index: int) -> list[Conversion]:
        with tf.io.TFRecordWriter(names_of_files[index] + ".tmp") as writer:
            results = []
            for image in annotated.images[index::num_shards]:
                result, serialized = convert_image(image, images_dir, names)
                if serialized is not None:
                    writer.write(serialized)
                results.append(result)
                progress_fn()
        return results

    with concurrent.futures.ThreadPoolExecutor(num_workers) as workers:
        shards = list(workers.map(write_shard, range(num_shards)))
    merged = _merged(
        shards[position % num_shards][position // num_shards]
        for position in range(len(annotated.images))
    )
    for name in names_of_files:
        if merged.images:
            tf.io.gfile.rename(name + ".tmp", name, overwrite=True)
        else:
            tf.io.gfile.remove(name + ".tmp")
    if not merged.images:
        raise ValueError(
            f"None of the {len(annotated.images)} images could be stored, such as "
            f"{annotated.images[0].file_name} in {images_dir}; check --images."
        )
    return merged


def convert_image(
    image: annotations.AnnotatedImage, images_dir: str, names: dict[int, str]
) -> tuple[Conversion, bytes | None]:
    """Reads and checks one picture and serializes it.

    Args:
      image: as annotated.
      images_dir: what its file name is relative to.
      names: category id -> name.

    Returns:
      What happened, and the serialized tf.train.Example or None if it was left out.
    """
    counts = collections.Counter()
    try:
        with tf.io.gfile.GFile(os.path.join(images_dir, image.file_name), "rb") as file:
            encoded = file.read()
    except tf.errors.OpError:
        return _left_out(image, "images missing on disk")
    try:
        encoded, image_format, changes = _storable(encoded, image)
        counts.update(changes)
        # The decoder of the input pipeline: what passes here passes there.
        pixels = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    except (
        OSError,
        ValueError,
        SyntaxError,
        PIL.Image.DecompressionBombError,
        tf.errors.InvalidArgumentError,
    ):
        return _left_out(image, "images unreadable")
    height, width = pixels.shape[:2]
    if image.height and (height, width) != (image.height, image.width):
        counts["images of another size than annotated"] += 1
    affected = {what: [image.file_name] for what in counts}
    objects = tuple(_mended(image.objects, height, width, counts))
    stored = image._replace(height=height, width=width, objects=objects)
    counts["images stored"] += 1
    counts["images without boxes"] += not objects
    counts["images with more than 100 boxes"] += len(objects) > 100
    counts["boxes stored"] += len(objects)
    counts["boxes of crowds"] += sum(o.is_crowd for o in objects)
    serialized = tf_example.encode(
        stored, encoded, image_format=image_format, names=names
    )
    return Conversion([stored], counts, affected), serialized


def _storable(
    encoded: bytes, image: annotations.AnnotatedImage
) -> tuple[bytes, str, list[str]]:
    """Returns the picture as JPEG or PNG bytes, upright, and what was changed."""
    with PIL.Image.open(io.BytesIO(encoded)) as picture:
        is_upright = picture.getexif().get(PIL.ExifTags.Base.Orientation, 1) == 1
        # Transposing decodes the whole picture, so only where there is a rotation.
        upright = picture if is_upright else PIL.ImageOps.exif_transpose(picture)
        annotated_size = (image.width, image.height)
        # Cameras store a rotation that annotation tools obey and decoders do not.
        is_turned = picture.size != annotated_size and upright.size == annotated_size
        if picture.format in _STORED_FORMATS and not is_turned:
            return encoded, picture.format.lower(), []
        stored = io.BytesIO()
        if picture.format == "JPEG":
            upright.convert("RGB").save(stored, "JPEG", quality=_JPEG_QUALITY)
            return stored.getvalue(), "jpeg", ["images turned upright (EXIF)"]
        (upright if is_turned else picture).convert("RGB").save(stored, "PNG")
        return (
            stored.getvalue(),
            "png",
            [f"images stored as PNG, were {picture.format}"],
        )


def _mended(objects, height: int, width: int, counts: collections.Counter):
    """Yields the objects with boxes clipped to the picture, less those without area."""
    for item in objects:
        left, top, box_width, box_height = item.box_xywh
        right, bottom = left + box_width, top + box_height
        overshoot = max(-left, -top, right - width, bottom - height)
        if overshoot > EDGE_TOLERANCE:
            left, right = (min(max(x, 0.0), float(width)) for x in (left, right))
            top, bottom = (min(max(y, 0.0), float(height)) for y in (top, bottom))
        # `not >` so that a NaN is dropped too.
        if not (right > left and bottom > top):
            counts["boxes without area, dropped"] += 1
            continue
        if overshoot > EDGE_TOLERANCE:
            counts["boxes beyond the edge, clipped"] += 1
            box = (left, top, right - left, bottom - top)
            item = item._replace(box_xywh=box, area=min(item.area, box[2] * box[3]))
        yield item


def _left_out(
    image: annotations.AnnotatedImage, reason: str
) -> tuple[Conversion, None]:
    counts = collections.Counter([reason])
    return Conversion([], counts, {reason: [image.file_name]}), None


def _merged(conversions: Iterable[Conversion]) -> Conversion:
    images, counts = [], collections.Counter()
    affected = collections.defaultdict(list)
    for conversion in conversions:
        images += conversion.images
        counts.update(conversion.counts)
        for what, files in conversion.affected.items():
            affected[what] += files
    return Conversion(images, counts, dict(affected))
