"""Runs a checkpoint and its exported formats on the same images, for parity checks."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from retinanet_tpu import structures
from retinanet_tpu.data import transforms
from retinanet_tpu.detections import decode, postprocess
from retinanet_tpu.model import retinanet
from retinanet_tpu.serving import artifacts, runtimes
from retinanet_tpu.serving.server import Detector

if TYPE_CHECKING:
    import onnxruntime

# The number of pairs that the check of the raw model sorts. TensorRT's own node has its
# own limit.
_MAX_CANDIDATES = 5000


def detect_with_checkpoint(
    network: retinanet.RetinaNet, recipe: Detector, images: Sequence[np.ndarray]
) -> list[structures.Detections]:
    """Returns the checkpoint's detections in each image, computed as in evaluation.

    Args:
      network: The network, with the checkpoint's weights.
      recipe: The recipe of the network.
      images: The images, uint8 [H, W, 3] each.
    """
    image_size = recipe.image_size
    window_fn = functools.partial(
        transforms.crop_window,
        output_size=image_size,
        keep_aspect_ratio=recipe.keep_aspect_ratio,
    )

    @tf.function(autograph=False)
    def detect_one(encoded):
        resized, size, window = transforms.decode_and_resize(encoded, window_fn)
        features = structures.Features(
            images=transforms.pad_to_size(resized, image_size)[tf.newaxis],
            image_ids=tf.constant([0], tf.int64),
            image_sizes=size[tf.newaxis],
            scales=window.scales[tf.newaxis],
        )
        predictions = network(features.images, is_training=False)
        return recipe.detect(predictions, features.scales, features.image_sizes)

    return [_to_numpy(detect_one(tf.io.encode_png(image))) for image in images]


def detect_with_artifact(
    path: str, images: Sequence[np.ndarray], *, batch_size: int
) -> Iterator[list[structures.Detections]]:
    """Yields an artifact's detections in each image, for each of its signatures.

    Args:
      path: The path of the artifact, see `artifacts.load`.
      images: The images, uint8 [H, W, 3] each.
      batch_size: The most images of one request.
    Raises:
      UserError: An image is larger than the artifact accepts.
    """
    if not tf.saved_model.contains_saved_model(path):
        artifact = artifacts.load(path)
        yield [artifact.detect(image[None]) for image in images]
        return
    model = tf.saved_model.load(path)  # Owns the weights; its signatures do not.
    encoded = [tf.io.encode_png(image).numpy() for image in images]
    batches = [
        encoded[start : start + batch_size]
        for start in range(0, len(encoded), batch_size)
    ]
    requests: dict[str, list[dict[str, Any]]] = {
        "images": [{"images": image[None]} for image in images],
        "serving_default": [
            {"image": image.astype(np.float32), "image_id": 0} for image in images
        ],
        "image_bytes": [{"image_bytes": batch} for batch in batches],
        "tf_example": [{"examples": list(map(make_example, x))} for x in batches],
    }
    for name, calls in requests.items():
        yield [one for inputs in calls for one in _call_signature(model, name, inputs)]


def detect_with_raw_model(
    session: "onnxruntime.InferenceSession",
    recipe: Detector,
    images: Sequence[np.ndarray],
) -> list[structures.Detections]:
    """Returns the detections of a raw ONNX model and our NMS in each image.

    TensorRT's own NMS node runs only on NVIDIA devices. Its inputs are therefore
    compared after our NMS.

    Args:
      session: The onnxruntime session of the model before its last node.
      recipe: The recipe of the network.
      images: The images, uint8 [H, W, 3] each.
    """
    results = []
    for image in images:
        inputs, scales = transforms.letterbox(image, recipe.image_size)
        boxes_yxyx, scores = session.run(
            ["boxes_yxyx", "scores"], {"inputs": inputs[None].numpy()}
        )
        detections = postprocess.postprocess(
            _best_candidates(boxes_yxyx, scores),
            recipe.nms_fn,
            category_ids=recipe.categories.ids,
            scales=scales[None],
            image_sizes=tf.constant([image.shape[:2]]),
        )
        results.append(_to_numpy(detections))
    return results


def make_example(encoded: bytes) -> bytes:
    """Returns a serialized tf.Example with an image file."""
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))
    features = tf.train.Features(feature={"image/encoded": feature})
    return tf.train.Example(features=features).SerializeToString()


def _best_candidates(boxes_yxyx: np.ndarray, scores: np.ndarray) -> decode.Candidates:
    """Returns the best pairs of box and class.

    Args:
      boxes_yxyx: float32 [1, A, 4], px of the network's input.
      scores: float32 [1, A, K].
    """
    num_classes = scores.shape[-1]
    pairs = scores.reshape(1, -1)
    best_scores, best = tf.math.top_k(pairs, min(_MAX_CANDIDATES, pairs.shape[1]))
    return decode.Candidates(
        tf.gather(boxes_yxyx, best // num_classes, batch_dims=1),
        best_scores,
        best % num_classes,
    )


def _call_signature(
    model: tf.Module, name: str, inputs: Mapping[str, Any]
) -> list[structures.Detections]:
    """Returns a signature's detections, each as a batch of one image."""
    tensors = {key: tf.constant(value) for key, value in inputs.items()}
    with runtimes.request_errors():
        outputs = model.signatures[name](**tensors)
    if name == "serving_default":
        outputs = {key: value[None] for key, value in outputs.items()}
    batch = runtimes.to_detections(outputs)
    return [
        structures.Detections(*(values[row : row + 1] for values in batch))
        for row in range(len(batch.scores))
    ]


def _to_numpy(detections: structures.Detections) -> structures.Detections:
    return structures.Detections(*(x.numpy() for x in detections))
