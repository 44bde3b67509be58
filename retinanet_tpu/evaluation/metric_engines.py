"""Computes COCO's metrics with pycocotools, or faster with hotcoco.

pycocotools is the reference. hotcoco, the extra `fast-eval`, has the same results to
the last bit in 1 to 3 % of the time. `CheckedEngine` compares both before it uses
hotcoco.
"""

import contextlib
import importlib
import importlib.metadata
import io
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from pycocotools import cocoeval
from pycocotools.coco import COCO


class DetectionColumns(NamedTuple):
    """The detections of an evaluation as columns, in the order of their images.

    Attributes:
      image_ids: int64 [N], ids of the annotation file.
      category_ids: int64 [N], ids of the annotation file.
      boxes_xywh: float64 [N, 4], pixels of the original image.
      scores: float64 [N], the confidences.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    boxes_xywh: np.ndarray
    scores: np.ndarray


class EngineResult(NamedTuple):
    """The metrics that an engine computed.

    Attributes:
      engine: The name and version of the engine, such as "pycocotools 2.0.11".
      stats: float64 [12], COCO's metrics in the order of `COCOeval.stats`.
      precision: float64 [IoU threshold, recall, category, area range, maximum of
        detections], with the categories in the order of their ids; -1 without
        annotations.
    """

    engine: str
    stats: np.ndarray
    precision: np.ndarray


# (annotation file, detections, rising ids of the evaluated images) -> metrics. Each
# image of a detection is evaluated.
EngineFn = Callable[[COCO, DetectionColumns, Sequence[int]], EngineResult]


def index(dataset: dict[str, Any]) -> COCO:
    """Returns pycocotools' index of the content of an annotation file.

    Args:
      dataset: The content, as of `annotation_file.read`.
    """
    coco = COCO()
    coco.dataset = dataset
    with _no_output():
        coco.createIndex()
    return coco


def pycocotools_metrics(
    ground_truth: COCO, detected: DetectionColumns, image_ids: Sequence[int]
) -> EngineResult:
    """Returns the metrics that pycocotools computes.

    Args:
      ground_truth: The annotation file.
      detected: The detections.
      image_ids: The rising ids of the evaluated images.
    """
    areas = detected.boxes_xywh[:, 2] * detected.boxes_xywh[:, 3]
    columns = (*detected, areas)
    # COCO.loadRes raises IndexError on an empty list and adds a polygon to each box.
    records = [
        {
            "id": number,
            "image_id": image_id,
            "category_id": category_id,
            "bbox": box,
            "score": score,
            "area": area,
            "iscrowd": 0,
        }
        for number, (image_id, category_id, box, score, area) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True), start=1
        )
    ]
    dataset = {key: ground_truth.dataset[key] for key in ("images", "categories")}
    detections = index({**dataset, "annotations": records})
    evaluator = cocoeval.COCOeval(ground_truth, detections, iouType="bbox")
    evaluator.params.imgIds = list(image_ids)
    version = importlib.metadata.version("pycocotools")
    return _run(evaluator, f"pycocotools {version}")


def hotcoco_metrics(
    ground_truth: COCO, detected: DetectionColumns, image_ids: Sequence[int]
) -> EngineResult:
    """Returns the metrics that hotcoco computes.

    Args:
      ground_truth: The annotation file.
      detected: The detections.
      image_ids: The rising ids of the evaluated images.
    Raises:
      ImportError: hotcoco is not installed or not usable.
    """
    hotcoco = importlib.import_module("hotcoco")
    category_ids = sorted(ground_truth.cats)
    # Positions replace ids: hotcoco reads those of detections as float64, which cannot
    # represent all integers above 2**53.
    truth = hotcoco.COCO.from_arrays(
        [{"id": position} for position in range(len(image_ids))],
        [{"id": i, "name": str(i)} for i in range(len(category_ids))],
        **_annotation_columns(ground_truth, image_ids, category_ids),
    )
    images, categories = _positions(detected, image_ids, category_ids)
    detections = truth.load_res(
        np.column_stack([images, detected.boxes_xywh, detected.scores, categories])
    )
    evaluator = hotcoco.COCOeval(truth, detections, "bbox")
    return _run(evaluator, f"hotcoco {hotcoco.__version__}")


def _positions(
    detected: DetectionColumns, image_ids: Sequence[int], category_ids: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions of the detections' images and categories among the ids."""
    return (
        np.searchsorted(image_ids, detected.image_ids),
        np.searchsorted(category_ids, detected.category_ids),
    )


