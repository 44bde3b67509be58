"""Compares non-maximum suppression with TensorFlow's own operations on a CPU.

  python tools/benchmarks/nms.py [--batch_size=8] [--num_classes=80] \
      [--num_candidates=5000]

There are two synthetic scenes: scores of a trained network (few are high) and of an
untrained one (all are above the threshold). All methods get the same pairs of box and
class, sorted by score. They run in turn, round after round. The output is a Markdown
table of the medians. TensorFlow's methods are:

  combined_non_max_suppression    boxes [B, C, 1, 4] and scores [B, C, K], each box with
                                  the score of its one class
  per-class loop                  non_max_suppression_with_scores for each image and
                                  class, then the best of all, in one traced function
"""

import retinanet_tpu.startup.cpu

import statistics
import sys
import time
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf
from absl import flags

from retinanet_tpu.detections import decode, nms
from retinanet_tpu.startup import guard

_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 8, "Number of images in a batch.", lower_bound=1
)
_NUM_CLASSES = flags.DEFINE_integer(
    "num_classes", 80, "Number of classes.", lower_bound=1
)
_NUM_CANDIDATES = flags.DEFINE_integer(
    "num_candidates",
    5000,
    "Number of pairs of box and class per image.",
    lower_bound=1,
)
_ROUNDS = flags.DEFINE_integer(
    "rounds", 15, "Number of measurements of each method; the median is printed."
)

_THRESHOLDS = {"iou_threshold": 0.5, "score_threshold": 0.05}
_MAX_DETECTIONS = 100
_SIZE = 640  # Height and width of the image, px.

NmsFn = Callable[[], tf.Tensor]  # () -> float32 scores [B, D]


