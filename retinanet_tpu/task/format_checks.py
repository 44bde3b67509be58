"""Holds what an export finds against what its checkpoint finds."""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tpu import errors, structures
from retinanet_tpu.data import transforms
from retinanet_tpu.detections import decode
from retinanet_tpu.estimator import spec
from retinanet_tpu.model import retinanet
from retinanet_tpu.serving import artifacts, parity, runtimes
from retinanet_tpu.task import model_fn

# What the check of the form for TensorRT sorts; its own node has no such limit.
_MOST_CANDIDATES = 5000


def predict(
    network: retinanet.RetinaNet,
    params: Mapping[str, Any],
    pictures: Sequence[np.ndarray],
) -> list[structures.Detections]:
    """Returns what the checkpoint finds in each picture, on evaluation's way.

    Args:
      network: has the checkpoint's weights.
      params: see `configurables.retinanet_params`.
      pictures: uint8 [H, W, 3] each.
    """
    image_size = params["image_size"]
    window_fn = functools.partial(transforms.crop_window, canvas_size=image_size)

    @tf.function
    def predict_one(encoded):
        resized, size, window = transforms.decode_and_resize(encoded, window_fn)
        features = structures.Features(
            images=transforms.pad_to_size(resized, image_size)[tf.newaxis],
            image_ids=tf.constant([0], tf.int64),
            image_sizes=size[tf.newaxis],
            scales=window.scales[tf.newaxis],
        )
        mode = spec.ModeKeys.PREDICT
        return model_fn.model_fn(features, None, mode, params, network).predictions

    found = [predict_one(tf.io.encode_png(picture)) for picture in pictures]
    return [
        structures.Detections(**{key: x.numpy() for key, x in one.items()})
        for one in found
    ]


def found_by(
    path: str, pictures: Sequence[np.ndarray], *, batch_size: int
) -> Iterator[list[structures.Detections]]:
    """Yields what an artifact finds in each picture, by each way to call it.

    Args:
      path: see `artifacts.load`.
      pictures: uint8 [H, W, 3] each.
      batch_size: Images that one request may have.
    Raises:
      UserError: An image is larger than the artifact accepts.
    """
    if not tf.saved_model.contains_saved_model(path):
        artifact = artifacts.load(path)
        yield [artifact.detect(picture[None]) for picture in pictures]
        return
    model = tf.saved_model.load(path)  # Owns the weights; its signatures do not.
    encoded = [tf.io.encode_png(picture).numpy() for picture in pictures]
    batches = [
        encoded[start : start + batch_size]
        for start in range(0, len(encoded), batch_size)
    ]
    examples = [[example(content) for content in batch] for batch in batches]
    requests = {
        "images": [{"images": picture[None]} for picture in pictures],
        "serving_default": [
            {"image": picture.astype(np.float32), "image_id": 0} for picture in pictures
        ],
        "image_bytes": [{"image_bytes": batch} for batch in batches],
        "tf_example": [{"examples": batch} for batch in examples],
    }
    for name, calls in requests.items():
        yield [one for inputs in calls for one in _requested(model, name, inputs)]


def suppressed(
    session: Any, params: Mapping[str, Any], pictures: Sequence[np.ndarray]
) -> list[structures.Detections]:
    """Returns what NMS makes of a raw form's boxes and scores, for each picture.

    TensorRT's own suppression runs on NVIDIA's devices only. So what goes into it is
    compared, after ours.

    Args:
      session: of onnxruntime, with the model before its last node.
      params: see `configurables.retinanet_params`.
      pictures: uint8 [H, W, 3] each.
    """
    found = []
    for picture in pictures:
        inputs, scales = transforms.letterbox(picture, params["image_size"])
        boxes_yxyx, scores = session.run(
            ["boxes_yxyx", "scores"], {"inputs": inputs[None].numpy()}
        )
        sizes = tf.constant([picture.shape[:2]])
        found.append(_suppressed(params, boxes_yxyx, scores, scales[None], sizes))
    return found


def judge(
    name: str,
    ways: Iterable[Sequence[structures.Detections]],
    expected: Sequence[structures.Detections],
    tolerance: parity.Tolerance,
) -> parity.ParityReport:
    """Returns the worst agreement over all ways to call a format.

    Args:
      name: of the format.
      ways: what each of them found in the pictures.
      expected: what the checkpoint finds.
      tolerance: how far they may differ.
    Raises:
      UserError: one of them does not agree.
    """
    results = [parity.compare(found, expected, tolerance) for found in ways]
    worst = min(results, key=lambda r: (r.num_matched - r.num_compared, -r.score_drift))
    if not worst.is_within(tolerance):
        raise errors.UserError(
            f"The {name} export does not find what the checkpoint finds: {worst}. "
            f"Mates overlap by IoU {tolerance.iou} and score within {tolerance.score}; "
            f"{tolerance.share:.0%} must have one. Nothing was exported."
        )
    logging.info("export | %s | %s", name, worst)
    if not worst.num_compared:
        logging.warning(
            "export | %s was checked on pictures in which the checkpoint finds too "
            "little to compare; give it others: --check_images.",
            name,
        )
    return worst


def _suppressed(params, boxes_yxyx, scores, scales, sizes):
    """Returns Detections of every anchor's boxes and scores."""
    num_classes = scores.shape[-1]
    pairs = scores.reshape([1, -1])
    count = min(_MOST_CANDIDATES, pairs.shape[1])
    best_scores, best = tf.math.top_k(pairs, count)
    found = params["nms_fn"](
        decode.Candidates(
            tf.gather(boxes_yxyx, best // num_classes, batch_dims=1),
            best_scores,
            best % num_classes,
        )
    )
    ids = params["categories"].ids.astype(np.int32)
    return structures.Detections(
        decode.to_original(found.boxes_yxyx, scales, sizes).numpy(),
        found.scores.numpy(),
        ids[found.classes.numpy()],
        found.num_detections.numpy(),
    )


def example(encoded: bytes) -> bytes:
    """Returns a serialized tf.Example of a picture file."""
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))
    features = tf.train.Features(feature={"image/encoded": feature})
    return tf.train.Example(features=features).SerializeToString()


def _requested(model, name, inputs):
    """Returns what a signature finds, image by image."""
    tensors = {key: tf.constant(value) for key, value in inputs.items()}
    with runtimes.requesting():
        found = model.signatures[name](**tensors)
    if name == "serving_default":
        found = {key: value[None] for key, value in found.items()}
    batch = runtimes.detections(found)
    rows = range(len(batch.scores))
    return [structures.Detections(*(x[i : i + 1] for x in batch)) for i in rows]
