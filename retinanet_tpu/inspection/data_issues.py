"""What is wrong with the images and boxes of a data directory, and what to do."""

import enum
from typing import NamedTuple

import numpy as np

from retinanet_tpu.data import category_map
from retinanet_tpu.inspection import dataset_stats

_SHOWN = 5  # Examples that a finding names.


class Severity(enum.IntEnum):
    """How bad a finding is."""

    NOTE = 0  # good to know
    WARNING = 1  # costs accuracy, or makes scores mean less
    ERROR = 2  # training stops, or scores 0


class Issue(NamedTuple):
    """Something that was found in the data."""

    severity: Severity
    text: str  # what, and what to do about it


def split_issues(
    split: dataset_stats.Split, categories: category_map.Categories
) -> list[Issue]:
    """Returns what a whole split says of itself, the worst first."""
    if not len(split.image_ids):
        return [
            Issue(
                Severity.ERROR, f"{split.name} has no images; convert the data again."
            )
        ]
    found = box_issues(split, categories)
    if split.is_crowd.all():
        found.append(no_boxes_issue(split.name))
    if groups := dataset_stats.duplicates(split):
        text = (
            f"{split.name} has {len(groups)} images more than once, such as "
            f"{_names(split, groups[0])}; leave out the copies."
        )
        found.append(Issue(Severity.WARNING, text))
    ids, counts = np.unique(split.image_ids, return_counts=True)
    if (counts > 1).any():
        text = (
            f"{split.name} has {(counts > 1).sum()} image ids more than once, such as "
            f"{ids[counts > 1][0]}, so detections of one count as another's; number "
            "the images anew and convert again."
        )
        found.append(Issue(Severity.ERROR, text))
    if num_empty := int((split.boxes_per_image == 0).sum()):
        text = (
            f"{num_empty} of {len(split.image_ids)} images of {split.name} have no "
            "boxes; they train background, if that is what they show."
        )
        found.append(Issue(Severity.NOTE, text))
    return sorted(found, key=lambda finding: -finding.severity)


def box_issues(
    split: dataset_stats.Split, categories: category_map.Categories
) -> list[Issue]:
    """Returns what is wrong with boxes and their classes, in a split or its head."""
    found, num_boxes = [], len(split.boxes_yxyx)
    unknown = np.unique(
        split.category_ids[~np.isin(split.category_ids, _ids(categories))]
    )
    if len(unknown):
        text = (
            f"{split.name} has boxes of category ids {unknown[:_SHOWN].tolist()}, "
            f"which {category_map.FILE_NAME} has not; records and file must come "
            "from one conversion."
        )
        found.append(Issue(Severity.ERROR, text))
    num_lost = int((~split.is_usable).sum())
    if num_lost:
        where = _names(split, np.unique(split.images[~split.is_usable]))
        text = (
            f"{num_lost:,} of {num_boxes:,} boxes of {split.name} leave no pixel in "
            f"their image and are dropped, in {where}; corners must be shares of the "
            "image's sides, ymin below ymax. Convert again."
        )
        is_all = num_lost == num_boxes
        found.append(Issue(Severity.ERROR if is_all else Severity.WARNING, text))
    is_over = split.is_outside & split.is_usable
    if is_over.any():
        where = _names(split, np.unique(split.images[is_over]))
        text = (
            f"{is_over.sum():,} of {num_boxes:,} boxes of {split.name} reach over the "
            f"edge of their image and are cut there, in {where}."
        )
        found.append(Issue(Severity.WARNING, text))
    return found


def label_map_issues(
    train: dataset_stats.Split,
    categories: category_map.Categories,
    num_classes: int | None = None,
) -> list[Issue]:
    """Returns where classes, network and training data do not fit each other.

    Args:
      train: the split to train on, whole.
      categories: of the data directory.
      num_classes: of the network; None if there is none.
    """
    found = []
    if num_classes is not None:
        try:
            categories.check_num_classes(num_classes)
        except ValueError as error:
            found.append(Issue(Severity.ERROR, str(error)))
    counts = dataset_stats.class_counts(train, categories)[:, 0]
    absent = [c.name for c in categories.categories if not counts[c.index]]
    if absent:
        text = (
            f"{len(absent)} of {len(categories.categories)} classes have no box in "
            f"{train.name}: {', '.join(absent[:_SHOWN])}; they will never be found."
        )
        found.append(Issue(Severity.WARNING, text))
    return found


