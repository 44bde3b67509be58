"""The network as servers call it: pictures in, objects out."""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from retinanet_tpu import structures
from retinanet_tpu.boxes import box_ops
from retinanet_tpu.data import category_map, transforms
from retinanet_tpu.detections import decode
from retinanet_tpu.estimator import spec
from retinanet_tpu.model import retinanet
from retinanet_tpu.serving import model_card, request_limits, warm_up
from retinanet_tpu.task import formats as formats_lib, model_fn

# Images of a request that are decoded at once: 15 bytes of memory for each pixel.
_NUM_DECODED = 4
_WARM_UP_SIZE = (480, 640)  # COCO's commonest, px.


class ServingModule(tf.Module):
    """A network with its preparation of pictures and its reading of predictions.

    What all `detect_…` but `detect_one` return, for B pictures:
      boxes_xyxy: float32 [B, D, 4], (xmin, ymin, xmax, ymax) in pixels of the picture.
      scores: float32 [B, D], falling, 0 past valid_detections.
      class_ids: int32 [B, D], the data set's ids, 0 past valid_detections.
      valid_detections: int32 [B].
    """

    def __init__(self, network: retinanet.RetinaNet, params: Mapping[str, Any]):
        """Takes a network with its weights, and `configurables.retinanet_params`."""
        super().__init__("server")
        self.network = network
        self.params = params
        self.limits = params["limits"]

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, 3], tf.float32, name="image"),
            tf.TensorSpec([], tf.int32, name="image_id"),
        ]
    )
    def detect_one(self, image: tf.Tensor, image_id: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the objects of one picture.

        Args:
          image: float32 [H, W, 3], RGB in 0..255, of any size.
          image_id: int32 scalar, comes back as it is.
        Returns:
          What the class says, without the first dimension, image_id, and boxes_xyxy
          once more as boxes.
        """
        found = {key: value[0] for key, value in self._detect(image[None]).items()}
        return found | {"image_id": image_id, "boxes": found["boxes_xyxy"]}

    @tf.function(
        input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")]
    )
    def detect_images(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the objects of uint8 [B, H, W, 3] RGB pictures of one size."""
        return self._detect(self.limits.batch(images))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def detect_bytes(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the objects of string [B] JPEG, PNG or BMP files of any sizes.

        EXIF's orientation is not heeded: boxes are in the pixels as they are stored.
        """
        image_size = self.params["image_size"]
        window_fn = functools.partial(transforms.crop_window, canvas_size=image_size)

        def load(encoded):
            affordable = self.limits.file(encoded)
            picture, size, window = transforms.decode_and_resize(affordable, window_fn)
            return transforms.pad_to_size(picture, image_size), window.scales, size

        specs = (
            tf.TensorSpec([*image_size, 3], tf.uint8),
            tf.TensorSpec([2], tf.float32),
            tf.TensorSpec([2], tf.int32),
        )
        pictures, scales, sizes = tf.map_fn(
            load,
            self.limits.batch(image_bytes),
            fn_output_signature=specs,
            parallel_iterations=_NUM_DECODED,
        )
        return self._read(self.predict_inputs(pictures), scales, sizes)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def detect_examples(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the objects of string [B] tf.Examples with an `image/encoded`."""
        feature = tf.io.FixedLenFeature([], tf.string)
        examples = self.limits.batch(examples)
        parsed = tf.io.parse_example(examples, {"image/encoded": feature})
        return self.detect_bytes(parsed["image/encoded"])

    @property
    def input_spec(self) -> tf.TensorSpec:
        """Returns what `predict_inputs` and `raw` take."""
        shape = [None, *self.params["image_size"], 3]
        return tf.TensorSpec(shape, tf.float32, name="inputs")

    def predict_inputs(self, inputs: tf.Tensor) -> structures.Predictions:
        """Returns what the network says of float32 [B, *image_size, 3] inputs."""
        return self.network(inputs, is_training=False)

    def read_inputs(self, predictions: structures.Predictions) -> dict[str, tf.Tensor]:
        """Returns the objects of pictures that the caller has resized and padded.

        Args:
          predictions: of `predict_inputs`.
        Returns:
          What the class says, but boxes_xyxy in pixels of the inputs.
        """
        rows = tf.ones([tf.shape(predictions.class_logits[0])[0], 2])
        sizes = tf.constant(self.params["image_size"]) * tf.cast(rows, tf.int32)
        return self._read(predictions, rows, sizes)

    def raw(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns what non-maximum suppression takes, at every anchor.

        Args:
          inputs: float32 [B, *image_size, 3], what `transforms.letterbox` returns.
        Returns:
          boxes_yxyx: float32 [B, A, 4], pixels of the inputs.
          scores: float32 [B, A, K], by index of categories.json; 0 where it has none.
        """
        num_classes = self.params["num_classes"]
        boxes_yxyx, logits = decode.every_box(
            self.predict_inputs(inputs),
            self.params["anchors"],
            self.params["image_size"],
            num_classes=num_classes,
        )
        is_class = self.params["categories"].ids != category_map.NO_CATEGORY
        scores = tf.sigmoid(logits) * tf.constant(is_class, tf.float32)
        return {"boxes_yxyx": boxes_yxyx, "scores": scores}

    def _detect(self, images):
        images = self.limits.pixels(images)
        pictures, scales = transforms.letterbox(images, self.params["image_size"])
        rows = [tf.shape(images)[0], 1]
        sizes = tf.tile(tf.shape(images)[None, 1:3], rows)
        predictions = self.predict_inputs(pictures)
        return self._read(predictions, tf.tile(scales[None], rows), sizes)

    def _read(self, predictions, scales, sizes):
        found = model_fn.detect(predictions, scales, sizes, self.params)
        return {
            "boxes_xyxy": box_ops.swap_xy(found.boxes_yxyx),
            "scores": found.scores,
            "class_ids": found.classes,
            "valid_detections": found.num_detections,
        }


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
      params: see `configurables.retinanet_params`; its pictures_fn gives pictures.
      formats: names of formats.FORMATS.
      pictures: uint8 [H, W, 3] each, to check on and to calibrate with; None for the
        first of the evaluation split.
      config_text: of the run, for the model card.
    Raises:
      ValueError: a format that is unknown or cannot be made here.
    """
    formats_lib.check(formats, params["nms_fn"])
    server = ServingModule(network, params)
    signatures = {
        "serving_default": server.detect_one,
        "images": server.detect_images,
        "image_bytes": server.detect_bytes,
        "tf_example": server.detect_examples,
    }
    is_saved_model = "saved_model" in formats
    categories = params["categories"]
    names = {str(entry.id): entry.name for entry in categories.categories}

    def finish(directory, checkpoint_path, scores):
        shown = pictures
        if pictures is None:
            shown = params["pictures_fn"](formats_lib.num_images(formats))
        results = formats_lib.write(
            server,
            params,
            directory,
            formats=formats,
            pictures=shown,
        )
        if is_saved_model:
            warm_up.write(directory, _warm_up_requests(server.limits))
        card = model_card.text(
            {name: _form(name, result) for name, result in results.items()},
            class_names=list(names.values()),
            image_size=params["image_size"],
            nms=str(params["nms_fn"]),
            limits=str(server.limits),
            checkpoint=checkpoint_path,
            scores=scores,
            config_text=config_text,
        )
        with tf.io.gfile.GFile(f"{directory}/{model_card.FILE_NAME}", "w") as file:
            file.write(card)

    return spec.Serving(
        server,
        signatures if is_saved_model else {},
        assets_extra={
            category_map.FILE_NAME: category_map.to_json(categories),
            "label_map.json": json.dumps(names, ensure_ascii=False, indent=1) + "\n",
        },
        finish_fn=finish,
    )


def _form(name, result) -> model_card.FormatEntry:
    form = formats_lib.FORMATS[name]
    return model_card.FormatEntry(form.file, form.what, str(result))


def _warm_up_requests(limits: request_limits.Limits) -> list[bytes]:
    """Returns a request for each signature that servers call, with a grey picture."""
    # A server does not start if it refuses them.
    is_allowed = math.prod(_WARM_UP_SIZE) <= limits.max_image_pixels
    shape = [1, *(_WARM_UP_SIZE if is_allowed else (1, 1)), 3]
    grey = tf.io.encode_jpeg(tf.fill(shape[1:], tf.constant(128, tf.uint8))).numpy()
    image = tf.make_tensor_proto(128.0, tf.float32, shape[1:])
    inputs = {
        "serving_default": {"image": image, "image_id": tf.make_tensor_proto(0)},
        "images": {"images": tf.make_tensor_proto(128, tf.uint8, shape)},
        "image_bytes": {"image_bytes": tf.make_tensor_proto([grey])},
    }
    return [warm_up.request(name, values) for name, values in inputs.items()]
