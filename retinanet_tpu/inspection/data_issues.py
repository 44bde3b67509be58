"""Issues in the images and boxes of a data directory, with remedies."""

import enum
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from retinanet_tpu.data import category_map
from retinanet_tpu.inspection import dataset_stats

_NUM_EXAMPLES = 5  # Examples that an issue names.


class Severity(enum.IntEnum):
    """The severity of an issue; a higher value is worse."""

    INFO = 0  # No effect on training.
    WARNING = 1  # Lowers the AP, or makes it less meaningful.
    ERROR = 2  # Training stops, or the AP is 0.


class Issue(NamedTuple):
    """An issue of the data.

    Attributes:
      severity: The severity.
      text: The description and the remedy.
    """

    severity: Severity
    text: str


class Issues(list[Issue]):
    """A list of issues that grows by severity and text."""

    def error(self, text: str) -> None:
        """Appends an error."""
        self.append(Issue(Severity.ERROR, text))

    def warning(self, text: str) -> None:
        """Appends a warning."""
        self.append(Issue(Severity.WARNING, text))

    def info(self, text: str) -> None:
        """Appends an issue without effect on training."""
        self.append(Issue(Severity.INFO, text))

    def worst_first(self) -> "Issues":
        """Returns the issues by falling severity."""
        return Issues(sorted(self, key=lambda issue: -issue.severity))


def split_issues(
    split: dataset_stats.Split, categories: category_map.Categories
) -> Issues:
    """Returns the issues of one split, the worst first.

    Args:
      split: The whole split.
      categories: The categories of the data directory.
    """
    issues = Issues()
    num_images = len(split.image_ids)
    if not num_images:
        issues.error(f"{split.name} has no images; convert the data again.")
        return issues
    issues += box_issues(split, categories)
    if split.is_crowd.all():
        issues += no_boxes_issues(split.name)
    if groups := dataset_stats.duplicates(split):
        issues.warning(
            f"{split.name} has {len(groups)} images more than once, such as "
            f"{_examples(_image_names(split, groups[0]))}; leave out the copies."
        )
    ids, counts = np.unique(split.image_ids, return_counts=True)
    if (counts > 1).any():
        issues.error(
            f"{split.name} has {(counts > 1).sum()} image ids more than once, such as "
            f"{ids[counts > 1][0]}, so detections of one image count for another; "
            "renumber the images and convert again."
        )
    if num_empty := int((split.boxes_per_image == 0).sum()):
        issues.info(
            f"{num_empty} of {num_images} images of {split.name} have no boxes; they "
            "train background, which is right only if they contain no objects."
        )
    return issues.worst_first()


def box_issues(
    split: dataset_stats.Split, categories: category_map.Categories
) -> Issues:
    """Returns the issues of boxes and their categories.

    Args:
      split: The split, or its first records.
      categories: The categories of the data directory.
    """
    issues = Issues()
    num_boxes = len(split.boxes_yxyx)
    known_ids = [category.id for category in categories.categories]
    unknown = np.unique(split.category_ids[~np.isin(split.category_ids, known_ids)])
    if len(unknown):
        issues.error(
            f"{split.name} has boxes of category ids "
            f"{unknown[:_NUM_EXAMPLES].tolist()}, which {category_map.FILE_NAME} does "
            "not contain; records and file must come from one conversion."
        )
    num_dropped = int((~split.is_usable).sum())
    if num_dropped:
        names = _image_names(split, np.unique(split.images[~split.is_usable]))
        add = issues.error if num_dropped == num_boxes else issues.warning
        add(
            f"{num_dropped:,} of {num_boxes:,} boxes of {split.name} leave no pixel in "
            f"their image and are dropped, in {_examples(names)}; corners must be "
            "shares of the image's sides, ymin below ymax. Convert again."
        )
    is_clipped = split.is_outside & split.is_usable
    if is_clipped.any():
        names = _image_names(split, np.unique(split.images[is_clipped]))
        issues.warning(
            f"{is_clipped.sum():,} of {num_boxes:,} boxes of {split.name} reach over "
            f"the edge of their image and are clipped there, in {_examples(names)}."
        )
    return issues


