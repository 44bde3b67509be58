"""What is wrong with a run's data, found before step 1 instead of after a night.

`check` looks at the heads of the files and takes seconds; retinanet-tpu inspect_data
puts the same questions to every record, and draws the answers.
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
from retinanet_tpu.task.run import Run

_NUM_SAMPLED = 128
# COCO's 450 MB of training annotations would take too long at each start.
_MAX_JSON_BYTES = 64 << 20
# A tenth of the boxes without an anchor of their own is worth a look.
_LOW_RECALL = 0.9
_SHOWN = 5  # Examples that a finding names.


def check(run: Run) -> None:
    """Looks for data that cannot give a score above 0; warns of what lowers it.

    Args:
      run: an experiment with a model_dir.
    Raises:
      MissingFileError: a split has no records, or that to score on no annotations.
      UserError: says what is wrong and what to do.
    """
    categories, data = run.recipe.categories, run.data
    limits = _check_evaluation(run) if run.plan.evaluate_during_training else []
    categories.check_num_classes(run.recipe.num_classes)
    record_files.check_not_empty(record_files.find(data.dir, data.train_split))
    train = dataset_stats.read(
        data.dir, data.train_split, categories, num_images=_NUM_SAMPLED
    )
    found = [
        *data_issues.box_issues(train, categories),
        *_head_anchor_findings(run, train),
        *_max_boxes_findings(*_boxes_per_image(data, train), data.max_boxes),
        *limits,
    ]
    if not len(train.boxes_yxyx) and not dataset_stats.has_object(
        data.dir, data.train_split, categories.id_to_index
    ):
        found.append(data_issues.no_boxes_issue(train.name))
    if run.plan.evaluate_during_training:
        found += _evaluation_findings(run)
    report(found)


def _check_evaluation(run):
    """Raises an error if a run could not be scored; returns how high it can score."""
    data, categories = run.data, run.recipe.categories
    try:
        record_files.find(data.dir, data.eval_split)
        annotation_file = data.annotation_file
        if not tf.io.gfile.exists(annotation_file):
            raise errors.MissingFileError(
                f"No {annotation_file}, the annotations of the split to evaluate on."
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
            f"{category_map.FILE_NAME} has not; both must come from one conversion."
        )
    objects = [
        (item["image_id"], item["category_id"])
        for item in truth.dataset["annotations"]
        if not item["iscrowd"]
    ]
    columns = np.array(objects, np.int64).reshape(-1, 2).T
    return recall_findings(*columns, data.eval_split, run.recipe.nms_fn)


def report(found: list[data_issues.Issue]) -> None:
    """Logs warnings, raises errors.

    Raises:
      UserError: one of them is an error; has the texts of all that are.
    """
    for finding in found:
        if finding.severity == data_issues.Severity.WARNING:
            logging.warning("data | %s", finding.text)
    texts = [f.text for f in found if f.severity == data_issues.Severity.ERROR]
    if texts:
        raise errors.UserError(
            "\n  ".join(texts) + "\nretinanet-tpu inspect_data draws what is there."
        )


def anchor_findings(
    reach_of: Mapping[str, anchor_search.Coverage], split_name: str
) -> list[data_issues.Issue]:
    """Returns which sizes of boxes the anchors do not reach.

    Args:
      reach_of: COCO's size to how well boxes of it are reached, as the network sees
        them.
      split_name: whose boxes.
    """
    total = reach_of[anchor_recall.ALL_SIZES]
    remedy = "retinanet-tpu fit_anchors finds better ones (Anchors.size above all)."
    if total.num_boxes and not total.recall:
        text = (
            f"No box of {split_name} has an anchor of IoU {anchor_search.RECALL_IOU} "
            f"at the training size (mean best IoU {total.mean_iou:.3f}); {remedy}"
        )
        return [data_issues.Issue(data_issues.Severity.ERROR, text)]
    found = []
    for size, reach in reach_of.items():
        if reach.num_boxes and reach.recall < _LOW_RECALL:
            text = (
                f"{1 - reach.recall:.1%} of {size} boxes of {split_name} have no "
                f"anchor of IoU {anchor_search.RECALL_IOU} at the training size; "
                f"{remedy}"
            )
            found.append(data_issues.Issue(data_issues.Severity.WARNING, text))
    return found


def plan_findings(
    run: Run, splits: Sequence[dataset_stats.Split]
) -> list[data_issues.Issue]:
    """Returns how whole splits fit the batches and the padded labels of a run.

    Args:
      run: the run; a plain network will do.
      splits: measured, the one to train on first.
    """
    train, found = splits[0], []
    num_images, batch_size = len(train.image_ids), run.plan.batch_size
    whole, rest = divmod(num_images, batch_size)
    rest_text = f" and {rest} images, which go into the next epoch's first batch"
    text = (
        f"An epoch of {train.name} is {whole:,} batches of {batch_size}"
        f"{rest_text if rest else ''}; none is dropped. TrainingPlan.max_steps "
        f"{run.plan.max_steps:,} is {run.plan.max_steps * batch_size / num_images:.1f} "
        "epochs."
    )
    if num_images:
        found.append(data_issues.Issue(data_issues.Severity.NOTE, text))
    found += _max_boxes_findings(train.boxes_per_image, train.name, run.data.max_boxes)
    for split in splits[1:]:
        batch_size = run.plan.eval_batch_per_replica
        padding = -len(split.image_ids) % batch_size
        text = (
            f"Scoring {split.name} takes {-(-len(split.image_ids) // batch_size):,} "
            f"batches of {batch_size} on one replica, of which {padding} images are "
            "padding."
        )
        found.append(data_issues.Issue(data_issues.Severity.NOTE, text))
        is_object = ~split.is_crowd
        found += recall_findings(
            split.images[is_object],
            split.category_ids[is_object],
            split.name,
            run.recipe.nms_fn,
        )
    return found


def recall_findings(
    images: np.ndarray, category_ids: np.ndarray, split_name: str, nms_fn: nms.NMS
) -> list[data_issues.Issue]:
    """Returns whether even perfect detections cannot reach an AR of 1.

    Args:
      images: int64 [N], the image of each object, crowds left out.
      category_ids: int64 [N], the category of each object.
      split_name: whose objects.
      nms_fn: Limits the detections of an image.
    """
    found, limit = [], highest_recall.MAX_PER_CLASS
    highest = highest_recall.highest_recall(images, category_ids)
    if highest < 1:
        num_images, most = highest_recall.num_beyond(images, category_ids)
        text = (
            f"{num_images:,} images of {split_name} have more than {limit} objects of "
            f"a class (up to {most:,}), but COCO counts {limit} detections of each "
            f"class in an image: AR100 can reach {highest:.3f} at most, and AP about "
            "as much. No setting of the network or of its suppression changes that; "
            "convert tiles of the images instead, if the score matters."
        )
        found.append(data_issues.Issue(data_issues.Severity.WARNING, text))
    reached = highest_recall.highest_recall(images, category_ids, nms_fn.max_detections)
    if reached < highest:
        most = highest_recall.most_counted(images, category_ids)
        text = (
            f"NMS.max_detections {nms_fn.max_detections} is less than the objects of "
            f"some images of {split_name}: AR100 can reach {reached:.3f} at most; with "
            f"NMS.max_detections = {most} it can reach {highest:.3f}."
        )
        found.append(data_issues.Issue(data_issues.Severity.WARNING, text))
    return found


def _boxes_per_image(data, head):
    """Returns the numbers of boxes of images to train on, and which images they are."""
    path = f"{data.dir}/{data.train_split}.json"
    if not _is_quickly_read(path):
        return (
            head.boxes_per_image,
            f"the first {len(head.image_ids)} of {head.name}",
        )
    content = dataset_stats.read_annotations(path)
    image_ids = [item.get("image_id") for item in content["annotations"]]
    _, counts = np.unique(np.array(image_ids, np.int64), return_counts=True)
    return counts, f"{head.name} ({data.train_split}.json)"


def _max_boxes_findings(boxes_per_image, source, max_boxes):
    num_full = int((boxes_per_image > max_boxes).sum())
    if not num_full:
        return []
    most = boxes_per_image.max()
    text = (
        f"{num_full:,} images of {source} have more than Data.max_boxes {max_boxes} "
        f"boxes (up to {most}); the smallest ones are dropped, and what they show is "
        f"trained as background. Set Data.max_boxes = {most}."
    )
    return [data_issues.Issue(data_issues.Severity.WARNING, text)]


def _is_quickly_read(path):
    return tf.io.gfile.exists(path) and tf.io.gfile.stat(path).length <= _MAX_JSON_BYTES


def _head_anchor_findings(run, train):
    canvas = examples.OutputSpec(run.recipe.image_size, run.data.max_boxes)
    shown = anchor_recall.augment_boxes(
        train, canvas, augmentation=run.data.augmentation
    )
    anchors, image_size = run.recipe.anchors, run.recipe.image_size
    ious = anchor_search.best_iou(shown.boxes_yxyx, anchors, image_size)
    total = {anchor_recall.ALL_SIZES: anchor_search.coverage(ious)}
    return anchor_findings(total, f"the first images of {train.name}")


def _evaluation_findings(run):
    data, found = run.data, []
    if not _is_quickly_read(data.annotation_file):
        return found
    val = dataset_stats.annotated_images(data.annotation_file)
    # Each key ends with its boxes, and each box begins with its category id.
    ids = {box[0] for key in val for box in key[-1]}
    if ids and not dataset_stats.has_object(data.dir, data.train_split, ids):
        found.append(
            data_issues.no_common_class_issue(data.train_split, data.eval_split)
        )
    head = dataset_stats.read(
        data.dir, data.eval_split, run.recipe.categories, num_images=_NUM_SAMPLED
    )
    found += data_issues.box_issues(head, run.recipe.categories)
    found += data_issues.annotation_file_issues(head, data.annotation_file)
    train_file = f"{data.dir}/{data.train_split}.json"
    if _is_quickly_read(train_file):
        trained = dataset_stats.annotated_images(train_file)
        found += _overlap_findings(trained, val, data.train_split, data.eval_split)
    return found


def _overlap_findings(trained, val, train_split, eval_split):
    """Returns which images, or versions of images, are in both splits."""
    found, both = [], sorted(set(val) & set(trained))
    if both:
        names = ", ".join(str(key[0]) for key in both[:_SHOWN])
        found.append(
            data_issues.overlap_issues(
                train_split,
                eval_split,
                num_shared=len(both),
                num_val=len(val),
                names=names,
            )
        )
    sources = annotations.sources_of_versions(key[0] or "" for key in trained)
    others = (key[0] or "" for key in val.keys() - trained.keys())
    shared = sorted(n for n in others if annotations.source_name(n) in sources)
    if shared and train_split != eval_split:
        found.append(
            data_issues.version_issues(
                train_split,
                eval_split,
                num_shared=len(shared),
                num_val=len(val),
                names=", ".join(shared[:_SHOWN]),
            )
        )
    return found
