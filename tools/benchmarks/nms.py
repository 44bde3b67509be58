"""Measures non-maximum suppression on a CPU, beside TensorFlow's own operations.

  python tools/benchmarks/nms.py [--images=8] [--classes=80] [--candidates=5000]

Two scenes are made up, with scores as a trained network has them (few are high) and as
a young one has them (all lie above the threshold). All contenders get the same pairs of
box and class, best first, and run in turn, round after round; a Markdown table of the
medians comes out. The contenders of TensorFlow are

  combined_non_max_suppression    boxes [B, C, 1, 4] and scores [B, C, K], each box with
                                  the score of its one class
  per-class loop                  non_max_suppression_with_scores for each image and
                                  class, then the best of all, in one traced function
"""

import retinanet_tpu.startup.cpu

import statistics
import sys
import time

import numpy as np
import tensorflow as tf
from absl import flags

from retinanet_tpu.detections import decode, nms
from retinanet_tpu.startup import guard

_IMAGES = flags.DEFINE_integer("images", 8, "B.", lower_bound=1)
_CLASSES = flags.DEFINE_integer("classes", 80, "K.", lower_bound=1)
_CANDIDATES = flags.DEFINE_integer("candidates", 5000, "C.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 15, "Of which the median is shown.")

_THRESHOLDS = {"iou_threshold": 0.5, "score_threshold": 0.05}
_MAX_DETECTIONS = 100
_SIZE = 640  # Of the image, px.


def scene(mean_logit: float, shape: tuple[int, int], num_classes: int):
    """Returns Candidates: objects of 10 to 150 px, each seen by about ten anchors.

    Args:
      mean_logit: of the scores, which spread by 1.
      shape: (B, C).
      num_classes: K.
    """
    rng = np.random.default_rng(0)
    num_objects = max(1, shape[1] // 10)
    centers = rng.uniform(0, _SIZE, (shape[0], num_objects, 2))
    sides = rng.uniform(10, 150, (shape[0], num_objects, 2))
    classes = rng.integers(0, num_classes, (shape[0], num_objects))
    which = rng.integers(0, num_objects, shape)

    def seen(values):
        return np.stack([row[i] for row, i in zip(values, which, strict=True)])

    noise = rng.normal(0, 0.1, (2, *shape, 2)) * seen(sides)
    middles, halves = seen(centers) + noise[0], seen(sides) / 2 + noise[1] / 2
    boxes = np.concatenate([middles - halves, middles + halves], axis=-1)
    logits = -np.sort(-rng.normal(mean_logit, 1.0, shape), axis=-1)
    return decode.Candidates(
        tf.constant(boxes.clip(0, _SIZE), tf.float32),
        tf.constant(1 / (1 + np.exp(-logits)), tf.float32),
        tf.constant(seen(classes), tf.int32),
    )


def combined(candidates: decode.Candidates, num_classes: int):
    """Returns what combined_non_max_suppression makes of them."""
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


def per_class_loop(candidates: decode.Candidates, num_classes: int, sigma: float):
    """Returns a loop over images and classes; a sigma above 0 makes it soft."""
    scores = tf.one_hot(candidates.classes, num_classes) * candidates.scores[..., None]
    iou_threshold = 1.0 if sigma else _THRESHOLDS["iou_threshold"]

    def one_class(boxes_yxyx, class_scores):
        _, kept = tf.image.non_max_suppression_with_scores(
            boxes_yxyx,
            class_scores,
            _MAX_DETECTIONS,
            iou_threshold=iou_threshold,
            score_threshold=_THRESHOLDS["score_threshold"],
            soft_nms_sigma=sigma / 2,  # TensorFlow's is exp(-IoU^2 / (2 sigma)).
        )
        return kept

    def detect():
        images = []
        for image in range(scores.shape[0]):
            boxes_yxyx = candidates.boxes_yxyx[image]
            kept = tf.concat(
                [
                    one_class(boxes_yxyx, scores[image, :, k])
                    for k in range(num_classes)
                ],
                axis=0,
            )
            kept = tf.pad(kept, [[0, _MAX_DETECTIONS]])
            images.append(tf.math.top_k(kept, _MAX_DETECTIONS).values)
        return tf.stack(images)

    return detect


def contenders(candidates: decode.Candidates, num_classes: int):
    """Returns functions without arguments that return scores [B, D], by name."""

    def ours(variant):
        suppress = nms.NMS(variant, max_detections=_MAX_DETECTIONS, **_THRESHOLDS)
        return lambda: suppress(candidates).scores

    return {
        **{variant: ours(variant) for variant in nms.VARIANTS if variant != "combined"},
        "`combined_non_max_suppression`": combined(candidates, num_classes),
        "per-class loop, hard": per_class_loop(candidates, num_classes, 0.0),
        "per-class loop, soft": per_class_loop(candidates, num_classes, 0.5),
    }


def medians(functions, num_rounds: int) -> dict[str, float]:
    """Returns ms of each, run in turn."""
    traced = {name: tf.function(fn) for name, fn in functions.items()}
    times = {name: [] for name in traced}
    for number in range(-2, num_rounds):  # Two to warm up.
        for name, fn in traced.items():
            start = time.perf_counter()
            fn().numpy()
            if number >= 0:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def check(functions) -> None:
    """Makes sure that those who do the same found the same."""
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
    shape = (_IMAGES.value, _CANDIDATES.value)
    columns = {}
    for name, mean_logit in (("few high scores", -5.0), ("all above", -1.0)):
        candidates = scene(mean_logit, shape, _CLASSES.value)
        functions = contenders(candidates, _CLASSES.value)
        check(functions)
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