def _annotation_columns(
    ground_truth: COCO, image_ids: Sequence[int], category_ids: Sequence[int]
) -> dict[str, np.ndarray]:
    """Returns the annotations of some images, as arguments of `COCO.from_arrays`."""
    annotations = [
        annotation
        for image_id in image_ids
        for annotation in ground_truth.imgToAnns.get(image_id, ())
    ]

    def column(name: str, dtype: type) -> np.ndarray:
        return np.array([annotation[name] for annotation in annotations], dtype)

    return {
        "image_ids": np.searchsorted(image_ids, column("image_id", np.int64)),
        "category_ids": np.searchsorted(category_ids, column("category_id", np.int64)),
        "boxes": column("bbox", np.float64).reshape(-1, 4),
        "area": column("area", np.float64),
        "iscrowd": column("iscrowd", np.int64),
        "ids": np.arange(1, len(annotations) + 1),
    }


def _run(evaluator: Any, engine: str) -> EngineResult:
    """Runs a COCOeval of either package, which have the same methods."""
    with _no_output():
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    precision = evaluator.eval["precision"]
    return EngineResult(engine, np.asarray(evaluator.stats, np.float64), precision)


def _no_output() -> contextlib.AbstractContextManager[Any]:
    return contextlib.redirect_stdout(io.StringIO())