def label_map_issues(
    train: dataset_stats.Split,
    categories: category_map.Categories,
    num_classes: int | None = None,
) -> Issues:
    """Returns the contradictions between categories, network and training data.

    Args:
      train: The whole training split.
      categories: The categories of the data directory.
      num_classes: The network's number of classes; None if there is no network.
    """
    issues = Issues()
    if num_classes is not None:
        try:
            categories.check_num_classes(num_classes)
        except ValueError as error:
            issues.error(str(error))
    counts = dataset_stats.class_counts(train, categories)[:, 0]
    absent = [c.name for c in categories.categories if not counts[c.index]]
    if absent:
        issues.warning(
            f"{len(absent)} of {len(categories.categories)} classes have no box in "
            f"{train.name}: {', '.join(absent[:_NUM_EXAMPLES])}; they will never be "
            "detected."
        )
    return issues


def pair_issues(
    train: dataset_stats.Split,
    val: dataset_stats.Split,
    categories: category_map.Categories,
) -> Issues:
    """Returns the issues between a training and an evaluation split.

    Args:
      train: The whole training split.
      val: The whole evaluation split.
      categories: The categories of the data directory.
    """
    issues = Issues()
    in_train, in_val = (
        dataset_stats.class_counts(s, categories)[:, 0] > 0 for s in (train, val)
    )
    if in_val.any() and not (in_train & in_val).any():
        issues += no_common_class_issues(train.name, val.name)
    issues += shared_image_issues(
        train.name,
        val.name,
        num_val=len(val.image_ids),
        shared=_image_names(val, dataset_stats.shared_images(train, val)),
        versions=_image_names(val, dataset_stats.shared_versions(train, val)),
    )
    return issues


def shared_image_issues(
    train_name: str,
    val_name: str,
    *,
    num_val: int,
    shared: Sequence[str],
    versions: Sequence[str],
) -> Issues:
    """Returns the issues of images that are in the training and evaluation split.

    Args:
      train_name: The name of the training split.
      val_name: The name of the evaluation split.
      num_val: The number of images of the evaluation split.
      shared: The names of its images that are also in the training split.
      versions: The names of its images of which the training split has versions.
    """
    issues = Issues()
    if shared and train_name == val_name:  # A test whether a network can learn.
        issues.warning(
            f"{val_name} is the split to train on and to evaluate on: the AP would "
            "measure memorization. Set Data.eval_split to another split."
        )
    elif shared:
        add = issues.error if len(shared) == num_val else issues.warning
        add(
            f"{len(shared):,} of {num_val:,} images of {val_name} are in {train_name} "
            f"too ({_examples(shared)}): the AP would measure memorization. Remove "
            "them from one of the splits."
        )
    if versions and train_name != val_name:
        issues.warning(
            f"{len(versions):,} of {num_val:,} images of {val_name} are versions of "
            f"images in {train_name} ({_examples(versions)}): the AP is too high. "
            "Convert again with --val_fraction, which keeps Roboflow's versions of an "
            "image in one split."
        )
    return issues


def annotation_file_issues(val: dataset_stats.Split, annotation_file: str) -> Issues:
    """Returns the contradictions between records and their annotation file.

    Args:
      val: The evaluation split, or its first records.
      annotation_file: The path of its COCO JSON.
    """
    issues = Issues()
    annotated = {
        image["id"]
        for image in dataset_stats.read_annotations(annotation_file)["images"]
    }
    unknown = sorted(set(val.image_ids.tolist()) - annotated)
    if unknown:
        issues.error(
            f"{len(unknown)} image ids of {val.name}'s records, such as "
            f"{unknown[:_NUM_EXAMPLES]}, are not in {annotation_file}; both must come "
            "from one conversion."
        )
    return issues


def no_boxes_issues(split_name: str) -> Issues:
    """Returns the error of a split without a box to train on."""
    issues = Issues()
    issues.error(
        f"{split_name} has no box to train on; is the annotation file the right one? "
        "Convert again."
    )
    return issues


def no_common_class_issues(train_name: str, val_name: str) -> Issues:
    """Returns the error of two splits without a common class."""
    issues = Issues()
    issues.error(
        f"{train_name} and {val_name} have no class in common, so AP would be 0; both "
        "must be converted with the same categories."
    )
    return issues


def _image_names(split: dataset_stats.Split, images: Iterable[int]) -> list[str]:
    return [
        split.file_names[image] or f"image {split.image_ids[image]}" for image in images
    ]


def _examples(names: Sequence[str]) -> str:
    more = ", …" if len(names) > _NUM_EXAMPLES else ""
    return ", ".join(names[:_NUM_EXAMPLES]) + more
