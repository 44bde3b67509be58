"""One contender of tools/benchmarks/input.py: the TensorFlow Model Garden's RetinaNet.

  /its/environment/bin/python model_garden_input.py SETTING_AS_JSON

Its own task builds the dataset from its own experiment `retinanet_resnetfpn_coco`; only
the paths, sizes and the augmentation are those of the setting. Needs an environment of
its own with `pip install tf-models-official==2.20.*`.
"""

import json
import os
import sys
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import stopwatch
import tensorflow as tf

try:
    from official.core import exp_factory
    from official.vision.configs import retinanet as _  # noqa: F401 - registers itself.
    from official.vision.tasks import retinanet
except ImportError as error:
    sys.exit(f"error: {error}; run: pip install 'tf-models-official==2.20.*'")


def batches(setting: dict[str, Any]) -> tf.data.Dataset:
    """Returns its endless batches of float images and targets for all anchors."""
    task = exp_factory.get_exp_config("retinanet_resnetfpn_coco").task
    task.model.input_size = [*setting["image_size"], 3]
    data = task.train_data
    data.input_path = f"{setting['data_dir']}/{setting['split']}-*.tfrecord"
    data.global_batch_size = setting["batch_size"]
    data.shuffle_buffer_size = setting["shuffle_buffer"]
    # As ours: the same order every time.
    data.seed, data.deterministic = 0, True
    data.parser.aug_scale_min, data.parser.aug_scale_max = setting["scale_jitter"]
    data.parser.aug_rand_hflip = setting["flip"]
    data.parser.max_num_instances = setting["max_boxes"]
    return retinanet.RetinaNetTask(task).build_inputs(data)


if __name__ == "__main__":
    _setting = json.loads(sys.argv[1])
    stopwatch.report(batches(_setting), _setting)
