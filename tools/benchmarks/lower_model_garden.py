"""Lowers Model Garden's RetinaNet training step to the HLO of one replica.

  /its/environment/bin/python lower_model_garden.py --output=model_garden_8.hlo \
      [--batch_size=8] [--image_size=640]

tools/benchmarks/step.py runs the output. Like our step, it also compiles for a TPU. The
experiment is Model Garden's own `retinanet_resnetfpn_coco`; only the image size is
changed. It has a ResNet-50, 91 classes, mixed bfloat16 and SGD. The script needs an
environment of its own with `pip install tf-models-official==2.20.*`.
"""

import argparse
import os
import pathlib
import sys
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import tensorflow as tf

try:
    import tf_keras
    from official.core import exp_factory
    from official.vision.configs import retinanet as _  # noqa: F401 - registers itself.
    from official.vision.tasks import retinanet
except ImportError as error:
    sys.exit(f"error: {error}; run: pip install 'tf-models-official==2.20.*'")


def batch_specs(
    task: Any, batch_size: int
) -> tuple[tf.TensorSpec, dict[str, tf.TensorSpec | dict[str, tf.TensorSpec]]]:
    """Returns the specs of a batch of the task's own parser.

    Args:
      task: The configuration of the task.
      batch_size: The number of images.

    Returns:
      The spec of the images, and the specs of the labels by name.
    """
    model = task.model
    size = model.input_size[0]
    per_cell = model.anchor.num_scales * len(model.anchor.aspect_ratios)
    levels = range(model.min_level, model.max_level + 1)
    cells = {str(level): -(-size // 2**level) for level in levels}
    num_anchors = per_cell * sum(side * side for side in cells.values())

    def spec(dtype: tf.DType, *shape: int) -> tf.TensorSpec:
        return tf.TensorSpec([batch_size, *shape], dtype)

    def maps(dtype: tf.DType, channels: int) -> dict[str, tf.TensorSpec]:
        return {
            level: spec(dtype, side, side, channels) for level, side in cells.items()
        }

    labels = {
        "cls_targets": maps(tf.int64, per_cell),
        "box_targets": maps(tf.float32, 4 * per_cell),
        "anchor_boxes": maps(tf.float32, 4 * per_cell),
        "cls_weights": spec(tf.float32, num_anchors),
        "box_weights": spec(tf.float32, num_anchors),
        "image_info": spec(tf.float32, 4, 2),
    }
    return spec(tf.bfloat16, size, size, 3), labels


def lower(batch_size: int, image_size: int) -> bytes:
    """Returns the serialized HLO module of the training step.

    Args:
      batch_size: The number of images.
      image_size: The height and width of the images, px.
    """
    config = exp_factory.get_exp_config("retinanet_resnetfpn_coco")
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    config.task.model.input_size = [image_size, image_size, 3]
    task = retinanet.RetinaNetTask(config.task)
    model = task.build_model()
    model.build([batch_size, image_size, image_size, 3])
    optimizer = task.create_optimizer(config.trainer.optimizer_config)
    # Variables created during tracing cannot become parameters of the program.
    optimizer._create_all_weights(model.trainable_variables)
    specs = batch_specs(config.task, batch_size)

    @tf.function(jit_compile=True)
    def step(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        inputs = tf.nest.pack_sequence_as(specs, list(tensors))
        return task.train_step(inputs, model, optimizer)

    ir = step.experimental_get_compiler_ir(*tf.nest.flatten(specs))
    return ir(stage="hlo_serialized", platform_name="CPU")


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=pathlib.Path, required=True, help="File of the HLO module."
    )
    parser.add_argument(
        "--batch_size", type=int, default=8, help="Number of images in a batch."
    )
    parser.add_argument(
        "--image_size", type=int, default=640, help="Height and width of an image, px."
    )
    flags = parser.parse_args()
    flags.output.write_bytes(lower(flags.batch_size, flags.image_size))


if __name__ == "__main__":
    main()
