"""Runs one candidate of tools/benchmarks/input.py: Model Garden's RetinaNet.

  /its/environment/bin/python model_garden_input.py SETTING_AS_JSON

Model Garden's own task builds the dataset from its own experiment
`retinanet_resnetfpn_coco`. Only the paths, the sizes and the augmentation are replaced
by those of the setting. It needs an environment of its own with
`pip install tf-models-official==2.20.*`.
"""

import json
import os
import sys
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import tensorflow as tf
import timer

try:
    from official.core import exp_factory
    from official.vision.configs import retinanet as _  # noqa: F401 - registers itself.
    from official.vision.tasks import retinanet
except ImportError as error:
    sys.exit(f"error: {error}; run: pip install 'tf-models-official==2.20.*'")


def batches(setting: dict[str, Any]) -> tf.data.Dataset:
    """Returns endless batches of float images and the targets of all anchors.

    Args:
      setting: The setting, as written by tools/benchmarks/input.py.
    """
    task = exp_factory.get_exp_config("retinanet_resnetfpn_coco").task
    task.model.input_size = [*setting["image_size"], 3]
    data = task.train_data
    data.input_path = f"{setting['data_dir']}/{setting['split']}-*.tfrecord"
    data.global_batch_size = setting["batch_size"]
    data.shuffle_buffer_size = setting["shuffle_buffer"]
    # Our pipeline is deterministic too.
    data.seed = 0
    data.deterministic = True
    data.parser.aug_scale_min, data.parser.aug_scale_max = setting["scale_jitter"]
    data.parser.aug_rand_hflip = setting["flip"]
    data.parser.max_num_instances = setting["max_boxes"]
    return retinanet.RetinaNetTask(task).build_inputs(data)


if __name__ == "__main__":
    _setting = json.loads(sys.argv[1])
    timer.report(batches(_setting), _setting)
