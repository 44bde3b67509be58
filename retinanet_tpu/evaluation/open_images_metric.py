"""Evaluates detections by the metric of the Open Images Challenge.

  metric = open_images_metric.OpenImagesMetric(hierarchy="hierarchy.json")
  result = metric(truth, detected, image_ids)

The result is the mean over the classes of the average precision at an IoU of 0.5. Three
rules distinguish it from Pascal VOC's:

- Group-of boxes (IsGroupOf, `iscrowd` in COCO files) surround several objects. Of the
  detections inside one, the best is correct and the others do not count.
- A box also counts for the ancestors of its class.
- A detection counts only if its class was verified in its image: present or absent.

Source: Open Images Challenge 2018 and 2019, object detection track, "Evaluation", and
its implementation in the TensorFlow Object Detection API,
`OpenImagesDetectionChallengeEvaluator`.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools.coco import COCO

from retinanet_tpu import errors
from retinanet_tpu.evaluation import annotation_file, class_hierarchy, metric_engines

AP50 = "open_images_AP50"
PER_CLASS = "open_images_per_class"
# The keys of an image whose values are category ids, as in LVIS's annotations.
POSITIVE = "pos_category_ids"
NEGATIVE = "neg_category_ids"
_MIN_OVERLAP = 0.5  # Both of IoU and of the share of a detection inside a group.
_MAX_PAIRS = 1 << 20  # The pairs of boxes compared at once; 100 MB.


class _Boxes(NamedTuple):
    """Boxes of some images and classes.

    Attributes:
      keys: int64 [N], the position of the image times K plus that of the class.
      corners: float64 [N, 4], left, top, right and bottom, px.
    """

    keys: np.ndarray
    corners: np.ndarray

    def select(self, rows: np.ndarray) -> "_Boxes":
        return _Boxes(self.keys[rows], self.corners[rows])


class _Truth(NamedTuple):
    """The annotations of the evaluated images, expanded to the ancestors.

    Attributes:
      objects: The boxes of single objects, by rising key.
      groups: The group-of boxes, by rising key.
      verified: int64 [V], the rising keys of the verified classes of the images; None
        if all are verified.
    """

    objects: _Boxes
    groups: _Boxes
    verified: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class OpenImagesMetric:
    """The metric of the Open Images Challenge.

    Attributes:
      hierarchy: The path of the hierarchy of the classes, such as
        `bbox_labels_600_hierarchy.json`; None evaluates each class by itself.
      expand_detections: Whether detections too count for the ancestors of their class.
        The challenge does not expand them, and expects detections of all ancestors. A
        network that is trained on the annotations as they are has none of these.
      group_of_weight: The weight of a group-of box as an object. 1 is that of the
        challenge. 0 ignores group-of boxes and the detections inside, as the metric of
        Open Images V2 (2017) does.

    Raises:
      UserError: The weight is not between 0 and 1.
    """

    hierarchy: str | None = None
    expand_detections: bool = True
    group_of_weight: float = 1.0

    def __post_init__(self):
        """Checks the weight."""
        if not 0 <= self.group_of_weight <= 1:
            raise errors.UserError(
                f"OpenImagesMetric.group_of_weight is {self.group_of_weight}; it must "
                "be between 0 and 1."
            )

    def check(self, ground_truth: COCO) -> None:
        """Checks that the annotations have what the metric requires.

        Args:
          ground_truth: The annotations, see `coco_metric.ground_truth`.
        Raises:
          UserError: The hierarchy is not that of the annotations, or an image label is
            not a category.
        """
        self._ancestors(ground_truth)
        _image_labels(ground_truth, sorted(ground_truth.imgs))

    def __call__(
        self,
        ground_truth: COCO,
        detected: metric_engines.DetectionColumns,
        image_ids: Sequence[int],
    ) -> dict[str, Any]:
        """Returns the metric of some images.

        Detections of equal scores count in the order of the image ids, and in an image
        in the given order. Detections without area are ignored.

        Args:
          ground_truth: The annotations, see `coco_metric.ground_truth`.
          detected: The detections of these images.
          image_ids: The rising ids of the evaluated images.
        Returns:
          `open_images_AP50`, the mean over the classes with a box, and
          `open_images_per_class`, {category name: AP}, -1 without a box. The mean is -1
          if no class has a box.
        Raises:
          UserError: See `check`.
        """
        ancestors = self._ancestors(ground_truth)
        num_classes = len(ancestors)
        truth = _collect_truth(ground_truth, image_ids, ancestors)
        boxes, scores = _collect_detections(
            detected,
            np.asarray(image_ids, np.int64),
            np.array(sorted(ground_truth.cats), np.int64),
            ancestors if self.expand_detections else np.eye(num_classes, dtype=bool),
        )
        if truth.verified is not None:
            is_verified = np.isin(boxes.keys, truth.verified)
            boxes, scores = boxes.select(is_verified), scores[is_verified]
        order = np.argsort(-scores, kind="stable")
        boxes = boxes.select(order)
        counts, weights = _judge(boxes, truth, self.group_of_weight)
        aps = _average_precisions(
            boxes.keys[counts] % num_classes,
            weights[counts],
            np.bincount(truth.objects.keys % num_classes, minlength=num_classes)
            + self.group_of_weight
            * np.bincount(truth.groups.keys % num_classes, minlength=num_classes),
        )
        names = [ground_truth.cats[i]["name"] for i in sorted(ground_truth.cats)]
        has_boxes = aps >= 0
        return {
            AP50: float(aps[has_boxes].mean()) if has_boxes.any() else -1.0,
            PER_CLASS: dict(zip(names, aps.tolist(), strict=True)),
        }

    def _ancestors(self, ground_truth: COCO) -> np.ndarray:
        """Returns bool [K, K]; see `class_hierarchy.read`."""
        categories = [ground_truth.cats[i] for i in sorted(ground_truth.cats)]
        if self.hierarchy is None:
            return np.eye(len(categories), dtype=bool)
        return class_hierarchy.read(self.hierarchy, categories)


def table(result: Mapping[str, Any]) -> str:
    """Returns the metric, and the AP of each class with a box by falling AP.

    Args:
      result: The result of an `OpenImagesMetric`.
    """
    aps = {name: ap for name, ap in result[PER_CLASS].items() if ap >= 0}
    width = max(map(len, aps), default=0)
    lines = [f"Open Images AP50 {result[AP50]:.3f}, mean over {len(aps)} classes"]
    for name in sorted(aps, key=lambda name: -aps[name]):
        lines.append(f"{name:<{width}} {aps[name]:.3f}")
    return "\n".join(lines)


def _collect_truth(
    ground_truth: COCO, image_ids: Sequence[int], ancestors: np.ndarray
) -> _Truth:
    """Returns the annotations of some images."""
    category_ids = sorted(ground_truth.cats)
    rows = [
        (position, item["category_id"], bool(item["iscrowd"]), *item["bbox"])
        for position, image_id in enumerate(image_ids)
        for item in ground_truth.imgToAnns.get(image_id, ())
    ]
    columns = np.array(rows, np.float64).reshape(-1, 7)
    # Ids may exceed the integers of float64; positions do not.
    classes = np.searchsorted(category_ids, np.array([r[1] for r in rows], np.int64))
    owners, keys = _expand(columns[:, 0].astype(np.int64), classes, ancestors)
    boxes = _Boxes(keys, _corners(columns[:, 3:])[owners])
    is_group = columns[owners, 2] > 0
    labels = _image_labels(ground_truth, image_ids)
    verified = None
    if labels is not None:
        positive, negative = labels
        # All kinds of an absent class are absent.
        _, present = _expand(*positive, ancestors)
        _, absent = _expand(*negative, ancestors.T)
        verified = np.unique(np.concatenate([present, absent, keys]))
    return _Truth(
        _by_key(boxes.select(~is_group)), _by_key(boxes.select(is_group)), verified
    )


def _image_labels(
    ground_truth: COCO, image_ids: Sequence[int]
) -> tuple[tuple[np.ndarray, np.ndarray], ...] | None:
    """Returns positions of images and classes of positive and of negative labels.

    There are none if no image of the file has a label.
    """
    if not any(POSITIVE in i or NEGATIVE in i for i in ground_truth.imgs.values()):
        return None
    category_ids = sorted(ground_truth.cats)
    labels = []
    for key in (POSITIVE, NEGATIVE):
        images: list[int] = []
        classes: list[int] = []
        for position, image_id in enumerate(image_ids):
            listed = ground_truth.imgs[image_id].get(key) or ()
            if not (
                isinstance(listed, list | tuple)
                and all(isinstance(i, int) and i in ground_truth.cats for i in listed)
            ):
                raise errors.UserError(
                    f"Image {image_id} has {key} {listed!r:.60}; expected a list of "
                    f"category ids, of {annotation_file.few(category_ids)}."
                )
            images += [position] * len(listed)
            classes += listed
        where = np.searchsorted(category_ids, np.array(classes, np.int64))
        labels.append((np.array(images, np.int64), where))
    return tuple(labels)


def _collect_detections(
    detected: metric_engines.DetectionColumns,
    image_ids: np.ndarray,
    category_ids: np.ndarray,
    ancestors: np.ndarray,
) -> tuple[_Boxes, np.ndarray]:
    """Returns the detections with an area by image, expanded, and their scores."""
    rows = np.flatnonzero((detected.boxes_xywh[:, 2:] > 0).all(axis=1))
    images = np.searchsorted(image_ids, detected.image_ids[rows])
    rows, images = (x[np.argsort(images, kind="stable")] for x in (rows, images))
    classes = np.searchsorted(category_ids, detected.category_ids[rows])
    owners, keys = _expand(images, classes, ancestors)
    rows = rows[owners]
    return _Boxes(keys, _corners(detected.boxes_xywh[rows])), detected.scores[rows]


def _expand(
    images: np.ndarray, classes: np.ndarray, ancestors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns an owner and a key for each item and ancestor, in the items' order."""
    counts = ancestors.sum(axis=1)
    _, listed = np.nonzero(ancestors)
    starts = np.cumsum(counts) - counts
    owners, places = _ragged(starts[classes], counts[classes])
    return owners, images[owners] * len(ancestors) + listed[places]


