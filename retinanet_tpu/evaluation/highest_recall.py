"""Computes the highest recall that perfect detections reach under COCO's limits."""

import numpy as np

from retinanet_tpu.evaluation import coco_metric

# The number of detections that count in an image and a class, those with the highest
# scores.
MAX_PER_CLASS = max(metric.max_detections for metric in coco_metric.METRICS)


def highest_recall(
    images: np.ndarray, categories: np.ndarray, max_detections: int | None = None
) -> float:
    """Returns the highest possible AR100, 1 without objects.

    Args:
      images: int64 [N], the image id of each object, without crowds.
      categories: int64 [N], the category id of each object.
      max_detections: The most detections of an image over all classes; None for no
        limit.
    """
    if not len(images):
        return 1.0
    image, category, counts = _groups(images, categories)
    counted = np.minimum(counts, MAX_PER_CLASS)
    distinct, index = np.unique(category, return_inverse=True)
    num_objects = np.bincount(index, weights=counts)
    if max_detections is not None:
        # A detection of a rare class adds more to the mean over classes.
        order = np.lexsort((num_objects[index], image))
        image = image[order]
        index = index[order]
        counted = counted[order]
        total = np.cumsum(counted)
        before_image = (total - counted)[np.searchsorted(image, image)]
        num_left = max_detections - (total - counted - before_image)
        counted = np.clip(num_left, 0, counted)
    num_detected = np.bincount(index, weights=counted, minlength=len(distinct))
    return float(np.mean(num_detected / num_objects))


def most_counted(images: np.ndarray, categories: np.ndarray) -> int:
    """Returns the greatest number of detections of an image that can count.

    Args:
      images: int64 [N], the image id of each object, without crowds.
      categories: int64 [N], the category id of each object.
    """
    image, _, counts = _groups(images, categories)
    _, index = np.unique(image, return_inverse=True)
    return int(np.bincount(index, np.minimum(counts, MAX_PER_CLASS)).max(initial=0))


def num_beyond(images: np.ndarray, categories: np.ndarray) -> tuple[int, int]:
    """Returns the number of images with too many objects, and their greatest number.

    An image has too many objects if a class has more than MAX_PER_CLASS of them. The
    second number is the greatest number of objects of one class in one image.

    Args:
      images: int64 [N], the image id of each object, without crowds.
      categories: int64 [N], the category id of each object.
    """
    image, _, counts = _groups(images, categories)
    num_images = len(np.unique(image[counts > MAX_PER_CLASS]))
    return num_images, int(counts.max(initial=0))


def _groups(
    images: np.ndarray, categories: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the distinct pairs of image and category with their object counts."""
    pairs = np.stack([images, categories])
    (image, category), counts = np.unique(pairs, axis=1, return_counts=True)
    return image, category, counts
