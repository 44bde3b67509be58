"""Compares two sets of detections of the same images, box by box."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tpu import errors, structures
from retinanet_tpu.boxes import box_ops
from retinanet_tpu.data import transforms
from retinanet_tpu.detections import decode
from retinanet_tpu.model import retinanet
from retinanet_tpu.serving import artifacts, runtimes
from retinanet_tpu.serving.server import Detector

# Boxes at most this far apart are the same, however small: corners are float32.
_SAME_PX = 0.5

# What the check of the form for TensorRT sorts; its own node has no such limit.
_MOST_CANDIDATES = 5000


class Tolerance(NamedTuple):
    """How far apart two detections of one object may be.

    Attributes:
      iou: the least overlap of their boxes.
      score: the greatest difference of their scores.
      share: the least part of all detections that must have a mate.
      num_without: how many may be without a mate whatever their share. Where a box just
        suppresses another or just does not, the last digit decides.
    """

    iou: float
    score: float
    share: float = 1.0
    num_without: int = 0


class ParityReport(NamedTuple):
    """What a comparison found.

    Attributes:
      num_compared: detections that ought to have a mate, of both sides.
      num_matched: those that have one.
      score_drift: the greatest difference of mates' scores.
      box_drift: the greatest distance of mates' corners along an axis, px.
      mean_iou: of mates.
    """

    num_compared: int
    num_matched: int
    score_drift: float
    box_drift: float
    mean_iou: float

    def is_within(self, tolerance: Tolerance) -> bool:
        """Returns whether enough detections have a mate."""
        allowed = (1 - tolerance.share) * self.num_compared
        without = self.num_compared - self.num_matched
        return without <= max(allowed, tolerance.num_without)

    def __str__(self) -> str:
        """Returns a line that says how well it went."""
        if not self.num_compared:
            return "no detection to compare"
        return (
            f"{self.num_matched} of {self.num_compared} detections agree, scores to "
            f"{self.score_drift:.2g}, boxes to {self.box_drift:.2g} px "
            f"(mean IoU {self.mean_iou:.4f})"
        )


def compare(
    found: Sequence[structures.Detections],
    expected: Sequence[structures.Detections],
    tolerance: Tolerance,
) -> ParityReport:
    """Looks for a mate of each detection, from either side.

    Which of the weakest detections come out is a matter of rounding: those that score
    within tolerance.score of the lowest score of their image need no mate.

    Args:
      found: of each image, as NumPy arrays with a batch of one.
      expected: of the same images.
      tolerance: what makes two detections mates: the same class, and near enough.
    """
    mates, num_compared, num_matched = [], 0, 0
    for pair in zip(found, expected, strict=True):
        one, other = (_unpadded(detections) for detections in pair)
        for a, b in ((one, other), (other, one)):
            needs = _needs_mate(a, b, tolerance)
            drifts = _nearest(a, b, tolerance)
            is_mated = np.isfinite(drifts[:, 0])
            num_compared += int(needs.sum())
            num_matched += int((needs & is_mated).sum())
            mates.append(drifts[is_mated])
    drifts = np.concatenate(mates or [np.zeros([0, 3])])
    worst = drifts.max(axis=0, initial=0.0)
    mean_iou = float(drifts[:, 2].mean()) if len(drifts) else float("nan")
    return ParityReport(
        num_compared, num_matched, float(worst[0]), float(worst[1]), mean_iou
    )


def _unpadded(detections):
    count = int(np.ravel(detections.num_detections)[0])
    rows = (detections.boxes_yxyx, detections.scores, detections.classes)
    return tuple(np.asarray(row)[0, :count] for row in rows)


def _needs_mate(a, b, tolerance):
    """Returns bool [N]: the detections of a that rounding does not explain away."""
    scores = [x[1].min() for x in (a, b) if len(x[1])]
    lowest = max(scores, default=0.0)
    return a[1] > lowest + tolerance.score


def _nearest(a, b, tolerance):
    """Returns [N, 3]: score and corner differences, and IoU, of each a's best mate.

    Infinite where b has none.
    """
    result = np.full([len(a[1]), 3], np.inf)
    if not len(a[1]) or not len(b[1]):
        return result
    iou = box_ops.iou(a[0].astype(np.float32), b[0].astype(np.float32)).numpy()
    corners = np.abs(a[0][:, None] - b[0][None]).max(axis=-1)
    iou = np.where(corners == 0, 1.0, iou)  # Of boxes without area it is 0.
    scores = np.abs(a[1][:, None] - b[1][None])
    is_mate = (iou >= tolerance.iou) | (corners <= _SAME_PX)
    is_mate &= (scores <= tolerance.score) & (a[2][:, None] == b[2][None])
    best = np.where(is_mate, corners, np.inf).argmin(axis=1)
    rows = np.arange(len(best))
    stacked = np.stack([scores, corners, iou], axis=-1)[rows, best]
    return np.where(is_mate[rows, best][:, None], stacked, np.inf)


def predict(
    network: retinanet.RetinaNet,
    recipe: Detector,
    pictures: Sequence[np.ndarray],
) -> list[structures.Detections]:
    """Returns what the checkpoint finds in each image, on evaluation's way.

    Args:
      network: has the checkpoint's weights.
      recipe: The recipe of the network.
      images: uint8 [H, W, 3] each.
    """
    image_size = recipe.image_size
    window_fn = functools.partial(transforms.crop_window, output_size=image_size)

    @tf.function
    def predict_one(encoded):
        resized, size, window = transforms.decode_and_resize(encoded, window_fn)
        features = structures.Features(
            images=transforms.pad_to_size(resized, image_size)[tf.newaxis],
            image_ids=tf.constant([0], tf.int64),
            image_sizes=size[tf.newaxis],
            scales=window.scales[tf.newaxis],
        )
        predictions = network(features.images, is_training=False)
        return recipe.detect(predictions, features.scales, features.image_sizes)

    found = [predict_one(tf.io.encode_png(picture)) for picture in pictures]
    return [structures.Detections(*(x.numpy() for x in one)) for one in found]


def found_by(
    path: str, pictures: Sequence[np.ndarray], *, batch_size: int
) -> Iterator[list[structures.Detections]]:
    """Yields what an artifact finds in each image, by each way to call it.

    Args:
      path: see `artifacts.load`.
      images: uint8 [H, W, 3] each.
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
    session: Any, recipe: Detector, pictures: Sequence[np.ndarray]
) -> list[structures.Detections]:
    """Returns what NMS makes of a raw form's boxes and scores, for each image.

    TensorRT's own suppression runs on NVIDIA's devices only. So what goes into it is
    compared, after ours.

    Args:
      session: of onnxruntime, with the model before its last node.
      recipe: The recipe of the network.
      images: uint8 [H, W, 3] each.
    """
    found = []
    for picture in pictures:
        inputs, scales = transforms.letterbox(picture, recipe.image_size)
        boxes_yxyx, scores = session.run(
            ["boxes_yxyx", "scores"], {"inputs": inputs[None].numpy()}
        )
        sizes = tf.constant([picture.shape[:2]])
        found.append(_suppressed(recipe, boxes_yxyx, scores, scales[None], sizes))
    return found


