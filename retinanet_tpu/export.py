r"""Writes what serves a training run: a SavedModel, and other formats if asked.

  python -m retinanet_tpu.export --model_dir=gs://bucket/run1 [--checkpoint=…] \
      [--format=saved_model,onnx,tensorrt,tflite,tflite_float16,tflite_int8] \
      [--nms=combined|per_class_hard|per_class_soft|global_hard|global_soft] \
      [--check_images=photos]

It goes to MODEL_DIR/export/latest/<10-digit time>, once every format has found what the
checkpoint itself finds in images of --check_images or, without that, of the
evaluation split. They also calibrate tflite_int8, for which thirty are right.
"""

import retinanet_tpu.startup.cpu

import functools

from absl import flags, logging

from retinanet_tpu.data import image_files
from retinanet_tpu.estimator.cluster import strategy
from retinanet_tpu.serving import formats
from retinanet_tpu.startup import guard
from retinanet_tpu.task import cli, configurables, serving_fn

_CHECKPOINT = cli.checkpoint_flag()
_FORMAT = flags.DEFINE_list("format", ["saved_model"], "Formats, see above.")
_NMS = flags.DEFINE_string("nms", None, "Overrides NMS.variant of the run.")
_CHECK_IMAGES = flags.DEFINE_string(
    "check_images", None, "Folder or glob of images to check and calibrate with."
)


def main() -> None:
    """Runs the command."""
    settings = ["COMPUTE_DTYPE = 'float32'"]  # Any server can run it.
    if _NMS.value is not None:
        settings.append(f"NMS.variant = '{_NMS.value}'")
    config_text = cli.parse_model_dir(*settings)
    run = configurables.make_run(
        cli.model_dir(), strategy_fn=lambda: strategy.make_strategy(single_process=True)
    )
    print(
        run.estimator.export_saved_model(
            f"{cli.model_dir()}/export/latest",
            functools.partial(
                serving_fn.serving_fn,
                formats=_FORMAT.value,
                pictures=_pictures(),
                config_text=config_text,
            ),
            checkpoint_path=_CHECKPOINT.value,
        )
    )


def _pictures():
    """Returns the images of --check_images, None without it.

    Raises:
      ValueError: there are none, or one cannot be read.
    """
    if _CHECK_IMAGES.value is None:
        return None
    paths = image_files.find([_CHECK_IMAGES.value])
    paths = paths[: formats.num_images(_FORMAT.value)]
    logging.info(
        "export | checks on %s", f"{len(paths)} images of {_CHECK_IMAGES.value}"
    )
    return [image_files.load(path) for path in paths]


if __name__ == "__main__":
    guard.run(main)
