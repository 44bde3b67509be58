"""The highest recall that COCO's limits leave, for perfect detections."""

import numpy as np

from retinanet_tpu.evaluation import coco_metric

# Detections of an image and a class that count, the most confident ones.
MAX_PER_CLASS = max(metric.max_detections for metric in coco_metric.METRICS)


def highest_recall(
    images: np.ndarray, categories: np.ndarray, max_detections: int | None = None
) -> float:
    """Returns the highest AR100 that any detections can reach, 1 without objects.

    Args:
      images: int64 [N], the image of each object, crowds left out.
      categories: int64 [N], the category of each object.
      max_detections: Detections of an image over all classes; None for no limit.
    """
    if not len(images):
        return 1.0
    image, category, counts = _groups(images, categories)
    counted = np.minimum(counts, MAX_PER_CLASS)
    names, index = np.unique(category, return_inverse=True)
    objects_of = np.bincount(index, weights=counts)
    if max_detections is not None:
        # A detection of a rare class adds more to the mean over classes.
        order = np.lexsort((objects_of[index], image))
        image, index, counted = image[order], index[order], counted[order]
        total = np.cumsum(counted)
        before_image = (total - counted)[np.searchsorted(image, image)]
        left = max_detections - (total - counted - before_image)
        counted = np.clip(left, 0, counted)
    found = np.bincount(index, weights=counted, minlength=len(names))
    return float(np.mean(found / objects_of))


def most_counted(images: np.ndarray, categories: np.ndarray) -> int:
    """Returns the most detections of an image that can count over all classes.

    Args:
      images: int64 [N], the image of each object, crowds left out.
      categories: int64 [N], the category of each object.
    """
    image, _, counts = _groups(images, categories)
    _, index = np.unique(image, return_inverse=True)
    return int(np.bincount(index, np.minimum(counts, MAX_PER_CLASS)).max(initial=0))


def num_beyond(images: np.ndarray, categories: np.ndarray) -> tuple[int, int]:
    """Returns how many images exceed MAX_PER_CLASS, and the most objects of a class.

    Args:
      images: int64 [N], the image of each object, crowds left out.
      categories: int64 [N], the category of each object.
    """
    image, _, counts = _groups(images, categories)
    num_images = len(np.unique(image[counts > MAX_PER_CLASS]))
    return num_images, int(counts.max(initial=0))


def _groups(images, categories):
    """Returns image, category and number of objects where there are any."""
    pairs = np.stack([images, categories])
    (image, category), counts = np.unique(pairs, axis=1, return_counts=True)
    return image, category, counts