def judge(
    name: str,
    ways: Iterable[Sequence[structures.Detections]],
    expected: Sequence[structures.Detections],
    tolerance: Tolerance,
) -> ParityReport:
    """Returns the worst agreement over all ways to call a format.

    Args:
      name: of the format.
      ways: what each of them found in the images.
      expected: what the checkpoint finds.
      tolerance: how far they may differ.
    Raises:
      UserError: one of them does not agree.
    """
    results = [compare(found, expected, tolerance) for found in ways]
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
            "export | %s was checked on images in which the checkpoint finds too "
            "little to compare; give it others: --check_images.",
            name,
        )
    return worst


def _suppressed(recipe, boxes_yxyx, scores, scales, sizes):
    """Returns Detections of every anchor's boxes and scores."""
    num_classes = scores.shape[-1]
    pairs = scores.reshape([1, -1])
    count = min(_MOST_CANDIDATES, pairs.shape[1])
    best_scores, best = tf.math.top_k(pairs, count)
    found = recipe.nms_fn(
        decode.Candidates(
            tf.gather(boxes_yxyx, best // num_classes, batch_dims=1),
            best_scores,
            best % num_classes,
        )
    )
    ids = recipe.categories.ids.astype(np.int32)
    return structures.Detections(
        decode.to_original(found.boxes_yxyx, scales, sizes).numpy(),
        found.scores.numpy(),
        ids[found.classes.numpy()],
        found.num_detections.numpy(),
    )


def example(encoded: bytes) -> bytes:
    """Returns a serialized tf.Example of an image file."""
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
