r"""Checks a data directory before training: counts, issues, drawings.

  python -m retinanet_tpu.inspect_data --gin_file=gin_configs/bccd_r18.gin \
      --gin_param="DATA_DIR = 'data/bccd'" --output=report.html --draw_targets=4
  python -m retinanet_tpu.inspect_data --data_dir=data/bccd --output=report.png

The second form has no network: no training size, no anchors, no NUM_CLASSES. Every
record of both splits is read. --draw_targets=N draws N augmented training images in
the network's size, with the anchors that the run assigns to each box.

Exit codes: 0 fit to train on, perhaps with warnings; 1 the command failed; 2 the data
have an error that stops training or leads to an AP of 0.

Needs matplotlib (pip install -e '.[plots]').
"""

import retinanet_tpu.startup.cpu

import dataclasses
import re
import sys
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from absl import flags

from retinanet_tpu import errors, exit_codes
from retinanet_tpu.data import category_map, examples, record_files, tf_example
from retinanet_tpu.estimator import spec
from retinanet_tpu.evaluation import visualize
from retinanet_tpu.inspection import (
    anchor_recall,
    anchor_search,
    charts,
    data_issues,
    dataset_stats,
    plotting,
    report,
    tables,
)
from retinanet_tpu.startup import guard
from retinanet_tpu.task import cli, configurables, data_checks
from retinanet_tpu.task.run import Run

_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "The data directory to check without --gin_file."
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "The HTML or PNG file to write.", required=True
)
_DRAW_TARGETS = flags.DEFINE_integer(
    "draw_targets", 0, "The number of training images to draw with assigned anchors."
)
_NUM_SAMPLES = 8  # The number of images of a split that are drawn.
# They are among the first records of a split, since records are read in order.
_SAMPLED_RECORDS = 1000


@dataclasses.dataclass(frozen=True)
class Subject:
    """The data to check.

    Attributes:
      data_dir: The data directory.
      categories: Its categories.
      splits: The measured splits, the training split first.
      run: The run, or None.
    """

    data_dir: str
    categories: category_map.Categories
    splits: tuple[dataset_stats.Split, ...]
    run: Run | None = None


@dataclasses.dataclass(frozen=True)
class SplitCoverage:
    """The coverage of a split's boxes by the run's anchors.

    Attributes:
      name: The name of the split, and whether it is whole or augmented.
      augmented: The boxes in the network's input.
      by_size: The coverage by COCO's size.
    """

    name: str
    augmented: anchor_recall.AugmentedBoxes
    by_size: dict[str, anchor_search.Coverage]


def read_subject() -> Subject:
    """Reads the data directory and the run of the flags.

    Raises:
      MissingFileError: There are no records or no categories.
      UserError: The flags contain neither a run nor a directory, or --draw_targets
        without a run; or a record is corrupt.
    """
    if _DRAW_TARGETS.value and not cli.GIN_FILE.value:
        raise errors.UserError("--draw_targets needs a network: name it by --gin_file.")
    run = None
    if cli.GIN_FILE.value:
        cli.parse_files()
        run = configurables.make_run(None, strategy_fn=tf.distribute.get_strategy)
        data_dir = run.data.dir
        names = list(dict.fromkeys([run.data.train_split, run.data.eval_split]))
    else:
        if not _DATA_DIR.value:
            raise errors.UserError("Name the data: --gin_file=… or --data_dir=….")
        data_dir = _DATA_DIR.value.rstrip("/")
        names = split_names(data_dir)
    categories = category_map.read(f"{data_dir}/{category_map.FILE_NAME}")
    splits = tuple(dataset_stats.read(data_dir, name, categories) for name in names)
    return Subject(data_dir, categories, splits, run)