def _ragged(starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the owner and the value of each element of several ranges."""
    owners = np.repeat(np.arange(len(counts)), counts)
    before = np.cumsum(counts) - counts
    return owners, np.arange(len(owners)) + (starts - before)[owners]


def _corners(boxes_xywh: np.ndarray) -> np.ndarray:
    return np.concatenate(
        [boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1
    )


def _by_key(boxes: _Boxes) -> _Boxes:
    return boxes.select(np.argsort(boxes.keys, kind="stable"))


def _judge(
    boxes: _Boxes, truth: _Truth, group_of_weight: float
) -> tuple[np.ndarray, np.ndarray]:
    """Compares detections with the annotations.

    As in Pascal VOC, a detection is compared only with the box that it overlaps most,
    even if a better detection has that box.

    Args:
      boxes: The detections by falling score.
      truth: The annotations.
      group_of_weight: The weight of a group-of box.
    Returns:
      bool [D], whether a detection counts, and float64 [D], its weight as a correct
      one: 0 for a wrong one.
    """
    weights = np.zeros(len(boxes.keys))
    weights[_first_matches(boxes, truth.objects, over_union=True)[0]] = 1
    others = np.flatnonzero(weights == 0)
    firsts, inside = _first_matches(
        boxes.select(others), truth.groups, over_union=False
    )
    counts = np.ones(len(boxes.keys), bool)
    counts[others[inside]] = False
    if group_of_weight > 0:
        counts[others[firsts]] = True
        weights[others[firsts]] = group_of_weight
    return counts, weights


def _first_matches(
    boxes: _Boxes, truth: _Boxes, *, over_union: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of the first match of each annotation, and of all matches."""
    best, overlap = _best_overlaps(boxes, truth, over_union=over_union)
    rows = np.flatnonzero((best >= 0) & (overlap >= _MIN_OVERLAP))
    _, firsts = np.unique(best[rows], return_index=True)
    return rows[firsts], rows


def _best_overlaps(
    boxes: _Boxes, truth: _Boxes, *, over_union: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the annotation that each detection overlaps most, and the overlap.

    Args:
      boxes: The detections.
      truth: The annotations by rising key.
      over_union: Whether the intersection is divided by the union, or by the area of
        the detection.
    Returns:
      int64 [D], -1 without an annotation of the same key, and float64 [D].
    """
    starts = np.searchsorted(truth.keys, boxes.keys, side="left")
    counts = np.searchsorted(truth.keys, boxes.keys, side="right") - starts
    best = np.full(len(boxes.keys), -1)
    overlap = np.zeros(len(boxes.keys))
    for rows in _chunks(counts):
        owners, places = _ragged(starts[rows], counts[rows])
        ratios = _overlaps(
            boxes.corners[rows[owners]], truth.corners[places], over_union=over_union
        )
        firsts = np.cumsum(counts[rows]) - counts[rows]
        overlap[rows] = np.maximum.reduceat(ratios, firsts)
        is_best = ratios == overlap[rows[owners]]
        places = np.where(is_best, places, len(truth.keys))
        best[rows] = np.minimum.reduceat(places, firsts)
    return best, overlap


def _chunks(counts: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the rows with pairs, in parts of about _MAX_PAIRS pairs."""
    rows = np.flatnonzero(counts)
    parts = np.cumsum(counts[rows]) // _MAX_PAIRS
    yield from np.split(rows, np.flatnonzero(np.diff(parts)) + 1) if len(rows) else ()


def _overlaps(a: np.ndarray, b: np.ndarray, *, over_union: bool) -> np.ndarray:
    """Returns the overlap of each pair of boxes, given by their corners."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    intersection = np.prod(np.maximum(sides, 0), axis=1)
    area = np.prod(a[:, 2:] - a[:, :2], axis=1)
    if over_union:
        area = area + np.prod(b[:, 2:] - b[:, :2], axis=1) - intersection
    return intersection / area


def _average_precisions(
    classes: np.ndarray, weights: np.ndarray, num_boxes: np.ndarray
) -> np.ndarray:
    """Returns the average precision of each class, -1 without boxes.

    It is the area below the curve of precision by recall, after each precision is
    raised to the highest one at the same or a higher recall.

    Args:
      classes: int64 [D], the classes of the detections by falling score.
      weights: float64 [D], the weights of the correct detections; 0 for the others.
      num_boxes: float64 [K], the weighted number of boxes of each class.
    Source: Pascal VOC 2010, development kit, "Average Precision".
    """
    weights = weights[np.argsort(classes, kind="stable")]
    ends = np.cumsum(np.bincount(classes, minlength=len(num_boxes)))
    result = np.full(len(num_boxes), -1.0)
    for label, (of_class, num) in enumerate(
        zip(np.split(weights, ends[:-1]), num_boxes, strict=True)
    ):
        if num > 0:
            correct, wrong = np.cumsum(of_class), np.cumsum(of_class == 0)
            precision = correct / (correct + wrong)
            highest = np.maximum.accumulate(precision[::-1])[::-1]
            result[label] = (of_class * highest).sum() / num
    return result
