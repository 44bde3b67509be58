"""How fast this machine's input pipeline is, on images made up for the purpose."""

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
from retinanet_tpu.task import experiment

_NUM_PICTURES, _HEIGHT, _WIDTH = 16, 480, 640
_CATEGORY = {"id": 1, "name": "thing"}
_BATCH_SIZE = 16
_SPLIT = "made_up"


def images_per_core_sec(run: experiment.Run, num_images: int = 320) -> dict[str, float]:
    """Returns the images that a core delivers in a second of its time.

    The run's own pipelines read, decode and resize JPEGs of 640 x 480 px and about
    150 kB, as COCO's are. Time is that of the process on all cores, so the figures hold
    on a machine that is busy otherwise; nothing else may go on in this process.

    Args:
      run: says the image size and the augmentation.
      num_images: to measure with, rounded down to whole batches.
    Returns:
      From "train" and "eval" to the rate.
    """
    with tempfile.TemporaryDirectory() as data_dir:
        _write_records(data_dir)
        datasets = {
            "train": _dataset(run, data_dir, is_training=True),
            "eval": _dataset(run, data_dir, is_training=False),
        }
        return {name: _rate(data, num_images) for name, data in datasets.items()}


def _rate(dataset, num_images):
    num_batches = num_images // _BATCH_SIZE
    for _ in dataset.take(4):  # Starts threads and fills caches.
        pass
    start = time.process_time()
    for _ in dataset.take(num_batches):
        pass
    return num_batches * _BATCH_SIZE / (time.process_time() - start)


def _dataset(run, data_dir, *, is_training):
    spec = pipeline.DatasetSpec(
        data_dir,
        _SPLIT,
        categories=category_map.from_coco([_CATEGORY]),
        image_size=run.recipe.image_size,
        max_boxes=run.data.max_boxes,
    )
    if not is_training:
        return pipeline.make_eval_dataset(spec, batch_size=_BATCH_SIZE).repeat()
    return pipeline.make_train_dataset(
        spec,
        batch_size=_BATCH_SIZE,
        augmentation=run.data.augmentation,
        read_options=record_order.ReadOptions(shuffle_buffer=_NUM_PICTURES),
    )


def _write_records(data_dir):
    rng = np.random.default_rng(0)
    path = f"{data_dir}/{record_files.file_name(_SPLIT, 0, 1)}"
    with tf.io.TFRecordWriter(path) as writer:
        for image_id in range(_NUM_PICTURES):
            image = annotations.AnnotatedImage(
                image_id, f"{image_id}.jpg", _HEIGHT, _WIDTH, _objects(rng)
            )
            names = {_CATEGORY["id"]: _CATEGORY["name"]}
            writer.write(
                tf_example.encode(image, _jpeg(rng), image_format="jpeg", names=names)
            )


def _objects(rng, count=8):
    """Returns boxes that lie anywhere in the image; COCO has 7 an image."""
    found = []
    for number in range(count):
        width, height = rng.uniform(16, 200, 2)
        left = rng.uniform(0, _WIDTH - width)
        top = rng.uniform(0, _HEIGHT - height)
        box = (left, top, width, height)
        found.append(
            annotations.AnnotatedObject(
                number, _CATEGORY["id"], box, width * height, False
            )
        )
    return tuple(found)


def _jpeg(rng):
    """Returns the file of an image as rich in detail as an image."""
    pixels = np.full([_HEIGHT, _WIDTH, 3], 128.0)
    for cell, contrast in ((80, 40.0), (20, 20.0), (4, 14.0), (1, 12.0)):
        shape = (_WIDTH // cell, _HEIGHT // cell)
        for channel in range(3):
            noise = rng.normal(scale=contrast, size=shape[::-1]).astype(np.float32)
            octave = PIL.Image.fromarray(noise).resize((_WIDTH, _HEIGHT))
            pixels[..., channel] += np.asarray(octave)
    file = io.BytesIO()
    picture = PIL.Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()
