"""Exports the Model Garden's RetinaNet for tools/benchmarks/latency.py.

  /its/environment/bin/python export_model_garden.py --output=DIR [--nms=v2] \
      [--image_size=640] [--num_likely=1000]

Its own exporter writes its own experiment `retinanet_resnetfpn_coco`, untouched but for
the image size: ResNet-50, 91 classes of which it drops index 0, float32. The signature
`serving_default` takes uint8 [B, H, W, 3] of any B, H and W. `--nms=v2`, a loop for
every class, is its default; with `batched` it leaves suppression to TensorFlow's
operation, which on a CPU is much the faster. The limits are its defaults: scores above
0.05, IoU up to 0.5, 100 objects an image, and with v2 the best 5000 of a class.

Weights are random, but likely_scores.py has its hand in the class logits: on the
benchmark's own images --num_likely pairs of anchor and class are above 0.05, on
average, so that there is something to suppress; 0 leaves the logits as drawn, and no
score above. Needs an environment of its own with
`pip install tf-models-official==2.20.*`.
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import likely_scores
import numpy as np
import tensorflow as tf
import timed_detector

try:
    from official.core import exp_factory
    from official.vision.configs import retinanet as _  # noqa: F401 - registers itself.
    from official.vision.serving import detection, export_saved_model_lib
except ImportError as error:
    sys.exit(f"error: {error}; run: pip install 'tf-models-official==2.20.*'")

# What the logits are spread over: all that the benchmark shows unless told otherwise.
_BATCHES = ((8, (640, 640)), (8, (480, 640)))


def make_module(image_size: int, nms: str) -> detection.DetectionModule:
    """Returns what its exporter exports.

    Args:
      image_size: sides of the network's input, px.
      nms: a `nms_version` of its that takes batches of any size: v2, v3 or batched.
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


def spread_scores(module: detection.DetectionModule, num_likely: int) -> None:
    """Makes scores likely, see likely_scores.py."""
    head = module.model.head
    [kernel] = [v for v in head.variables if v.name.endswith("/scores/kernel:0")]
    [bias] = [v for v in head.variables if v.name.endswith("/scores/bias:0")]
    bias.assign(tf.zeros_like(bias))
    logits = [_logits(module, *batch) for batch in _BATCHES]
    num_classes = module.params.task.model.num_classes
    values = likely_scores.spread(
        kernel.numpy(),
        np.concatenate(logits),
        np.arange(num_classes) > 0,  # Index 0 is its background.
        num_likely,
    )
    for variable, value in zip((kernel, bias), values, strict=True):
        variable.assign(value)


def _logits(module, num_pictures, size):
    """Returns [images, places, anchor shapes x classes]."""
    images = module.preprocess(timed_detector.pictures(num_pictures, size))[0]
    model = module.model
    levels = model.head(model.decoder(model.backbone(images)))[0]
    rows = [
        tf.reshape(level, [num_pictures, -1, level.shape[-1]])
        for level in levels.values()
    ]
    return tf.concat(rows, axis=1).numpy()


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--nms", choices=("v2", "v3", "batched"), default="v2")
    parser.add_argument("--image_size", type=int, default=640)
    parser.add_argument("--num_likely", type=int, default=1000)
    flags = parser.parse_args()
    tf.random.set_seed(0)
    module = make_module(flags.image_size, flags.nms)
    if flags.num_likely:
        spread_scores(module, flags.num_likely)
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
