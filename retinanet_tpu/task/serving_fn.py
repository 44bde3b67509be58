"""The network as servers call it: images in, objects out."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from retinanet_tpu.data import category_map
from retinanet_tpu.estimator import spec
from retinanet_tpu.model import retinanet
from retinanet_tpu.serving import (
    formats as formats_module,
    model_card,
    request_limits,
    server,
    warm_up,
)

_WARM_UP_SIZE = (480, 640)  # COCO's commonest, px.


def serving_fn(
    network: retinanet.RetinaNet,
    params: Mapping[str, Any],
    *,
    formats: Sequence[str] = ("saved_model",),
    pictures: Sequence[np.ndarray] | None = None,
    config_text: str = "",
) -> spec.Serving:
    """Returns what an export writes, and how it is checked.

    Args:
      network: has the checkpoint's weights.
      params: "recipe", a `recipe.Recipe` with categories, and "images_fn", which
        returns a number of images.
      formats: names of formats.FORMATS.
      images: uint8 [H, W, 3] each, to check on and to calibrate with; None for the
        first of the evaluation split.
      config_text: of the run, for the model card.
    Raises:
      ValueError: a format that is unknown or cannot be made here.
    """
    recipe = params["recipe"]
    formats_module.check(formats, recipe.nms_fn)
    module = server.ServingModule(network, recipe)
    signatures = {
        "serving_default": module.detect_one,
        "images": module.detect_images,
        "image_bytes": module.detect_bytes,
        "tf_example": module.detect_examples,
    }
    is_saved_model = "saved_model" in formats
    categories = recipe.categories
    names = {str(entry.id): entry.name for entry in categories.categories}

    def finish(directory, checkpoint_path, scores):
        shown = pictures
        if pictures is None:
            shown = params["images_fn"](formats_module.num_images(formats))
        results = formats_module.write(
            module,
            directory,
            formats=formats,
            pictures=shown,
        )
        if is_saved_model:
            warm_up.write(directory, _warm_up_requests(module.limits))
        card = model_card.text(
            {name: _form(name, result) for name, result in results.items()},
            class_names=list(names.values()),
            image_size=recipe.image_size,
            nms=str(recipe.nms_fn),
            limits=str(module.limits),
            checkpoint=checkpoint_path,
            scores=scores,
            config_text=config_text,
        )
        with tf.io.gfile.GFile(f"{directory}/{model_card.FILE_NAME}", "w") as file:
            file.write(card)

    return spec.Serving(
        module,
        signatures if is_saved_model else {},
        assets_extra={
            category_map.FILE_NAME: category_map.to_json(categories),
            "label_map.json": json.dumps(names, ensure_ascii=False, indent=1) + "\n",
        },
        finish_fn=finish,
    )


def _form(name, result) -> model_card.FormatEntry:
    form = formats_module.FORMATS[name]
    return model_card.FormatEntry(form.file, form.what, str(result))


def _warm_up_requests(limits: request_limits.Limits) -> list[bytes]:
    """Returns a request for each signature that servers call, with a gray image."""
    # A server does not start if it refuses them.
    is_allowed = math.prod(_WARM_UP_SIZE) <= limits.max_image_pixels
    shape = [1, *(_WARM_UP_SIZE if is_allowed else (1, 1)), 3]
    gray = tf.io.encode_jpeg(tf.fill(shape[1:], tf.constant(128, tf.uint8))).numpy()
    image = tf.make_tensor_proto(128.0, tf.float32, shape[1:])
    inputs = {
        "serving_default": {"image": image, "image_id": tf.make_tensor_proto(0)},
        "images": {"images": tf.make_tensor_proto(128, tf.uint8, shape)},
        "image_bytes": {"image_bytes": tf.make_tensor_proto([gray])},
    }
    return [warm_up.request(name, values) for name, values in inputs.items()]