class CheckedEngine:
    """hotcoco, compared with pycocotools at its first use, or else pycocotools.

    The comparison is part of the first evaluation. It covers all images of a small
    evaluation, and images at even distances of a large one. It is repeated in later
    evaluations until one has an AP above 0.

    pycocotools computes all metrics after a difference, an exception of hotcoco or a
    fork.
    """

    def __init__(
        self,
        fast_fn: EngineFn = hotcoco_metrics,
        reference_fn: EngineFn = pycocotools_metrics,
        *,
        max_check_secs: float = 0.5,
    ):
        """Initializes the engine.

        Args:
          fast_fn: The engine to use.
          reference_fn: The engine to compare it with and to fall back to.
          max_check_secs: The approximate CPU time of pycocotools in a comparison, s,
            without its 5 ms for each category.
        """
        self._fast_fn = fast_fn
        self._reference_fn = reference_fn
        self._max_check_secs = max_check_secs
        self._is_checked = False
        self._has_failed = False
        self._process: int | None = None

    def __call__(
        self, ground_truth: COCO, detected: DetectionColumns, image_ids: Sequence[int]
    ) -> EngineResult:
        """Returns the metrics; the arguments are those of an EngineFn."""
        inputs = (ground_truth, detected, image_ids)
        result = self._try_fast(*inputs)
        if result is None or not self._is_equal_to_reference(result, *inputs):
            return self._reference_fn(*inputs)
        return result

    def _try_fast(self, *inputs: Any) -> EngineResult | None:
        """Returns the result of the fast engine, None if it cannot be used."""
        self._check_process()
        if self._has_failed:
            return None
        try:
            return self._fast_fn(*inputs)
        except BaseException as error:
            # A panic of Rust code is not an Exception.
            is_panic = type(error).__name__ == "PanicException"
            if not isinstance(error, Exception) and not is_panic:
                raise
            self._has_failed = True
            if isinstance(error, ModuleNotFoundError) and error.name == "hotcoco":
                logging.info(
                    "pycocotools computes the metrics; hotcoco computes the same ones "
                    "faster: pip install -e '.[fast-eval]'"
                )
            else:
                logging.warning(
                    "hotcoco failed; pycocotools computes the metrics of this process: "
                    "%r",
                    error,
                )
            return None

    def _check_process(self) -> None:
        """Rules out a forked process, in which hotcoco's threads do not exist."""
        if self._process is None:
            self._process = os.getpid()
        if self._process != os.getpid() and not self._has_failed:
            self._has_failed = True
            logging.warning(
                "This process is a fork of one that uses hotcoco, in which hotcoco "
                "would wait forever; pycocotools computes the metrics."
            )

    def _is_equal_to_reference(
        self,
        result: EngineResult,
        ground_truth: COCO,
        detected: DetectionColumns,
        image_ids: Sequence[int],
    ) -> bool:
        """Compares both engines unless that was done; a difference is an error."""
        if self._is_checked:
            return True
        sample = self._sample(ground_truth, detected, image_ids)
        inputs = (ground_truth, *sample)
        is_whole = len(sample[1]) == len(image_ids)
        fast = result if is_whole else self._try_fast(*inputs)
        if fast is None:
            return False
        reference = self._reference_fn(*inputs)
        difference = _difference(fast, reference)
        if difference:
            self._has_failed = True
            logging.error(
                "%s and %s differ on %d images with %d detections: %s. %s computes "
                "the metrics of this process.",
                fast.engine,
                reference.engine,
                len(sample[1]),
                len(sample[0].scores),
                difference,
                reference.engine,
            )
        # Equal zeros prove little, so the next evaluation is checked too.
        self._is_checked = reference.stats[0] > 0
        return not difference

    def _sample(
        self, ground_truth: COCO, detected: DetectionColumns, image_ids: Sequence[int]
    ) -> tuple[DetectionColumns, Sequence[int]]:
        """Returns the detections and ids of the images to compare."""
        secs = _pycocotools_secs(ground_truth, detected, image_ids)
        if secs <= self._max_check_secs:
            return detected, image_ids
        sampled_ids = image_ids[:: math.ceil(secs / self._max_check_secs)]
        is_sampled = np.isin(detected.image_ids, sampled_ids)
        return DetectionColumns(*(x[is_sampled] for x in detected)), sampled_ids


def _pycocotools_secs(
    ground_truth: COCO, detected: DetectionColumns, image_ids: Sequence[int]
) -> float:
    """Estimates the CPU time of `COCOeval.evaluate`, s.

    The three costs are those of tools/benchmarks/coco_metric.py on a few numbers of
    images, classes, boxes and detections.
    """
    category_ids = sorted(ground_truth.cats)
    num_pairs = len(image_ids) * len(category_ids)
    truth = _annotation_columns(ground_truth, image_ids, category_ids)
    boxes = truth["image_ids"] * len(category_ids) + truth["category_ids"]
    images, categories = _positions(detected, image_ids, category_ids)
    of_detections = images * len(category_ids) + categories
    ordered = np.sort(boxes)
    first, last = (
        np.searchsorted(ordered, of_detections, s) for s in ("left", "right")
    )
    return (
        12e-6 * np.sum(last - first)  # Each detection and box of an image and class.
        + 70e-6 * len(of_detections)
        + 40e-6 * num_pairs
    )


def _difference(fast: EngineResult, reference: EngineResult) -> str:
    """Describes how two results differ; empty if all bits are equal."""
    if fast.precision.shape != reference.precision.shape:
        return f"shapes {fast.precision.shape} and {reference.precision.shape}"
    num_precisions = np.count_nonzero(fast.precision != reference.precision)
    if np.array_equal(fast.stats, reference.stats) and not num_precisions:
        return ""
    largest = np.max(np.abs(fast.precision - reference.precision))
    return (
        f"metrics {fast.stats.tolist()} and {reference.stats.tolist()}; "
        f"{num_precisions} of {reference.precision.size} precisions, by at most "
        f"{largest:.3g}"
    )


# One for the process, so that several evaluations need one comparison.
PROCESS_ENGINE = CheckedEngine()
