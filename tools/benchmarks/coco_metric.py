r"""Measures the CPU time and memory of COCO's metrics on synthetic detections.

  for engine in checked hotcoco pycocotools; do
    python tools/benchmarks/coco_metric.py --engine=$engine
  done

The default is of COCO's size: 5,000 images, 80 classes, 36,000 boxes and 500,000
detections. The output is a line of a Markdown table:

  CPU s, wall s   from batches of detections to the result; without reading the
                  annotation file and without the time to draw the random numbers
  MB              how much the peak memory of the process rises meanwhile
  digest          of all metrics and the precision array; equal digests mean equal bits

`checked` is the engine of an evaluation: hotcoco and its comparison with pycocotools,
which only the first evaluation of a process includes.
"""

import retinanet_tpu.startup.cpu

import hashlib
import resource
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from pycocotools.coco import COCO

from retinanet_tpu import structures
from retinanet_tpu.evaluation import coco_metric, metric_engines
from retinanet_tpu.startup import guard

FLAGS = flags.FLAGS

ENGINES: dict[str, metric_engines.EngineFn] = {
    "checked": metric_engines.CheckedEngine(),
    "hotcoco": metric_engines.hotcoco_metrics,
    "pycocotools": metric_engines.pycocotools_metrics,
}
_BATCH_SIZE = 8
_IMAGE_PX = 640
_CROWD_FRACTION = 0.012  # As in COCO val2017.


class Measurement(NamedTuple):
    """The cost of an evaluation.

    Attributes:
      cpu_secs: The CPU time of all threads.
      wall_secs: The duration.
      peak_mb: The rise of the process's peak memory, MB.
      digest: The first digits of a hash of all results.
      result: The result of `coco_metric.Evaluator`.
    """

    cpu_secs: float
    wall_secs: float
    peak_mb: float
    digest: str
    result: dict[str, Any]


def make_ground_truth(
    num_images: int, num_classes: int, boxes_per_image: float
) -> COCO:
    """Returns random annotations, of which some are crowds.

    Args:
      num_images: The number of images; their ids start at 1.
      num_classes: The number of classes; their ids start at 1.
      boxes_per_image: The mean number of boxes of an image.
    """
    rng = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, num_images + 1):
        for xywh in _random_boxes(rng, rng.poisson(boxes_per_image)).tolist():
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(rng.integers(1, num_classes + 1)),
                    "bbox": xywh,
                    "area": xywh[2] * xywh[3],
                    "iscrowd": int(rng.uniform() < _CROWD_FRACTION),
                }
            )
    return metric_engines.index(
        {
            "images": [{"id": image_id} for image_id in range(1, num_images + 1)],
            "categories": [
                {"id": i, "name": str(i)} for i in range(1, num_classes + 1)
            ],
            "annotations": annotations,
            "info": {},
        }
    )


def draw_batches(
    truth: COCO, detections_per_image: int
) -> Iterator[coco_metric.DetectionBatch]:
    """Yields detections: one near each box, the others of random boxes and classes."""
    rng = np.random.default_rng(1)
    ids = sorted(truth.imgs)
    for start in range(0, len(ids), _BATCH_SIZE):
        batch_ids = ids[start : start + _BATCH_SIZE]
        rows = [
            _draw(rng, truth, image_id, detections_per_image) for image_id in batch_ids
        ]
        boxes, scores, classes = (
            np.stack(column) for column in zip(*rows, strict=True)
        )
        counts = np.full(len(rows), detections_per_image, np.int32)
        yield (
            structures.Detections(boxes, scores, classes, counts),
            np.array(batch_ids, np.int64),
        )


def _draw(
    rng: np.random.Generator, truth: COCO, image_id: int, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    annotations = truth.imgToAnns.get(image_id, [])[:count]
    boxes_xywh = _random_boxes(rng, count)
    classes = rng.integers(1, len(truth.cats) + 1, count).astype(np.int32)
    scores = rng.beta(1, 4, count)
    for row, annotation in enumerate(annotations):
        noise = rng.normal(0, 0.08, 4) * np.tile(annotation["bbox"][2:], 2)
        boxes_xywh[row] = np.maximum(annotation["bbox"] + noise, 1)
        classes[row] = annotation["category_id"]
        scores[row] = rng.beta(3, 2)
    x, y, width, height = boxes_xywh.T
    boxes_yxyx = np.stack([y, x, y + height, x + width], axis=-1)
    order = np.argsort(-scores)
    return (
        boxes_yxyx[order].astype(np.float32),
        scores[order].astype(np.float32),
        classes[order],
    )


def _random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    sides = np.exp(rng.uniform(np.log(8), np.log(300), [count, 2]))
    return np.hstack([rng.uniform(0, 1, [count, 2]) * (_IMAGE_PX - sides), sides])


def measure(
    engine_fn: metric_engines.EngineFn, truth: COCO, detections_per_image: int
) -> Measurement:
    """Evaluates random detections.

    Args:
      engine_fn: The engine.
      truth: The annotations.
      detections_per_image: The number of detections of each image.
    """
    precisions = []

    def keep(*inputs: Any) -> metric_engines.EngineResult:
        precisions.append(engine_fn(*inputs))
        return precisions[-1]

    evaluator = coco_metric.Evaluator(truth, keep)
    cpu_secs = wall_secs = 0.0
    peak_before = _peak_mb()
    for batch in draw_batches(truth, detections_per_image):
        cpu_start, start = time.process_time(), time.monotonic()
        evaluator.add(*batch)
        cpu_secs += time.process_time() - cpu_start
        wall_secs += time.monotonic() - start
    cpu_start, start = time.process_time(), time.monotonic()
    result = evaluator.result()
    cpu_secs += time.process_time() - cpu_start
    wall_secs += time.monotonic() - start
    peak_mb = _peak_mb() - peak_before
    (computed,) = precisions
    content = computed.stats.tobytes() + computed.precision.tobytes()
    digest = hashlib.sha256(content).hexdigest()[:12]
    return Measurement(cpu_secs, wall_secs, peak_mb, digest, result)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000  # Linux: KB.


def main() -> None:
    """Runs the tool."""
    truth = make_ground_truth(
        FLAGS.num_images, FLAGS.num_classes, FLAGS.boxes_per_image
    )
    engine_fn = ENGINES[FLAGS.engine]
    done = measure(engine_fn, truth, FLAGS.detections_per_image)
    print(
        f"| {FLAGS.engine}, {done.result['metric_engine']} | {done.cpu_secs:.2f} "
        f"| {done.wall_secs:.2f} | {done.peak_mb:.0f} | {done.result['AP']:.4f} "
        f"| `{done.digest}` |"
    )


if __name__ == "__main__":
    flags.DEFINE_enum("engine", "checked", list(ENGINES), "The engine to measure.")
    flags.DEFINE_integer("num_images", 5000, "The number of images.", 1)
    flags.DEFINE_integer("num_classes", 80, "The number of classes.", 1)
    flags.DEFINE_float("boxes_per_image", 7.2, "The mean number of boxes.", 0)
    flags.DEFINE_integer("detections_per_image", 100, "The number of detections.", 0)
    guard.run(main)
