r"""Exports a training run to a SavedModel, and to other formats on request.

  python -m retinanet_tpu.export --model_dir=gs://bucket/run1 [--checkpoint=…] \
      [--format=saved_model,onnx,openvino,tensorrt,tflite,tflite_float16,tflite_int8] \
      [--nms=combined|per_class_hard|per_class_soft|global_hard|global_soft] \
      [--check_images=photos]

The export is written to MODEL_DIR/export/latest/<10-digit time>. Each format is
compared with the checkpoint's own detections in the images of --check_images or,
without that, of the evaluation split. If a format differs, nothing is exported. The
images also calibrate tflite_int8, for which thirty are recommended.
"""

import retinanet_tpu.startup.cpu

import functools

import numpy as np
from absl import flags, logging

from retinanet_tpu.data import image_files
from retinanet_tpu.estimator.cluster import strategy
from retinanet_tpu.serving import formats
from retinanet_tpu.startup import guard
from retinanet_tpu.task import cli, configurables, serving_fn

_CHECKPOINT = cli.checkpoint_flag()
_FORMAT = flags.DEFINE_list(
    "format",
    ["saved_model"],
    f"Formats, separated by commas: {', '.join(formats.FORMATS)}.",
)
_NMS = flags.DEFINE_string("nms", None, "Overrides NMS.variant of the run.")
_CHECK_IMAGES = flags.DEFINE_string(
    "check_images",
    None,
    "Folder or glob of images that formats are checked on and calibrated with; the "
    "default is the evaluation split.",
)


def main() -> None:
    """Runs the command."""
    settings = ["COMPUTE_DTYPE = 'float32'"]  # All servers support float32.
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
                formats=_FORMAT.value or (),
                images=_load_check_images(),
                config_text=config_text,
            ),
            checkpoint_path=_CHECKPOINT.value,
        )
    )


def _load_check_images() -> list[np.ndarray] | None:
    """Returns the images of --check_images, None without it.

    Raises:
      UserError: There are no images, or one cannot be read.
    """
    if _CHECK_IMAGES.value is None:
        return None
    paths = image_files.find([_CHECK_IMAGES.value])
    paths = paths[: formats.num_images(_FORMAT.value or ())]
    logging.info("export | checks on %d images of %s", len(paths), _CHECK_IMAGES.value)
    return [image_files.load(path) for path in paths]


if __name__ == "__main__":
    guard.run(main)
