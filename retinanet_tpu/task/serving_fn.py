"""The network as a server calls it: pictures of any size in, objects out."""

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from retinanet_tpu.boxes import box_ops
from retinanet_tpu.data import categories as categories_lib, transforms
from retinanet_tpu.model import retinanet
from retinanet_tpu.task import model_fn


class Server(tf.Module):
    """A network with its preparation of pictures and its reading of predictions."""

    def __init__(self, network: retinanet.RetinaNet, params: Mapping[str, Any]):
        """Takes a network with its weights, and `configurables.retinanet_params`."""
        super().__init__("server")
        self.network = network
        self._params = params

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
          boxes: float32 [D, 4], (xmin, ymin, xmax, ymax) in pixels of the picture.
          scores: float32 [D], falling, 0 past valid_detections.
          class_ids: int32 [D], the data set's ids.
          valid_detections: int32 scalar.
          image_id: int32 scalar.
        """
        picture, scales = transforms.letterbox(image, self._params["image_size"])
        found = model_fn.detect(
            self.network(picture[None], is_training=False),
            scales[None],
            tf.shape(image)[None, :2],
            self._params,
        )
        return {
            "image_id": image_id,
            "boxes": box_ops.swap_xy(found.boxes_yxyx)[0],
            "scores": found.scores[0],
            "class_ids": found.classes[0],
            "valid_detections": found.num_detections[0],
        }


def serving_fn(
    network: retinanet.RetinaNet, params: Mapping[str, Any]
) -> tuple[tf.Module, dict[str, Callable], dict[str, str]]:
    """Returns the module to save, its signatures, and texts to lie beside them."""
    server = Server(network, params)
    categories = categories_lib.to_json(params["categories"])
    signatures = {"serving_default": server.detect_one}
    return server, signatures, {categories_lib.FILE_NAME: categories}
