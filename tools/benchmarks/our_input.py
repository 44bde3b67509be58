"""One contender of tools/benchmarks/input.py: our pipeline, or a part of it.

  python our_input.py CONTENDER SETTING_AS_JSON

The last line that it prints is its measurement, in JSON.
"""

import retinanet_tpu.startup.cpu

import json
import sys
from typing import Any

import stopwatch
import tensorflow as tf

from retinanet_tpu.data import (
    category_map,
    examples,
    pipeline,
    record_files,
    record_order,
    tf_example,
    transforms,
)

# Parts work on images in memory; this many are enough to be unlike each other.
_MAX_PICTURES = 1000


def batches(contender: str, setting: dict[str, Any]) -> tf.data.Dataset:
    """Returns the endless batches of a contender.

    Args:
      contender: "pipeline" is all of it. The others start from JPEGs in memory:
        "decode" decodes them whole, "crop" only what training shows of them, and
        "resize" also resizes that.
      setting: as tools/benchmarks/input.py writes it.
    """
    if contender == "pipeline":
        return _pipeline(setting)
    draws = tf.random.stateless_uniform([_MAX_PICTURES, 4], [0, 0])
    pictures = tf.data.Dataset.from_tensor_slices(_pictures(setting))
    pictures = pictures.cache().repeat()
    windows = tf.data.Dataset.from_tensor_slices(draws).repeat()
    parts = {"decode": _decode, "crop": _crop, "resize": _resize}
    load = parts[contender]

    def corner(encoded, draws):  # One pixel: nothing is copied into a batch.
        return load(encoded, lambda size: _window(size, draws, setting))[0, 0]

    corners = tf.data.Dataset.zip(pictures, windows).map(
        corner, num_parallel_calls=tf.data.AUTOTUNE
    )
    return corners.batch(setting["batch_size"]).prefetch(tf.data.AUTOTUNE)


def _pipeline(setting):
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


def _pictures(setting):
    files = record_files.find(setting["data_dir"], setting["split"])
    records = tf.data.TFRecordDataset(files).take(_MAX_PICTURES)
    return [tf_example.parse(record).encoded for record in records]


def _window(size, draws, setting):
    low, high = setting["scale_jitter"]
    return transforms.crop_window(
        size,
        tuple(setting["image_size"]),
        scale=low + draws[0] * (high - low),
        position=draws[1:3],
    )


def _decode(encoded, window_fn):
    del window_fn
    return tf.io.decode_jpeg(encoded, channels=3)


def _crop(encoded, window_fn):
    window = window_fn(tf.image.extract_jpeg_shape(encoded)[:2])
    corner_and_size = tf.concat([window.start, window.size], axis=0)
    return tf.image.decode_and_crop_jpeg(encoded, corner_and_size, channels=3)


def _resize(encoded, window_fn):
    return transforms.decode_and_resize(encoded, window_fn)[0]


if __name__ == "__main__":
    _setting = json.loads(sys.argv[2])
    stopwatch.report(batches(sys.argv[1], _setting), _setting)