def split_names(data_dir: str) -> list[str]:
    """Returns the names of a directory's splits, those that begin with train first.

    Args:
      data_dir: The data directory.
    Raises:
      MissingFileError: It has no records.
    """
    shard = re.compile(r"(.+)-00000-of-[0-9]{5}\.tfrecord")
    files = tf.io.gfile.listdir(data_dir) if tf.io.gfile.isdir(data_dir) else []
    names = {match[1] for name in files if (match := shard.fullmatch(name))}
    if not names:
        raise errors.MissingFileError(
            f"No file matches {data_dir}/*-00000-of-?????.tfrecord; write records with "
            "retinanet-tpu convert."
        )
    return sorted(names, key=lambda name: (not name.startswith("train"), name))


def split_coverages(subject: Subject) -> list[SplitCoverage]:
    """Returns the coverage of augmented training images, and of each whole split.

    Args:
      subject: The data; without a run there are no anchors and no coverages.
    """
    if subject.run is None:
        return []
    recipe, data = subject.run.recipe, subject.run.data
    output = examples.OutputSpec(
        recipe.image_size, data.max_boxes, recipe.keep_aspect_ratio
    )
    train = subject.splits[0]
    variants: list[tuple[str, dataset_stats.Split, examples.Augmentation | None]] = [
        (f"{train.name}, augmented", train, data.augmentation)
    ]
    variants += [(f"{split.name}, whole", split, None) for split in subject.splits]
    coverages = []
    for name, split, augmentation in variants:
        boxes = anchor_recall.augment_boxes(split, output, augmentation=augmentation)
        ious = anchor_search.best_iou(
            boxes.boxes_yxyx, recipe.anchors, recipe.image_size
        )
        by_size = anchor_recall.by_size(ious, boxes, split)
        coverages.append(SplitCoverage(name, boxes, by_size))
    return coverages


def find_issues(
    subject: Subject, coverages: Sequence[SplitCoverage]
) -> data_issues.Issues:
    """Returns all issues of the data, the worst first.

    Args:
      subject: The data.
      coverages: The result of `split_coverages`.
    """
    categories, run, train = subject.categories, subject.run, subject.splits[0]
    num_classes = run.recipe.num_classes if run else None
    issues = data_issues.label_map_issues(train, categories, num_classes)
    for split in subject.splits:
        issues += data_issues.split_issues(split, categories)
    for split in subject.splits[1:]:
        issues += data_issues.pair_issues(train, split, categories)
        path = f"{subject.data_dir}/{split.name}.json"
        if tf.io.gfile.exists(path):
            issues += data_issues.annotation_file_issues(split, path)
    for coverage in coverages[:1]:
        issues += data_checks.anchor_issues(coverage.by_size, coverage.name)
    if run:
        issues += data_checks.plan_issues(run, subject.splits)
    return issues.worst_first()


def sections(
    subject: Subject, coverages: Sequence[SplitCoverage]
) -> list[report.Section]:
    """Returns the sections of the report, from the counts to the images.

    Args:
      subject: The data.
      coverages: The result of `split_coverages`.
    """
    parts = [
        report.Section("Splits", table=tables.splits_table(subject.splits)),
        report.Section(
            "Classes",
            table=tables.classes_table(subject.splits, subject.categories),
        ),
        report.Section(
            "Images and boxes",
            image=charts.data_charts(subject.splits, subject.categories),
        ),
    ]
    if subject.run is not None:
        parts.append(_anchors_section(subject.run, coverages))
        if _DRAW_TARGETS.value:
            parts.append(_targets_section(subject.run, subject.categories))
    for split in subject.splits:
        if len(split.image_ids):
            parts.append(_samples_section(subject.data_dir, split))
    return parts


def _anchors_section(run: Run, coverages: Sequence[SplitCoverage]) -> report.Section:
    recipe = run.recipe
    height, width = recipe.image_size
    return report.Section(
        f"Anchors at {height} x {width}",
        "Share of boxes with an anchor of IoU .5, and the mean IoU with the best one, "
        "by COCO's sizes in the original image.",
        tables.anchors_table([(c.name, c.by_size) for c in coverages]),
        charts.anchor_charts(
            [(c.name, c.augmented.boxes_yxyx) for c in coverages],
            recipe.anchors,
            recipe.image_size,
        ),
    )


