"""Checks of a run's data before step 1.

`check` reads the first records of each file and takes seconds. The command
`retinanet-tpu inspect_data` applies the same checks to every record and draws the data.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tpu import errors
from retinanet_tpu.data import annotations, category_map, examples, record_files
from retinanet_tpu.detections import nms
from retinanet_tpu.evaluation import coco_metric, highest_recall
from retinanet_tpu.inspection import (
    anchor_recall,
    anchor_search,
    data_issues,
    dataset_stats,
)
from retinanet_tpu.inspection.data_issues import Issues, Severity
from retinanet_tpu.task.input_fn import Data
from retinanet_tpu.task.run import Run

_NUM_SAMPLED = 128
# COCO's 450 MB of training annotations would take too long at each start.
_MAX_JSON_BYTES = 64 << 20
# A warning if more than a tenth of the boxes have no anchor of their own.
_LOW_RECALL = 0.9


def check(run: Run) -> None:
    """Checks that the data can lead to an AP above 0; logs what lowers it.

    Args:
      run: A run with a model_dir.
    Raises:
      MissingFileError: A split has no records, or the evaluation split no annotations.
      UserError: The data have an error; contains the remedy.
    """
    categories, data = run.recipe.categories, run.data
    evaluates = run.plan.evaluate_during_training
    eval_issues = _check_evaluation(run) if evaluates else Issues()
    categories.check_num_classes(run.recipe.num_classes)
    record_files.check_not_empty(record_files.find(data.dir, data.train_split))
    train = dataset_stats.read(
        data.dir, data.train_split, categories, num_images=_NUM_SAMPLED
    )
    issues = data_issues.box_issues(train, categories)
    issues += _sampled_anchor_issues(run, train)
    issues += _max_boxes_issues(*_boxes_per_image(data, train), data.max_boxes)
    issues += eval_issues
    if not len(train.boxes_yxyx) and not dataset_stats.has_object(
        data.dir, data.train_split, categories.id_to_index
    ):
        issues += data_issues.no_boxes_issues(train.name)
    if evaluates:
        issues += _evaluation_split_issues(run)
    report(issues)


def report(issues: Sequence[data_issues.Issue]) -> None:
    """Logs warnings and raises errors.

    Args:
      issues: The issues of the data.
    Raises:
      UserError: At least one issue is an error; contains the texts of all errors.
    """
    for issue in issues:
        if issue.severity == Severity.WARNING:
            logging.warning("data | %s", issue.text)
    texts = [issue.text for issue in issues if issue.severity == Severity.ERROR]
    if texts:
        raise errors.UserError(
            "\n  ".join(texts) + "\nretinanet-tpu inspect_data draws the data."
        )


def anchor_issues(
    coverage_by_size: Mapping[str, anchor_search.Coverage], split_name: str
) -> Issues:
    """Returns the sizes of boxes that the anchors do not cover.

    Args:
      coverage_by_size: The coverage of the boxes in the network's input, by COCO's
        size and for anchor_recall.ALL_SIZES.
      split_name: The name of the split that the boxes are from.
    """
    issues = Issues()
    total = coverage_by_size[anchor_recall.ALL_SIZES]
    remedy = "retinanet-tpu fit_anchors finds better ones (Anchors.size above all)."
    if total.num_boxes and not total.recall:
        issues.error(
            f"No box of {split_name} has an anchor of IoU {anchor_search.RECALL_IOU} "
            f"at the training size (mean best IoU {total.mean_iou:.3f}); {remedy}"
        )
        return issues
    for size, coverage in coverage_by_size.items():
        if coverage.num_boxes and coverage.recall < _LOW_RECALL:
            issues.warning(
                f"{1 - coverage.recall:.1%} of {size} boxes of {split_name} have no "
                f"anchor of IoU {anchor_search.RECALL_IOU} at the training size; "
                f"{remedy}"
            )
    return issues


def plan_issues(run: Run, splits: Sequence[dataset_stats.Split]) -> Issues:
    """Returns how whole splits fit the batches and the padded labels of a run.

    Args:
      run: The run; it needs no model_dir.
      splits: The whole splits, the training split first.
    """
    issues = Issues()
    train = splits[0]
    num_images, batch_size = len(train.image_ids), run.plan.batch_size
    if num_images:
        num_batches, rest = divmod(num_images, batch_size)
        rest_text = f" and {rest} images, which go into the next epoch's first batch"
        num_epochs = run.plan.max_steps * batch_size / num_images
        issues.info(
            f"An epoch of {train.name} is {num_batches:,} batches of {batch_size}"
            f"{rest_text if rest else ''}; none is dropped. TrainingPlan.max_steps "
            f"{run.plan.max_steps:,} is {num_epochs:.1f} epochs."
        )
    issues += _max_boxes_issues(train.boxes_per_image, train.name, run.data.max_boxes)
    for split in splits[1:]:
        batch_size = run.plan.eval_batch_per_replica
        num_batches = -(-len(split.image_ids) // batch_size)
        padding = -len(split.image_ids) % batch_size
        issues.info(
            f"Evaluating on {split.name} takes {num_batches:,} batches of {batch_size} "
            f"on one replica, of which {padding} images are padding."
        )
        is_object = ~split.is_crowd
        issues += recall_issues(
            split.images[is_object],
            split.category_ids[is_object],
            split.name,
            run.recipe.nms_fn,
        )
    return issues


def recall_issues(
    images: np.ndarray, category_ids: np.ndarray, split_name: str, nms_fn: nms.NMS
) -> Issues:
    """Returns the reasons why even perfect detections cannot reach an AR of 1.

    Args:
      images: int64 [N], the image of each object, crowds left out.
      category_ids: int64 [N], the category of each object.
      split_name: The name of the split that the objects are from.
      nms_fn: The non-maximum suppression, which limits the detections of an image.
    """
    issues, limit = Issues(), highest_recall.MAX_PER_CLASS
    highest = highest_recall.highest_recall(images, category_ids)
    if highest < 1:
        num_images, most = highest_recall.num_beyond(images, category_ids)
        issues.warning(
            f"{num_images:,} images of {split_name} have more than {limit} objects of "
            f"a class (up to {most:,}), but COCO counts {limit} detections of each "
            f"class in an image: AR100 can reach {highest:.3f} at most, and AP about "
            "as much. No setting of the network or of its suppression changes that; "
            "convert tiles of the images instead, if the AP matters."
        )
    reached = highest_recall.highest_recall(images, category_ids, nms_fn.max_detections)
    if reached < highest:
        most = highest_recall.most_counted(images, category_ids)
        issues.warning(
            f"NMS.max_detections {nms_fn.max_detections} is less than the objects of "
            f"some images of {split_name}: AR100 can reach {reached:.3f} at most; with "
            f"NMS.max_detections = {most} it can reach {highest:.3f}."
        )
    return issues


def _check_evaluation(run: Run) -> Issues:
    """Raises an error if the run cannot be evaluated; returns limits of its recall."""
    data, categories = run.data, run.recipe.categories
    try:
        record_files.find(data.dir, data.eval_split)
        if not tf.io.gfile.exists(data.annotation_file):
            raise errors.MissingFileError(
                f"No {data.annotation_file}, the annotations of the split to evaluate "
                "on."
            )
    except errors.MissingFileError as error:
        raise errors.MissingFileError(
            f"{error} Or name another split (Data.eval_split), or train without "
            'evaluation: --gin_param="TrainingPlan.evaluate_during_training = False".'
        ) from error
    truth = coco_metric.ground_truth(data.annotation_file)
    if unknown := sorted(set(truth.cats) - set(categories.id_to_index)):
        raise errors.UserError(
            f"{data.annotation_file} has category ids {unknown[:10]}, which "
            f"{category_map.FILE_NAME} does not contain; both must come from one "
            "conversion."
        )
    for metric in run.extra_metrics:
        metric.check(truth)
    objects = [
        (item["image_id"], item["category_id"])
        for item in truth.dataset["annotations"]
        if not item["iscrowd"]
    ]
    image_ids, category_ids = np.array(objects, np.int64).reshape(-1, 2).T
    return recall_issues(image_ids, category_ids, data.eval_split, run.recipe.nms_fn)


def _boxes_per_image(data: Data, sample: dataset_stats.Split) -> tuple[np.ndarray, str]:
    """Returns numbers of boxes of training images, and the source of the images."""
    path = f"{data.dir}/{data.train_split}.json"
    if not _is_quickly_read(path):
        source = f"the first {len(sample.image_ids)} of {sample.name}"
        return sample.boxes_per_image, source
    content = dataset_stats.read_annotations(path)
    image_ids = [item.get("image_id") for item in content["annotations"]]
    _, counts = np.unique(np.array(image_ids, np.int64), return_counts=True)
    return counts, f"{sample.name} ({data.train_split}.json)"


def _max_boxes_issues(
    boxes_per_image: np.ndarray, source: str, max_boxes: int
) -> Issues:
    issues = Issues()
    num_full = int((boxes_per_image > max_boxes).sum())
    if num_full:
        most = boxes_per_image.max()
        issues.warning(
            f"{num_full:,} images of {source} have more than Data.max_boxes "
            f"{max_boxes} boxes (up to {most}); the smallest ones are dropped, and "
            f"their objects train background. Set Data.max_boxes = {most}."
        )
    return issues


def _is_quickly_read(path: str) -> bool:
    return tf.io.gfile.exists(path) and tf.io.gfile.stat(path).length <= _MAX_JSON_BYTES


def _sampled_anchor_issues(run: Run, train: dataset_stats.Split) -> Issues:
    anchors, image_size = run.recipe.anchors, run.recipe.image_size
    augmented = anchor_recall.augment_boxes(
        train,
        examples.OutputSpec(
            image_size, run.data.max_boxes, run.recipe.keep_aspect_ratio
        ),
        augmentation=run.data.augmentation,
    )
    ious = anchor_search.best_iou(augmented.boxes_yxyx, anchors, image_size)
    total = {anchor_recall.ALL_SIZES: anchor_search.coverage(ious)}
    return anchor_issues(total, f"the first images of {train.name}")


def _evaluation_split_issues(run: Run) -> Issues:
    """Returns the issues of the first evaluation records and of both annotations."""
    data, categories = run.data, run.recipe.categories
    issues = Issues()
    if not _is_quickly_read(data.annotation_file):
        return issues
    val = dataset_stats.annotated_images(data.annotation_file)
    # Each key ends with its boxes, and each box begins with its category id.
    ids = {box[0] for key in val for box in key[-1]}
    if ids and not dataset_stats.has_object(data.dir, data.train_split, ids):
        issues += data_issues.no_common_class_issues(data.train_split, data.eval_split)
    sample = dataset_stats.read(
        data.dir, data.eval_split, categories, num_images=_NUM_SAMPLED
    )
    issues += data_issues.box_issues(sample, categories)
    issues += data_issues.annotation_file_issues(sample, data.annotation_file)
    train_file = f"{data.dir}/{data.train_split}.json"
    if _is_quickly_read(train_file):
        train = dataset_stats.annotated_images(train_file)
        sources = annotations.sources_of_versions(key[0] or "" for key in train)
        others = (key[0] or "" for key in val.keys() - train.keys())
        issues += data_issues.shared_image_issues(
            data.train_split,
            data.eval_split,
            num_val=len(val),
            shared=[str(key[0]) for key in sorted(set(val) & set(train))],
            versions=sorted(
                name for name in others if annotations.source_name(name) in sources
            ),
        )
    return issues
