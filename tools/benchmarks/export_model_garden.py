"""Exports Model Garden's RetinaNet for tools/benchmarks/latency.py.

  /its/environment/bin/python export_model_garden.py --output=DIR [--nms=v2] \
      [--image_size=640] [--num_likely=1000]

Model Garden's own exporter writes its own experiment `retinanet_resnetfpn_coco`; only
the image size is changed. The model is a float32 ResNet-50 with 91 classes, of which it
drops index 0. The input of `serving_default` is uint8 [B, H, W, 3] of any B, H and W.

`--nms=v2`, a loop over the classes, is Model Garden's default. `--nms=batched` uses
TensorFlow's own operation, which is much faster on a CPU. The limits are Model Garden's
defaults: scores above 0.05, IoU up to 0.5, 100 objects per image, and with v2 the best
5000 of a class.

The weights are random. shift_class_logits.py shifts the class logits: on the
benchmark's own images, --num_likely pairs of anchor and class per image have a score
above 0.05, on average. With --num_likely=0 the logits are not changed, and no score is
above 0.05. The script needs an environment of its own with
`pip install tf-models-official==2.20.*`.
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import numpy as np
import shift_class_logits
import tensorflow as tf
import timed_detector

try:
    from official.core import exp_factory
    from official.vision.configs import retinanet as _  # noqa: F401 - registers itself.
    from official.vision.serving import detection, export_saved_model_lib
except ImportError as error:
    sys.exit(f"error: {error}; run: pip install 'tf-models-official==2.20.*'")

# Batches over which the logits are normalized: the default cases of latency.py.
_BATCHES = ((8, (640, 640)), (8, (480, 640)))


def make_module(image_size: int, nms: str) -> detection.DetectionModule:
    """Returns the module that Model Garden's exporter exports.

    Args:
      image_size: The height and width of the network's input, px.
      nms: A `nms_version` of Model Garden that supports any batch size: v2, v3 or
        batched.
    """
    config = exp_factory.get_exp_config("retinanet_resnetfpn_coco")
    config.task.model.input_size = [image_size, image_size, 3]
    config.task.model.detection_generator.nms_version = nms
    return detection.DetectionModule(
        config,
        batch_size=None,
        input_image_size=[image_size, image_size],
        input_type="image_tensor",
    )


def shift_logits(module: detection.DetectionModule, num_likely: int) -> None:
    """Shifts the class logits of a module; see shift_class_logits.py.

    Args:
      module: The module with random weights; its last class layer is changed.
      num_likely: The mean number of pairs of anchor and class above the threshold, per
        image.
    """
    head = module.model.head
    [kernel] = [v for v in head.variables if v.name.endswith("/scores/kernel:0")]
    [bias] = [v for v in head.variables if v.name.endswith("/scores/bias:0")]
    bias.assign(tf.zeros_like(bias))
    logits = [_logits(module, *batch) for batch in _BATCHES]
    num_classes = module.params.task.model.num_classes
    new_kernel, new_bias = shift_class_logits.shift(
        kernel.numpy(),
        np.concatenate(logits),
        np.arange(num_classes) > 0,  # Index 0 is the background.
        num_likely,
    )
    kernel.assign(new_kernel)
    bias.assign(new_bias)


def _logits(
    module: detection.DetectionModule, num_images: int, size: tuple[int, int]
) -> np.ndarray:
    """Returns [images, cells, anchor shapes x classes]."""
    images = module.preprocess(timed_detector.make_images(num_images, size))[0]
    model = module.model
    levels = model.head(model.decoder(model.backbone(images)))[0]
    rows = [
        tf.reshape(level, [num_images, -1, level.shape[-1]])
        for level in levels.values()
    ]
    return tf.concat(rows, axis=1).numpy()


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        required=True,
        help="Directory of the SavedModel.",
    )
    parser.add_argument(
        "--nms",
        choices=("v2", "v3", "batched"),
        default="v2",
        help="Model Garden's variant of non-maximum suppression.",
    )
    parser.add_argument(
        "--image_size",
        type=int,
        default=640,
        help="Height and width of the network's input, px.",
    )
    parser.add_argument(
        "--num_likely",
        type=int,
        default=1000,
        help="Mean number of pairs of anchor and class above 0.05, per image.",
    )
    flags = parser.parse_args()
    tf.random.set_seed(0)
    module = make_module(flags.image_size, flags.nms)
    if flags.num_likely:
        shift_logits(module, flags.num_likely)
    export_saved_model_lib.export_inference_graph(
        "image_tensor",
        None,
        [flags.image_size, flags.image_size],
        module.params,
        checkpoint_path=None,
        export_dir=str(flags.output),
        export_module=module,
    )


if __name__ == "__main__":
    main()