def _targets_section(run: Run, categories: category_map.Categories) -> report.Section:
    context = spec.TPUContext(num_replicas=1, num_hosts=1, current_host=0)
    recipe = dataclasses.replace(run.recipe, categories=categories)
    params = {
        "recipe": recipe,
        "batch_size": _DRAW_TARGETS.value,
        "context": context,
    }
    title = "Assigned anchors"
    try:
        features, labels = next(iter(run.train_spec.input_fn(params)))
    except tf.errors.InvalidArgumentError as error:
        return report.Section(title, f"Cannot be loaded: {error.message}")
    drawings, num_forced = [], 0
    assignments = anchor_recall.assigned_anchors(
        recipe.assign(labels),
        anchors=recipe.anchors,
        image_size=recipe.image_size,
    )
    for image, assigned in enumerate(assignments):
        num_boxes = int(labels.num_boxes[image])
        classes = labels.classes[image, :num_boxes].numpy()
        names = [categories.names[index] for index in classes]
        boxes = labels.boxes_yxyx[image, :num_boxes].numpy()
        ious = anchor_search.best_iou(boxes, recipe.anchors, recipe.image_size)
        num_forced += int((ious < anchor_search.RECALL_IOU).sum())
        pixels = features.images[image].numpy()
        drawings.append(charts.targets(pixels, boxes, names, assigned))
    return report.Section(
        title,
        "Training images after augmentation. Thick: annotated boxes, with the number "
        "of anchors assigned to each; thin, in the same color: those anchors; red: "
        f"boxes without an anchor. {num_forced} boxes have no anchor of IoU "
        f"{anchor_search.RECALL_IOU} and get only their best one.",
        image=visualize.grid(drawings, 2, height=720),
        is_jpeg=True,
    )


def _samples_section(data_dir: str, split: dataset_stats.Split) -> report.Section:
    count = min(len(split.image_ids), _SAMPLED_RECORDS)
    num_drawn = min(_NUM_SAMPLES, count)
    # Images with faulty boxes come first.
    faulty = np.unique(split.images[~split.is_usable | split.is_outside])
    spread = np.linspace(0, count - 1, num_drawn).astype(int)
    indices = [*faulty[faulty < count][: num_drawn // 2], *spread]
    drawn = set(list(dict.fromkeys(map(int, indices)))[:num_drawn])
    files = record_files.find(data_dir, split.name)
    drawings = []
    for image, record in enumerate(tf.data.TFRecordDataset(files).take(count)):
        if image in drawn:
            encoded = tf_example.parse(record).encoded
            pixels = tf.io.decode_image(encoded, 3, expand_animations=False).numpy()
            is_here = split.images == image
            boxes, ids = split.boxes_yxyx[is_here], split.category_ids[is_here]
            drawings.append(charts.annotated(pixels, boxes, ids))
    return report.Section(
        f"Samples of {split.name}",
        "Colors as in the table of classes.",
        image=visualize.grid(drawings, 4, height=320),
        is_jpeg=True,
    )


def main() -> None:
    """Runs the command."""
    plotting.check_installed()
    subject = read_subject()
    coverages = split_coverages(subject)
    issues = find_issues(subject, coverages)
    names = " and ".join(split.name for split in subject.splits)
    title = f"{names} of {subject.data_dir}"
    for issue in issues:
        print(f"{issue.severity.name.lower()}: {issue.text}")
    report.write(_OUTPUT.value, title, issues, sections(subject, coverages))
    print(f"{report.verdict(issues)} Written to {_OUTPUT.value}.")
    if any(issue.severity == data_issues.Severity.ERROR for issue in issues):
        sys.exit(exit_codes.ExitCode.UNFIT_DATA)


if __name__ == "__main__":
    guard.run(main)
