"""Makes the exports of a network: their signatures, files and checks."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from retinanet_tpu.data import category_map
from retinanet_tpu.estimator import spec
from retinanet_tpu.model import retinanet
from retinanet_tpu.serving import (
    formats as formats_module,
    model_card,
    parity,
    request_limits,
    server,
    thresholds,
    warm_up,
)

# A number of images -> the first images of the evaluation split, uint8 [H, W, 3] each.
ImagesFn = Callable[[int], Sequence[np.ndarray]]

_WARM_UP_SIZE = (480, 640)  # The most frequent size in COCO, px.


@dataclasses.dataclass(frozen=True)
class ExportJob:
    """The files of an export beside its SavedModel.

    Attributes:
      module: The serving module of the checkpoint.
      formats: The names of the formats.
      images_fn: Returns the images to check on and to calibrate with.
      config_text: The run's gin settings, for the model card.
    """

    module: server.ServingModule
    formats: Sequence[str]
    images_fn: ImagesFn
    config_text: str

    def finish(
        self, directory: str, checkpoint_path: str, scores: Mapping[str, Any] | None
    ) -> None:
        """Writes and checks all formats; writes the other files of the export.

        Args:
          directory: The directory of the export, not yet committed.
          checkpoint_path: The path of the checkpoint.
          scores: The metrics of the checkpoint's evaluation, None without one.
        Raises:
          UserError: The detections of a format differ from the checkpoint's.
        """
        reports = formats_module.write_formats(
            self.module,
            directory,
            formats=self.formats,
            images=self.images_fn(formats_module.num_images(self.formats)),
        )
        if "saved_model" in self.formats:
            requests = _warm_up_requests(self.module.limits)
            warm_up.write_requests(directory, requests)
        recipe = self.module.recipe
        card = model_card.text(
            {name: _format_entry(name, report) for name, report in reports.items()},
            class_names=[entry.name for entry in recipe.categories.categories],
            image_size=recipe.image_size,
            nms=str(recipe.nms_fn),
            limits=str(self.module.limits),
            checkpoint=checkpoint_path,
            scores=scores,
            config_text=self.config_text,
        )
        with tf.io.gfile.GFile(f"{directory}/{model_card.FILE_NAME}", "w") as file:
            file.write(card)
        thresholds.write(f"{directory}/assets.extra", scores)


def serving_fn(
    network: retinanet.RetinaNet,
    params: Mapping[str, Any],
    *,
    formats: Sequence[str] = ("saved_model",),
    images: Sequence[np.ndarray] | None = None,
    config_text: str = "",
) -> spec.Serving:
    """Returns the content of an export and the function that checks it.

    Args:
      network: The network, with the checkpoint's weights.
      params: The params of the estimator: "recipe", a `recipe.Recipe` with categories,
        and "images_fn", an `ImagesFn`.
      formats: The names of the formats, from formats.FORMATS.
      images: The images to check on and to calibrate with, uint8 [H, W, 3] each; None
        for the first of the evaluation split.
      config_text: The run's gin settings, for the model card.
    Raises:
      UserError: A format is unknown or cannot be written here.
    """
    recipe = params["recipe"]
    formats_module.check_formats(
        formats, recipe.nms_fn, keep_aspect_ratio=recipe.keep_aspect_ratio
    )
    module = server.ServingModule(network, recipe)
    signatures = {
        "serving_default": module.detect_one,
        "images": module.detect_images,
        "image_bytes": module.detect_bytes,
        "tf_example": module.detect_examples,
    }
    categories = recipe.categories
    names = {str(entry.id): entry.name for entry in categories.categories}
    job = ExportJob(
        module,
        formats=formats,
        images_fn=params["images_fn"] if images is None else lambda _: images,
        config_text=config_text,
    )
    return spec.Serving(
        module,
        signatures if "saved_model" in formats else {},
        assets_extra={
            category_map.FILE_NAME: category_map.to_json(categories),
            "label_map.json": json.dumps(names, ensure_ascii=False, indent=1) + "\n",
        },
        finish_fn=job.finish,
    )


def _format_entry(name: str, report: parity.ParityReport) -> model_card.FormatEntry:
    export_format = formats_module.FORMATS[name]
    return model_card.FormatEntry(
        export_format.file, export_format.description, str(report)
    )


def _warm_up_requests(limits: request_limits.Limits) -> list[bytes]:
    """Returns a request with a gray image for each signature that servers call."""
    # A server does not start if its model rejects a warm-up request.
    is_allowed = math.prod(_WARM_UP_SIZE) <= limits.max_image_pixels
    shape = [1, *(_WARM_UP_SIZE if is_allowed else (1, 1)), 3]
    gray = tf.io.encode_jpeg(tf.fill(shape[1:], tf.constant(128, tf.uint8))).numpy()
    image = tf.make_tensor_proto(128.0, tf.float32, shape[1:])
    inputs = {
        "serving_default": {"image": image, "image_id": tf.make_tensor_proto(0)},
        "images": {"images": tf.make_tensor_proto(128, tf.uint8, shape)},
        "image_bytes": {"image_bytes": tf.make_tensor_proto([gray])},
    }
    return [warm_up.make_request(name, values) for name, values in inputs.items()]