def pair_issues(
    train: dataset_stats.Split,
    val: dataset_stats.Split,
    categories: category_map.Categories,
) -> list[Issue]:
    """Returns what is wrong between the split to train on and that to score on."""
    in_train, in_val = (
        dataset_stats.class_counts(s, categories)[:, 0] > 0 for s in (train, val)
    )
    found = []
    if in_val.any() and not (in_train & in_val).any():
        found.append(no_common_class_issue(train.name, val.name))
    groups = dataset_stats.shared_versions(train, val)
    if groups and train.name != val.name:
        found.append(
            version_issues(
                train.name,
                val.name,
                num_shared=len(groups),
                num_val=len(val.image_ids),
                names=_names(val, groups),
            )
        )
    shared = dataset_stats.shared_images(train, val)
    if len(shared):
        found.append(
            overlap_issues(
                train.name,
                val.name,
                num_shared=len(shared),
                num_val=len(val.image_ids),
                names=_names(val, shared),
            )
        )
    return found


def annotation_file_issues(
    val: dataset_stats.Split, annotation_file: str
) -> list[Issue]:
    """Returns where the records to score on and their annotation file disagree."""
    annotated = {
        image["id"]
        for image in dataset_stats.read_annotations(annotation_file)["images"]
    }
    strange = sorted(set(val.image_ids.tolist()) - annotated)
    if not strange:
        return []
    text = (
        f"{len(strange)} image ids of {val.name}'s records, such as "
        f"{strange[:_SHOWN]}, are not in {annotation_file}; both must come from one "
        "conversion."
    )
    return [Issue(Severity.ERROR, text)]


def overlap_issues(
    train_name: str, val_name: str, *, num_shared: int, num_val: int, names: str
) -> Issue:
    """Returns what to say of images that are in both splits.

    Args:
      train_name: the split to train on.
      val_name: the split to score on.
      num_shared: its images that are in the other too.
      num_val: its images.
      names: of some of them.
    """
    if train_name == val_name:  # One way to test whether a network can learn at all.
        text = (
            f"{val_name} is trained on and scored on: the score will say nothing of "
            "other images. Set Data.eval_split to another split."
        )
        return Issue(Severity.WARNING, text)
    text = (
        f"{num_shared:,} of {num_val:,} images of {val_name} are in {train_name} too "
        f"({names}): scores on what was learnt by heart say nothing of other images. "
        "Take them out of one of the splits."
    )
    is_error = num_shared == num_val
    return Issue(Severity.ERROR if is_error else Severity.WARNING, text)


def version_issues(
    train_name: str, val_name: str, *, num_shared: int, num_val: int, names: str
) -> Issue:
    """Returns a warning of versions of one image in both splits.

    Args:
      train_name: The split to train on.
      val_name: The split to score on.
      num_shared: The images of it that have versions in the other.
      num_val: Its images.
      names: Some of them.
    """
    text = (
        f"{num_shared:,} of {num_val:,} images of {val_name} are versions of images in "
        f"{train_name} ({names}): scores are too high. Convert again with "
        "--val_fraction, which keeps Roboflow's versions of an image in one split."
    )
    return Issue(Severity.WARNING, text)


def no_boxes_issue(split_name: str) -> Issue:
    """Returns what to say of a split that nothing can be learnt from."""
    text = (
        f"{split_name} has no box that could be learnt; is the annotation file the "
        "right one? Convert again."
    )
    return Issue(Severity.ERROR, text)


def no_common_class_issue(train_name: str, val_name: str) -> Issue:
    """Returns what to say of splits that share no class."""
    text = (
        f"{train_name} and {val_name} have no class in common, so AP would be 0; both "
        "must be converted with the same categories."
    )
    return Issue(Severity.ERROR, text)


def _ids(categories):
    return [category.id for category in categories.categories]


def _names(split: dataset_stats.Split, places) -> str:
    shown = [
        split.file_names[place] or f"image {split.image_ids[place]}"
        for place in list(places)[:_SHOWN]
    ]
    return ", ".join(shown) + (", …" if len(places) > _SHOWN else "")
