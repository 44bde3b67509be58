"""The records of an analysis: what `analyze` computes and `page` shows.

Boxes are float [4], (ymin, xmin, ymax, xmax), in pixels of the original image. An AP is
in 0..1, or -1 if there is nothing to measure, as in pycocotools.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

# The kinds of errors, in the order in which they are shown. TIDE, arXiv:2008.08115.
ERROR_KINDS = (
    "class",  # The right place, another class.
    "localization",  # The right class, too little overlap.
    "both",  # Another class, and too little overlap.
    "duplicate",  # A better detection has the object already.
    "background",  # No object is near.
    "missed",  # An object that no detection explains.
)


# The kind of an annotated object without a correct detection. If a detection of another
# class or place explains it, it is no "missed" error.
NOT_DETECTED = "not detected"


class Curve(NamedTuple):
    """Precision and recall of a class by the threshold of the score, at IoU 0.5.

    Attributes:
      thresholds: float [T], rising.
      num_correct: int [T], the correct detections with at least this score.
      num_wrong: int [T], the others.
      num_objects: The number of annotated objects, without crowds.
    """

    thresholds: np.ndarray
    num_correct: np.ndarray
    num_wrong: np.ndarray
    num_objects: int

    @property
    def precision(self) -> np.ndarray:
        """Returns float [T]; 1 where nothing is detected."""
        detected = self.num_correct + self.num_wrong
        return np.where(detected > 0, self.num_correct / np.maximum(detected, 1), 1.0)

    @property
    def recall(self) -> np.ndarray:
        """Returns float [T]; 0 without objects."""
        return self.num_correct / max(self.num_objects, 1)

    @property
    def f1(self) -> np.ndarray:
        """Returns float [T]."""
        total = self.num_correct + self.num_wrong + self.num_objects
        return 2 * self.num_correct / np.maximum(total, 1)

    @property
    def best(self) -> int | None:
        """Returns the index of the highest F1; of equal ones the highest threshold.

        None if no detection is correct.
        """
        f1 = self.f1
        if not len(f1) or f1.max() <= 0:
            return None
        return len(f1) - 1 - int(np.argmax(f1[::-1]))

    @property
    def best_threshold(self) -> float | None:
        """Returns the threshold of the highest F1; None if no detection is correct."""
        return None if self.best is None else float(self.thresholds[self.best])


class ClassResult(NamedTuple):
    """The result of a class, or of all classes together.

    Attributes:
      name: The name of the class.
      num_objects: The number of annotated objects, without crowds.
      num_detections: The number of detections.
      ap: The AP.
      ap50: The AP at IoU 0.5.
      ap75: The AP at IoU 0.75.
      curve: Precision and recall by threshold.
      precision_by_recall: float [2, 101], the precision at the recalls 0, 0.01, …, 1,
        at IoU 0.5 and 0.75.
    """

    name: str
    num_objects: int
    num_detections: int
    ap: float
    ap50: float
    ap75: float
    curve: Curve
    precision_by_recall: np.ndarray

    @property
    def threshold(self) -> float:
        """Returns the score of the highest F1, or 0 if no detection is correct."""
        return self.curve.best_threshold or 0.0


class ErrorCost(NamedTuple):
    """The cost of a kind of errors.

    Attributes:
      kind: A name of ERROR_KINDS.
      num_errors: The number of errors.
      ap50_cost: The AP at IoU 0.5 that is gained if these errors alone are corrected.
    """

    kind: str
    num_errors: int
    ap50_cost: float


class Confusion(NamedTuple):
    """Which classes are detected as which.

    Attributes:
      names: The K names of the classes.
      threshold: The lowest score of the detections that count: the best threshold of
        all classes, or 0 if no detection is correct.
      counts: int [K + 1, K + 1]: the object's class in rows, the detection's in
        columns. The last row is background, the last column is missed.
    """

    names: Sequence[str]
    threshold: float
    counts: np.ndarray


class Group(NamedTuple):
    """The result of a part of the objects or images.

    Attributes:
      dimension: What the groups of this kind differ in, such as "size".
      name: The name of the group, such as "small: below 32 px".
      num_objects: The number of annotated objects in it.
      ap: The AP; other objects are ignored.
      ap50: The AP at IoU 0.5.
      recall50: The share of objects that a detection of its class finds at IoU 0.5.
    """

    dimension: str
    name: str
    num_objects: int
    ap: float
    ap50: float
    recall50: float


class CalibrationBin(NamedTuple):
    """Detections of similar scores.

    Attributes:
      low: The lowest score of the bin.
      high: The score at which the next bin begins.
      mean_score: The mean score.
      precision: The share that are right at IoU 0.5.
      num_detections: The number of detections.
    """

    low: float
    high: float
    mean_score: float
    precision: float
    num_detections: int


class ShownBox(NamedTuple):
    """A box of an image.

    Attributes:
      box_yxyx: float [4], px of the original image.
      name: The name of the class.
      score: The score of a detection; None for an annotated object.
      kind: "correct" or a name of ERROR_KINDS; for an object "found",
        NOT_DETECTED or "crowd".
      iou: The IoU with the object, or detection, that explains the kind; 0 if none.
    """

    box_yxyx: tuple[float, float, float, float]
    name: str
    score: float | None
    kind: str
    iou: float


class ImageResult(NamedTuple):
    """An image with its objects and its detections.

    Attributes:
      image_id: The id in the annotation file.
      file_name: The file name in the annotation file, or "".
      height: The height, px; 0 if it is not annotated.
      width: The width, px; 0 if it is not annotated.
      f1: The F1 at the best threshold of all classes; 1 if there is nothing to find
        and nothing is detected.
      objects: The annotated objects.
      detections: The detections with at least that threshold, best first.
    """

    image_id: int
    file_name: str
    height: int
    width: int
    f1: float
    objects: Sequence[ShownBox]
    detections: Sequence[ShownBox]


class LabelIssue(NamedTuple):
    """An annotation that may be wrong, because a confident detection contradicts it.

    Attributes:
      image_id: The id of the image.
      reason: "missing label", "wrong class" or "loose box".
      detection: The detection.
      annotated: The annotated object, or None.
    """

    image_id: int
    reason: str
    detection: ShownBox
    annotated: ShownBox | None


class Analysis(NamedTuple):
    """The analysis of an evaluation.

    Attributes:
      metrics: The twelve metrics of COCO by name.
      all_classes: The result of all classes together: their means, and the curve of all
        detections.
      classes: The result of each class.
      errors: The cost of each kind of errors, in the order of ERROR_KINDS.
      confusion: The confusion of classes at the best threshold.
      groups: The groups by size, aspect ratio, crowding and, if there are several,
        source of the images.
      calibration: The bins of scores, from the lowest to the highest.
      calibration_error: The mean of |mean score - precision| over all detections.
      images: All images, the worst F1 first.
      label_issues: The suspected annotations, the most confident first.
    """

    metrics: Mapping[str, float]
    all_classes: ClassResult
    classes: Sequence[ClassResult]
    errors: Sequence[ErrorCost]
    confusion: Confusion
    groups: Sequence[Group]
    calibration: Sequence[CalibrationBin]
    calibration_error: float
    images: Sequence[ImageResult]
    label_issues: Sequence[LabelIssue]
