"""A module with the serving signatures of a network: images in, detections out."""

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

# Images of a request that are decoded at once; each pixel takes 15 bytes of memory.
_NUM_DECODED = 4


class Detector(Protocol):
    """The parts of a recipe that an export reads; `task.recipe.Recipe` has them."""

    @property
    def num_classes(self) -> int:
        """Returns the number of classes K."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Returns the height and width of the network's input, px."""

    @property
    def keep_aspect_ratio(self) -> bool:
        """Returns whether images keep their aspect ratio when they are resized."""

    @property
    def anchors(self) -> Anchors:
        """Returns the anchors."""

    @property
    def nms_fn(self) -> nms.NMS:
        """Returns the non-maximum suppression."""

    @property
    def limits(self) -> request_limits.Limits:
        """Returns the limits of one request."""

    @property
    def categories(self) -> category_map.Categories:
        """Returns the dataset's categories."""

    def detect(
        self,
        predictions: structures.Predictions,
        scales: tf.Tensor,
        image_sizes: tf.Tensor,
    ) -> structures.Detections:
        """Returns detections in pixels of the original images."""


class ServingModule(tf.Module):
    """A network with its image preprocessing and its postprocessing.

    All `detect_…` methods except `detect_one` return, for B images:
      boxes_xyxy: float32 [B, D, 4], (xmin, ymin, xmax, ymax) in pixels of the image.
      scores: float32 [B, D], falling, 0 past valid_detections.
      class_ids: int32 [B, D], the dataset's ids, 0 past valid_detections.
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
        autograph=False,
        input_signature=[
            tf.TensorSpec([None, None, 3], tf.float32, name="image"),
            tf.TensorSpec([], tf.int32, name="image_id"),
        ],
    )
    def detect_one(self, image: tf.Tensor, image_id: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the detections in one image.

        Args:
          image: float32 [H, W, 3], RGB in 0..255, of any size.
          image_id: int32 scalar, returned unchanged.
        Returns:
          The outputs that the class documents, without their first dimension; image_id;
          and boxes, a copy of boxes_xyxy.
        """
        detections = {key: value[0] for key, value in self._detect(image[None]).items()}
        return detections | {"image_id": image_id, "boxes": detections["boxes_xyxy"]}

    @tf.function(
        autograph=False,
        input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")],
    )
    def detect_images(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the detections in images of one size.

        Args:
          images: uint8 [B, H, W, 3], RGB.
        """
        return self._detect(self.limits.check_batch(images))

    @tf.function(
        autograph=False,
        input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")],
    )
    def detect_bytes(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the detections in image files of any sizes.

        EXIF orientation is ignored: boxes are in the pixels as the file stores them.

        Args:
          image_bytes: string [B], JPEG, PNG or BMP files.
        """
        image_size = self.recipe.image_size
        window_fn = functools.partial(
            transforms.crop_window,
            output_size=image_size,
            keep_aspect_ratio=self.recipe.keep_aspect_ratio,
        )

        def load(encoded):
            checked = self.limits.check_file(encoded)
            resized, size, window = transforms.decode_and_resize(checked, window_fn)
            return transforms.pad_to_size(resized, image_size), window.scales, size

        specs = (
            tf.TensorSpec([*image_size, 3], tf.uint8),
            tf.TensorSpec([2], tf.float32),
            tf.TensorSpec([2], tf.int32),
        )
        inputs, scales, sizes = tf.map_fn(
            load,
            self.limits.check_batch(image_bytes),
            fn_output_signature=specs,
            parallel_iterations=_NUM_DECODED,
        )
        return self._postprocess(self.predict_inputs(inputs), scales, sizes)

    @tf.function(
        autograph=False,
        input_signature=[tf.TensorSpec([None], tf.string, name="examples")],
    )
    def detect_examples(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the detections in the images of tf.Examples.

        Args:
          examples: string [B], serialized tf.Examples with `image/encoded`.
        """
        feature = tf.io.FixedLenFeature([], tf.string)
        examples = self.limits.check_batch(examples)
        parsed = tf.io.parse_example(examples, {"image/encoded": feature})
        return self.detect_bytes(parsed["image/encoded"])

    @property
    def input_spec(self) -> tf.TensorSpec:
        """Returns the spec of the inputs of `predict_inputs` and `raw`."""
        shape = [None, *self.recipe.image_size, 3]
        return tf.TensorSpec(shape, tf.float32, name="inputs")

    def predict_inputs(self, inputs: tf.Tensor) -> structures.Predictions:
        """Returns the network's predictions.

        Args:
          inputs: float32 [B, *image_size, 3], images that are resized and padded.
        """
        return self.network(inputs, is_training=False)

    def read_inputs(self, predictions: structures.Predictions) -> dict[str, tf.Tensor]:
        """Returns the detections in images that the caller has resized and padded.

        Args:
          predictions: The result of `predict_inputs`.
        Returns:
          The outputs that the class documents, but boxes_xyxy in pixels of the inputs.
        """
        rows = tf.ones([tf.shape(predictions.class_logits[0])[0], 2])
        sizes = tf.constant(self.recipe.image_size) * tf.cast(rows, tf.int32)
        return self._postprocess(predictions, rows, sizes)

    def raw(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns boxes and scores of every anchor, without non-maximum suppression.

        Args:
          inputs: float32 [B, *image_size, 3], the result of `transforms.letterbox`.
        Returns:
          boxes_yxyx: float32 [B, A, 4], pixels of the inputs.
          scores: float32 [B, A, K], by index of categories.json; 0 at an index without
            a category.
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

    def _detect(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        images = self.limits.check_pixels(images)
        inputs, scales = transforms.letterbox(
            images,
            self.recipe.image_size,
            keep_aspect_ratio=self.recipe.keep_aspect_ratio,
        )
        rows = [tf.shape(images)[0], 1]
        sizes = tf.tile(tf.shape(images)[None, 1:3], rows)
        predictions = self.predict_inputs(inputs)
        return self._postprocess(predictions, tf.tile(scales[None], rows), sizes)

    def _postprocess(
        self, predictions: structures.Predictions, scales: tf.Tensor, sizes: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        detections = self.recipe.detect(predictions, scales, sizes)
        return {
            "boxes_xyxy": box_ops.swap_xy(detections.boxes_yxyx),
            "scores": detections.scores,
            "class_ids": detections.classes,
            "valid_detections": detections.num_detections,
        }
