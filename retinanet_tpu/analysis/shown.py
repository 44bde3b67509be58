"""Makes the records of images and boxes that a page shows."""

import numpy as np

from retinanet_tpu import annotation_fields
from retinanet_tpu.analysis import arrays, error_types, matching, results


class Boxes:
    """The records of all objects and detections, at a threshold of the score."""

    def __init__(
        self,
        data: arrays.Data,
        matches: matching.Matches,
        types: error_types.ErrorTypes,
        threshold: float,
    ):
        """Initializes the records.

        Args:
          data: The objects and detections.
          matches: Their matches; the first threshold is 0.5.
          types: The kinds of errors.
          threshold: The lowest score of a detection that finds an object.
        """
        self._data = data
        self._kinds = error_types.kinds_of(types)
        self._iou = types.iou.tolist()
        self._boxes = data.found.boxes_yxyx.tolist()
        self._scores = data.found.score.tolist()
        self._labels = data.found.label.tolist()
        self._object_boxes = data.objects.boxes_yxyx.tolist()
        finds = matches.is_correct[0] & (data.found.score >= threshold)
        objects = matches.object[0][finds]
        self._object_iou = np.zeros(len(data.objects.label))
        self._object_iou[objects] = types.iou[finds]
        self._is_found = np.zeros(len(data.objects.label), bool)
        self._is_found[objects] = True

    def detection(self, number: int) -> results.ShownBox:
        """Returns the record of a detection.

        Args:
          number: Its index.
        """
        return results.ShownBox(
            box_yxyx=tuple(self._boxes[number]),
            name=self._data.names[self._labels[number]],
            score=self._scores[number],
            kind=self._kinds[number],
            iou=self._iou[number],
        )

    def object(self, number: int) -> results.ShownBox:
        """Returns the record of an annotated object.

        Args:
          number: Its index.
        """
        if self._data.objects.is_crowd[number]:
            kind = "crowd"
        else:
            kind = "found" if self._is_found[number] else results.NOT_DETECTED
        return results.ShownBox(
            box_yxyx=tuple(self._object_boxes[number]),
            name=self._data.names[self._data.objects.label[number]],
            score=None,
            kind=kind,
            iou=float(self._object_iou[number]),
        )


def images(
    data: arrays.Data, matches: matching.Matches, boxes: Boxes, threshold: float
) -> list[results.ImageResult]:
    """Returns all images, the worst F1 first, of equal ones those with more errors.

    Detections that are ignored, such as those inside a crowd, are left out.

    Args:
      data: The objects and detections.
      matches: Their matches; the first threshold is 0.5.
      boxes: The records of the boxes.
      threshold: The lowest score of the detections that count.
    """
    found, num_images = data.found, len(data.images)
    is_shown = found.score >= threshold
    is_correct = matches.is_correct[0] & is_shown
    is_shown = is_correct | (matches.is_wrong[0] & is_shown)
    num_objects = np.bincount(data.objects.image[matches.counts], minlength=num_images)
    num_correct = np.bincount(found.image[is_correct], minlength=num_images)
    total = num_objects + np.bincount(found.image[is_shown], minlength=num_images)
    f1 = np.where(total > 0, 2 * num_correct / np.maximum(total, 1), 1.0)
    shown = np.flatnonzero(is_shown)
    shown = shown[np.lexsort((-found.score[shown], found.image[shown]))]
    edges = np.arange(num_images + 1)
    starts = np.searchsorted(found.image[shown], edges)
    object_starts = np.searchsorted(data.objects.image, edges)
    return [
        _image(
            data.images[image],
            float(f1[image]),
            [
                boxes.object(number)
                for number in range(object_starts[image], object_starts[image + 1])
            ],
            [
                boxes.detection(number)
                for number in shown[starts[image] : starts[image + 1]].tolist()
            ],
        )
        for image in np.lexsort((2 * num_correct - total, f1)).tolist()
    ]


def _image(
    entry: dict,
    f1: float,
    objects: list[results.ShownBox],
    detections: list[results.ShownBox],
) -> results.ImageResult:
    return results.ImageResult(
        image_id=int(entry["id"]),
        file_name=str(entry.get("file_name") or ""),
        height=annotation_fields.integer(entry.get("height")) or 0,
        width=annotation_fields.integer(entry.get("width")) or 0,
        f1=f1,
        objects=objects,
        detections=detections,
    )