def make_candidates(
    mean_logit: float, shape: tuple[int, int], num_classes: int
) -> decode.Candidates:
    """Returns candidates of synthetic objects of 10 to 150 px.

    Each object has about ten candidates with slightly different boxes.

    Args:
      mean_logit: The mean of the logits of the scores; their standard deviation is 1.
      shape: The batch size B and the number of candidates C.
      num_classes: The number of classes K.
    """
    rng = np.random.default_rng(0)
    num_objects = max(1, shape[1] // 10)
    centers = rng.uniform(0, _SIZE, (shape[0], num_objects, 2))
    sides = rng.uniform(10, 150, (shape[0], num_objects, 2))
    classes = rng.integers(0, num_classes, (shape[0], num_objects))
    object_indices = rng.integers(0, num_objects, shape)

    def per_candidate(values: np.ndarray) -> np.ndarray:
        rows = zip(values, object_indices, strict=True)
        return np.stack([row[indices] for row, indices in rows])

    noise = rng.normal(0, 0.1, (2, *shape, 2)) * per_candidate(sides)
    box_centers = per_candidate(centers) + noise[0]
    half_sides = per_candidate(sides) / 2 + noise[1] / 2
    boxes = np.concatenate([box_centers - half_sides, box_centers + half_sides], -1)
    logits = -np.sort(-rng.normal(mean_logit, 1.0, shape), axis=-1)
    return decode.Candidates(
        tf.constant(boxes.clip(0, _SIZE), tf.float32),
        tf.constant(1 / (1 + np.exp(-logits)), tf.float32),
        tf.constant(per_candidate(classes), tf.int32),
    )


def combined(candidates: decode.Candidates, num_classes: int) -> NmsFn:
    """Returns a function that calls combined_non_max_suppression.

    Args:
      candidates: The candidates.
      num_classes: The number of classes K.
    """
    scores = tf.one_hot(candidates.classes, num_classes) * candidates.scores[..., None]
    return lambda: (
        tf.image.combined_non_max_suppression(
            candidates.boxes_yxyx[:, :, None],
            scores,
            _MAX_DETECTIONS,
            _MAX_DETECTIONS,
            clip_boxes=False,
            **_THRESHOLDS,
        ).nmsed_scores
    )


def per_class_loop(
    candidates: decode.Candidates, num_classes: int, sigma: float
) -> NmsFn:
    """Returns a function that loops over images and classes.

    Args:
      candidates: The candidates.
      num_classes: The number of classes K.
      sigma: The sigma of soft NMS, 0 for hard NMS.
    """
    scores = tf.one_hot(candidates.classes, num_classes) * candidates.scores[..., None]
    iou_threshold = 1.0 if sigma else _THRESHOLDS["iou_threshold"]

    def one_class(boxes_yxyx: tf.Tensor, class_scores: tf.Tensor) -> tf.Tensor:
        _, selected_scores = tf.image.non_max_suppression_with_scores(
            boxes_yxyx,
            class_scores,
            _MAX_DETECTIONS,
            iou_threshold=iou_threshold,
            score_threshold=_THRESHOLDS["score_threshold"],
            soft_nms_sigma=sigma / 2,  # TensorFlow's is exp(-IoU^2 / (2 sigma)).
        )
        return selected_scores

    def suppress() -> tf.Tensor:
        images = []
        for image in range(scores.shape[0]):
            boxes_yxyx = candidates.boxes_yxyx[image]
            selected = tf.concat(
                [
                    one_class(boxes_yxyx, scores[image, :, k])
                    for k in range(num_classes)
                ],
                axis=0,
            )
            selected = tf.pad(selected, [[0, _MAX_DETECTIONS]])
            images.append(tf.math.top_k(selected, _MAX_DETECTIONS).values)
        return tf.stack(images)

    return suppress


def methods(candidates: decode.Candidates, num_classes: int) -> dict[str, NmsFn]:
    """Returns the methods to compare, by name.

    Args:
      candidates: The candidates.
      num_classes: The number of classes K.
    """

    def ours(variant: str) -> NmsFn:
        suppress = nms.NMS(variant, max_detections=_MAX_DETECTIONS, **_THRESHOLDS)
        return lambda: suppress(candidates).scores

    return {
        **{variant: ours(variant) for variant in nms.VARIANTS if variant != "combined"},
        "`combined_non_max_suppression`": combined(candidates, num_classes),
        "per-class loop, hard": per_class_loop(candidates, num_classes, 0.0),
        "per-class loop, soft": per_class_loop(candidates, num_classes, 0.5),
    }


def medians(functions: Mapping[str, NmsFn], num_rounds: int) -> dict[str, float]:
    """Measures functions in turn.

    Args:
      functions: The functions by name.
      num_rounds: The number of measurements of each function.

    Returns:
      The median time of each function in ms.
    """
    traced = {name: tf.function(fn) for name, fn in functions.items()}
    times: dict[str, list[float]] = {name: [] for name in traced}
    for number in range(-2, num_rounds):  # The first two rounds are a warm-up.
        for name, fn in traced.items():
            start = time.perf_counter()
            fn().numpy()
            if number >= 0:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def check_equal(functions: Mapping[str, NmsFn]) -> None:
    """Checks that equivalent methods return the same scores.

    Args:
      functions: The methods by name.

    Raises:
      AssertionError: Two of them differ.
    """
    pairs = {
        "per_class_hard": ("`combined_non_max_suppression`", "per-class loop, hard"),
        "per_class_soft": ("per-class loop, soft",),
    }
    for ours, others in pairs.items():
        for other in others:
            np.testing.assert_allclose(
                functions[ours](), functions[other](), rtol=1e-5, err_msg=other
            )


def main() -> None:
    """Runs the command."""
    shape = (_BATCH_SIZE.value, _NUM_CANDIDATES.value)
    columns = {}
    for name, mean_logit in (("few high scores", -5.0), ("all above", -1.0)):
        candidates = make_candidates(mean_logit, shape, _NUM_CLASSES.value)
        functions = methods(candidates, _NUM_CLASSES.value)
        check_equal(functions)
        columns[name] = medians(functions, _ROUNDS.value)
        is_above = candidates.scores > _THRESHOLDS["score_threshold"]
        print(f"{name}: {np.mean(is_above):.1%} above", file=sys.stderr)
    print(f"| ms for {shape[0]} images | " + " | ".join(columns) + " |")
    print("|---" * (1 + len(columns)) + "|")
    for row in next(iter(columns.values())):
        cells = [f"{column[row]:.1f}" for column in columns.values()]
        print(f"| {row} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    guard.run(main)
