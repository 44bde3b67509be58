"""The network as servers call it: images in, detections out."""

import functools
from typing import Protocol

import tensorflow as tf

from retinanet_tpu import structures
from retinanet_tpu.boxes import box_ops
from retinanet_tpu.boxes.anchors import Anchors
from retinanet_tpu.data import category_map, transforms
from retinanet_tpu.detections import decode, nms
from retinanet_tpu.model import retinanet
from retinanet_tpu.serving import request_limits

# Images of a request that are decoded at once: 15 bytes of memory for each pixel.
_NUM_DECODED = 4


class Detector(Protocol):
    """The parts of a recipe that an export reads; `task.recipe.Recipe` has them."""

    @property
    def num_classes(self) -> int:
        """The number of classes K."""

    @property
    def image_size(self) -> tuple[int, int]:
        """The height and width of the network's input, px."""

    @property
    def anchors(self) -> Anchors:
        """The anchors."""

    @property
    def nms_fn(self) -> nms.NMS:
        """The non-maximum suppression."""

    @property
    def limits(self) -> request_limits.Limits:
        """The limits of one request."""

    @property
    def categories(self) -> category_map.Categories:
        """The dataset's categories."""

    def detect(
        self,
        predictions: structures.Predictions,
        scales: tf.Tensor,
        image_sizes: tf.Tensor,
    ) -> structures.Detections:
        """Returns detections in pixels of the original images."""


class ServingModule(tf.Module):
    """A network with its preparation of images and its reading of predictions.

    What all `detect_…` but `detect_one` return, for B images:
      boxes_xyxy: float32 [B, D, 4], (xmin, ymin, xmax, ymax) in pixels of the image.
      scores: float32 [B, D], falling, 0 past valid_detections.
      class_ids: int32 [B, D], the data set's ids, 0 past valid_detections.
      valid_detections: int32 [B].
    """

    def __init__(self, network: retinanet.RetinaNet, recipe: Detector):
        """Initializes the module.

        Args:
          network: The network, with the weights of a checkpoint.
          recipe: The recipe of the network, with categories.
        """
        super().__init__("server")
        self.network = network
        self.recipe = recipe
        self.limits = recipe.limits

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, 3], tf.float32, name="image"),
            tf.TensorSpec([], tf.int32, name="image_id"),
        ]
    )
    def detect_one(self, image: tf.Tensor, image_id: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the objects of one image.

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
        """Returns the objects of uint8 [B, H, W, 3] RGB images of one size."""
        return self._detect(self.limits.batch(images))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def detect_bytes(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the objects of string [B] JPEG, PNG or BMP files of any sizes.

        EXIF's orientation is not heeded: boxes are in the pixels as they are stored.
        """
        image_size = self.recipe.image_size
        window_fn = functools.partial(transforms.crop_window, output_size=image_size)

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
        shape = [None, *self.recipe.image_size, 3]
        return tf.TensorSpec(shape, tf.float32, name="inputs")

    def predict_inputs(self, inputs: tf.Tensor) -> structures.Predictions:
        """Returns what the network says of float32 [B, *image_size, 3] inputs."""
        return self.network(inputs, is_training=False)

    def read_inputs(self, predictions: structures.Predictions) -> dict[str, tf.Tensor]:
        """Returns the objects of images that the caller has resized and padded.

        Args:
          predictions: of `predict_inputs`.
        Returns:
          What the class says, but boxes_xyxy in pixels of the inputs.
        """
        rows = tf.ones([tf.shape(predictions.class_logits[0])[0], 2])
        sizes = tf.constant(self.recipe.image_size) * tf.cast(rows, tf.int32)
        return self._read(predictions, rows, sizes)

    def raw(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns what non-maximum suppression takes, at every anchor.

        Args:
          inputs: float32 [B, *image_size, 3], what `transforms.letterbox` returns.
        Returns:
          boxes_yxyx: float32 [B, A, 4], pixels of the inputs.
          scores: float32 [B, A, K], by index of categories.json; 0 where it has none.
        """
        num_classes = self.recipe.num_classes
        boxes_yxyx, logits = decode.every_box(
            self.predict_inputs(inputs),
            self.recipe.anchors,
            self.recipe.image_size,
            num_classes=num_classes,
        )
        is_class = self.recipe.categories.ids != category_map.NO_CATEGORY
        scores = tf.sigmoid(logits) * tf.constant(is_class, tf.float32)
        return {"boxes_yxyx": boxes_yxyx, "scores": scores}

    def _detect(self, images):
        images = self.limits.pixels(images)
        pictures, scales = transforms.letterbox(images, self.recipe.image_size)
        rows = [tf.shape(images)[0], 1]
        sizes = tf.tile(tf.shape(images)[None, 1:3], rows)
        predictions = self.predict_inputs(pictures)
        return self._read(predictions, tf.tile(scales[None], rows), sizes)

    def _read(self, predictions, scales, sizes):
        found = self.recipe.detect(predictions, scales, sizes)
        return {
            "boxes_xyxy": box_ops.swap_xy(found.boxes_yxyx),
            "scores": found.scores,
            "class_ids": found.classes,
            "valid_detections": found.num_detections,
        }
