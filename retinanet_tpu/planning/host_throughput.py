"""The throughput of this machine's input pipeline, on synthetic images."""

import io
import tempfile
import time

import numpy as np
import PIL.Image
import tensorflow as tf

from retinanet_tpu.data import (
    annotations,
    category_map,
    pipeline,
    record_files,
    record_order,
    tf_example,
)
from retinanet_tpu.task.run import Run

_NUM_IMAGES, _HEIGHT, _WIDTH = 16, 480, 640
_CATEGORY_ID, _CATEGORY_NAME = 1, "thing"
_BATCH_SIZE = 16
_SPLIT = "synthetic"


def images_per_core_sec(run: Run, num_images: int = 320) -> dict[str, float]:
    """Returns the rates of the input pipelines, images per second of CPU time.

    The run's own pipelines read, decode and resize JPEGs of 640 x 480 px and about
    150 kB, as COCO's are. The time is the CPU time of this process, so the rates are
    valid on a busy machine; the process must do nothing else.

    Args:
      run: The run, with its image size and augmentation.
      num_images: The number of images to measure with, rounded down to whole batches.
    Returns:
      The rates of "train" and "eval".
    """
    with tempfile.TemporaryDirectory() as data_dir:
        _write_records(data_dir)
        datasets = {
            "train": _dataset(run, data_dir, is_training=True),
            "eval": _dataset(run, data_dir, is_training=False),
        }
        return {name: _rate(data, num_images) for name, data in datasets.items()}


def _rate(dataset: tf.data.Dataset, num_images: int) -> float:
    num_batches = num_images // _BATCH_SIZE
    for _ in dataset.take(4):  # Starts threads and fills caches.
        pass
    start = time.process_time()
    for _ in dataset.take(num_batches):
        pass
    return num_batches * _BATCH_SIZE / (time.process_time() - start)


def _dataset(run: Run, data_dir: str, *, is_training: bool) -> tf.data.Dataset:
    spec = pipeline.DatasetSpec(
        data_dir,
        _SPLIT,
        categories=category_map.from_coco(
            [{"id": _CATEGORY_ID, "name": _CATEGORY_NAME}]
        ),
        image_size=run.recipe.image_size,
        max_boxes=run.data.max_boxes,
        keep_aspect_ratio=run.recipe.keep_aspect_ratio,
    )
    if not is_training:
        return pipeline.make_eval_dataset(spec, batch_size=_BATCH_SIZE).repeat()
    return pipeline.make_train_dataset(
        spec,
        batch_size=_BATCH_SIZE,
        augmentation=run.data.augmentation,
        read_options=record_order.ReadOptions(shuffle_buffer=_NUM_IMAGES),
    )


def _write_records(data_dir: str) -> None:
    rng = np.random.default_rng(0)
    path = f"{data_dir}/{record_files.file_name(_SPLIT, 0, 1)}"
    names = {_CATEGORY_ID: _CATEGORY_NAME}
    with tf.io.TFRecordWriter(path) as writer:
        for image_id in range(_NUM_IMAGES):
            image = annotations.AnnotatedImage(
                image_id, f"{image_id}.jpg", _HEIGHT, _WIDTH, _objects(rng)
            )
            writer.write(
                tf_example.encode(image, _jpeg(rng), image_format="jpeg", names=names)
            )


def _objects(
    rng: np.random.Generator, count: int = 8
) -> tuple[annotations.AnnotatedObject, ...]:
    """Returns random boxes; COCO has 7 per image."""
    objects = []
    for number in range(count):
        width, height = rng.uniform(16, 200, 2)
        left = rng.uniform(0, _WIDTH - width)
        top = rng.uniform(0, _HEIGHT - height)
        box = (left, top, width, height)
        objects.append(
            annotations.AnnotatedObject(
                number, _CATEGORY_ID, box, width * height, False
            )
        )
    return tuple(objects)


def _jpeg(rng: np.random.Generator) -> bytes:
    """Returns a JPEG of noise with as much detail as a camera image."""
    pixels = np.full([_HEIGHT, _WIDTH, 3], 128.0)
    for cell, contrast in ((80, 40.0), (20, 20.0), (4, 14.0), (1, 12.0)):
        shape = (_WIDTH // cell, _HEIGHT // cell)
        for channel in range(3):
            noise = rng.normal(scale=contrast, size=shape[::-1]).astype(np.float32)
            octave = PIL.Image.fromarray(noise).resize((_WIDTH, _HEIGHT))
            pixels[..., channel] += np.asarray(octave)
    file = io.BytesIO()
    image = PIL.Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    image.save(file, "JPEG", quality=90)
    return file.getvalue()
