"""Runs one candidate of tools/benchmarks/input.py: our pipeline, or a part of it.

  python pipeline_worker.py CANDIDATE SETTING_AS_JSON

The last line of its output is the measurement in JSON.
"""

import retinanet_tpu.startup.cpu

import json
import sys
from collections.abc import Callable
from typing import Any

import large_images
import tensorflow as tf
import timer

from retinanet_tpu.data import (
    category_map,
    examples,
    pipeline,
    record_files,
    record_order,
    tf_example,
    transforms,
)

# The parts read images from memory; this number gives enough variety.
_MAX_IMAGES = 1000

WindowFn = Callable[[tf.Tensor], transforms.CropWindow]  # (height, width) -> window


def batches(candidate: str, setting: dict[str, Any]) -> tf.data.Dataset:
    """Returns the endless batches of a candidate.

    Args:
      candidate: "pipeline" is the whole input pipeline. The others read JPEGs from
        memory: "decode" decodes the whole image, "crop" decodes the crop window of
        training only, "reference" decodes the window at 1 / ratio and resizes it, and
        "resize" is the pipeline's own function for that, which returns uint8.
      setting: The setting, as written by tools/benchmarks/input.py.
    """
    if candidate == "pipeline":
        return _pipeline(setting)
    uniforms = tf.random.stateless_uniform([_MAX_IMAGES, 4], [0, 0])
    images = tf.data.Dataset.from_tensor_slices(_encoded_images(setting))
    images = images.cache().repeat()
    random_numbers = tf.data.Dataset.from_tensor_slices(uniforms).repeat()
    parts = {
        "decode": _decode,
        "crop": _crop,
        "reference": _reference,
        "resize": _resize,
    }
    load = parts[candidate]

    def corner(encoded: tf.Tensor, uniforms: tf.Tensor) -> tf.Tensor:
        # A single pixel, so that no time is spent on copying images into a batch.
        return load(encoded, lambda size: _window(size, uniforms, setting))[0, 0]

    corners = tf.data.Dataset.zip(images, random_numbers).map(
        corner, num_parallel_calls=tf.data.AUTOTUNE
    )
    return corners.batch(setting["batch_size"]).prefetch(tf.data.AUTOTUNE)


def _pipeline(setting: dict[str, Any]) -> tf.data.Dataset:
    data_dir = setting["data_dir"]
    spec = pipeline.DatasetSpec(
        data_dir,
        setting["split"],
        categories=category_map.read(f"{data_dir}/{category_map.FILE_NAME}"),
        image_size=tuple(setting["image_size"]),
        max_boxes=setting["max_boxes"],
    )
    return pipeline.make_train_dataset(
        spec,
        batch_size=setting["batch_size"],
        augmentation=examples.Augmentation(
            tuple(setting["scale_jitter"]), setting["flip"]
        ),
        read_options=record_order.ReadOptions(shuffle_buffer=setting["shuffle_buffer"]),
    )


def _encoded_images(setting: dict[str, Any]) -> list[tf.Tensor]:
    files = record_files.find(setting["data_dir"], setting["split"])
    records = tf.data.TFRecordDataset(files).take(_MAX_IMAGES)
    return [tf_example.parse(record).encoded for record in records]


def _window(
    size: tf.Tensor, uniforms: tf.Tensor, setting: dict[str, Any]
) -> transforms.CropWindow:
    low, high = setting["scale_jitter"]
    return transforms.crop_window(
        size,
        tuple(setting["image_size"]),
        scale=low + uniforms[0] * (high - low),
        position=uniforms[1:3],
    )


def _decode(encoded: tf.Tensor, window_fn: WindowFn) -> tf.Tensor:
    del window_fn
    return tf.io.decode_jpeg(encoded, channels=3)


def _crop(encoded: tf.Tensor, window_fn: WindowFn) -> tf.Tensor:
    window = window_fn(tf.image.extract_jpeg_shape(encoded)[:2])
    corner_and_size = tf.concat([window.start, window.size], axis=0)
    return tf.image.decode_and_crop_jpeg(encoded, corner_and_size, channels=3)


def _reference(encoded: tf.Tensor, window_fn: WindowFn) -> tf.Tensor:
    window = window_fn(tf.image.extract_jpeg_shape(encoded)[:2])
    return large_images.decode_and_resize_only(encoded, window)


def _resize(encoded: tf.Tensor, window_fn: WindowFn) -> tf.Tensor:
    return transforms.decode_and_resize(encoded, window_fn)[0]


if __name__ == "__main__":
    _setting = json.loads(sys.argv[2])
    timer.report(batches(sys.argv[1], _setting), _setting)
