r"""Looks through a data directory before training does: counts, checks, drawings.

  python -m retinanet_tpu.inspect_data --gin_file=gin_configs/bccd_r18.gin \
      --gin_param="DATA_DIR = 'data/bccd'" --output=report.html --draw_targets=4
  python -m retinanet_tpu.inspect_data --data_dir=data/bccd --output=report.png

The second form knows no network: no training size, no anchors, no NUM_CLASSES. Every
record of both splits is read. --draw_targets=N draws N training images as the network
sees them, after augmentation, with the anchors that the run assigns to each box.

Exit codes: 0 can be trained on, perhaps with warnings; 1 the tool itself failed; 2 an
error was found that stops training or leads to an AP of 0.

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

from retinanet_tpu import errors
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

_DATA_DIR = flags.DEFINE_string("data_dir", None, "To look at without --gin_file.")
_OUTPUT = flags.DEFINE_string("output", None, "HTML or PNG file to write.")
_DRAW_TARGETS = flags.DEFINE_integer("draw_targets", 0, "Training images to draw.")
EXIT_UNFIT = 2
_NUM_SAMPLES = 8  # Images of a split that are drawn.
_SAMPLED_RECORDS = 1000  # They are among the first, as records are read in order.


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is looked at.

    Attributes:
      data_dir: the directory.
      categories: its classes.
      splits: measured, the one to train on first.
      run: the run, or None.
    """

    data_dir: str
    categories: category_map.Categories
    splits: tuple[dataset_stats.Split, ...]
    run: Run | None = None


@dataclasses.dataclass(frozen=True)
class Reached:
    """A split's boxes on the canvas and how well the run's anchors reach them.

    Attributes:
      name: the split, and whether whole or augmented.
      shown: the boxes.
      by_size: from COCO's size to recall.
    """

    name: str
    shown: anchor_recall.AugmentedBoxes
    by_size: dict[str, anchor_search.Coverage]


def read_subject() -> Subject:
    """Reads what the flags name.

    Raises:
      MissingFileError: there are no records or no classes.
      UserError: the flags name neither a run nor a directory, or targets without a
        run; or a record is damaged.
    """
    if _DRAW_TARGETS.value and not cli.GIN_FILE.value:
        raise errors.UserError("--draw_targets needs a network: name it by --gin_file.")
    run = None
    if cli.GIN_FILE.value:
        cli.parse_files()
        run = configurables.make_run(None, strategy_fn=tf.distribute.get_strategy)
        data_dir = run.data.dir
        names = dict.fromkeys([run.data.train_split, run.data.eval_split])
    else:
        if not _DATA_DIR.value:
            raise errors.UserError(
                "Name what to look at: --gin_file=… or --data_dir=…."
            )
        data_dir = _DATA_DIR.value.rstrip("/")
        names = split_names(data_dir)
    categories = category_map.read(f"{data_dir}/{category_map.FILE_NAME}")
    splits = tuple(dataset_stats.read(data_dir, name, categories) for name in names)
    return Subject(data_dir, categories, splits, run)


def split_names(data_dir: str) -> list[str]:
    """Returns the splits of a directory, those named train… first.

    Raises:
      MissingFileError: it has no records.
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


def reached(subject: Subject) -> list[Reached]:
    """Returns how the run's anchors reach each split, and augmented training images."""
    if subject.run is None:
        return []
    recipe, data = subject.run.recipe, subject.run.data
    canvas = examples.OutputSpec(recipe.image_size, data.max_boxes)
    train = subject.splits[0]
    wanted = [(f"{train.name}, augmented", train, data.augmentation)]
    wanted += [(f"{split.name}, whole", split, None) for split in subject.splits]
    found = []
    for name, split, augmentation in wanted:
        shown = anchor_recall.augment_boxes(split, canvas, augmentation=augmentation)
        ious = anchor_search.best_iou(
            shown.boxes_yxyx, recipe.anchors, recipe.image_size
        )
        found.append(Reached(name, shown, anchor_recall.by_size(ious, shown, split)))
    return found


def problems(subject: Subject, reaches: Sequence[Reached]) -> list[data_issues.Issue]:
    """Returns everything to be looked at, the worst first."""
    categories, run, train = subject.categories, subject.run, subject.splits[0]
    num_classes = run.recipe.num_classes if run else None
    found = data_issues.label_map_issues(train, categories, num_classes)
    for split in subject.splits:
        found += data_issues.split_issues(split, categories)
    for split in subject.splits[1:]:
        found += data_issues.pair_issues(train, split, categories)
        path = f"{subject.data_dir}/{split.name}.json"
        if tf.io.gfile.exists(path):
            found += data_issues.annotation_file_issues(split, path)
    for reach in reaches[:1]:
        found += data_checks.anchor_findings(reach.by_size, reach.name)
    if run:
        found += data_checks.plan_findings(run, subject.splits)
    return sorted(found, key=lambda finding: -finding.severity)


def sections(subject: Subject, reaches: Sequence[Reached]) -> list[report.Section]:
    """Returns the page, from the counts to the images."""
    made = [
        report.Section("Splits", table=tables.splits_table(subject.splits)),
        report.Section(
            "Classes",
            table=tables.classes_table(subject.splits, subject.categories),
        ),
        report.Section(
            "Images and boxes",
            picture=charts.data_charts(subject.splits, subject.categories),
        ),
    ]
    if reaches:
        recipe = subject.run.recipe
        height, width = recipe.image_size
        made.append(
            report.Section(
                f"Anchors at {height} x {width}",
                "Share of boxes with an anchor of IoU .5, and the mean IoU with the "
                "best one, by COCO's sizes in the original image.",
                tables.anchors_table([(r.name, r.by_size) for r in reaches]),
                charts.anchor_charts(
                    [(reach.name, reach.shown.boxes_yxyx) for reach in reaches],
                    recipe.anchors,
                    recipe.image_size,
                ),
            )
        )
    if _DRAW_TARGETS.value:
        made.append(_targets_section(subject))
    for split in subject.splits:
        if len(split.image_ids):
            made.append(_samples_section(subject, split))
    return made


def _targets_section(subject):
    run, categories = subject.run, subject.categories
    context = spec.TPUContext(num_replicas=1, num_hosts=1, current_host=0)
    recipe = dataclasses.replace(run.recipe, categories=categories)
    params = {
        "recipe": recipe,
        "batch_size": _DRAW_TARGETS.value,
        "context": context,
    }
    title = "What the network is to answer"
    try:
        features, labels = next(iter(run.train_spec.input_fn(params)))
    except tf.errors.InvalidArgumentError as error:
        return report.Section(title, f"Cannot be loaded: {error.message}")
    drawn, num_forced = [], 0
    assigned = anchor_recall.assigned_anchors(
        labels,
        recipe.assign(labels),
        anchors=recipe.anchors,
        image_size=recipe.image_size,
    )
    for image, found in enumerate(assigned):
        num_boxes = int(labels.num_boxes[image])
        classes = labels.classes[image, :num_boxes].numpy()
        names = [categories.names[index] for index in classes]
        boxes = labels.boxes_yxyx[image, :num_boxes].numpy()
        ious = anchor_search.best_iou(boxes, recipe.anchors, recipe.image_size)
        num_forced += int((ious < anchor_search.RECALL_IOU).sum())
        pixels = features.images[image].numpy()
        drawn.append(charts.targets(pixels, boxes, names, found))
    return report.Section(
        title,
        "Training images after augmentation. Thick: annotated boxes, with the number "
        "of anchors that answer for each; thin, in the same color: those anchors; "
        f"red: none does. {num_forced} boxes have no anchor of IoU "
        f"{anchor_search.RECALL_IOU} and get only their best one.",
        picture=visualize.grid(drawn, 2, height=720),
        is_photograph=True,
    )


def _samples_section(subject, split):
    count = min(len(split.image_ids), _SAMPLED_RECORDS)
    num = min(_NUM_SAMPLES, count)
    # What is wrong comes first.
    wrong = np.unique(split.images[~split.is_usable | split.is_outside])
    spread = np.linspace(0, count - 1, num).astype(int)
    places = [*wrong[wrong < count][: num // 2], *spread]
    wanted = set(list(dict.fromkeys(map(int, places)))[:num])
    files = record_files.find(subject.data_dir, split.name)
    drawn = []
    for place, record in enumerate(tf.data.TFRecordDataset(files).take(count)):
        if place in wanted:
            encoded = tf_example.parse(record).encoded
            pixels = tf.io.decode_image(encoded, 3, expand_animations=False).numpy()
            is_here = split.images == place
            boxes, ids = split.boxes_yxyx[is_here], split.category_ids[is_here]
            drawn.append(charts.annotated(pixels, boxes, ids))
    return report.Section(
        f"Samples of {split.name}",
        "Colors as in the table of classes.",
        picture=visualize.grid(drawn, 4, height=320),
        is_photograph=True,
    )


def main() -> None:
    """Runs the command."""
    plotting.check_installed()
    subject = read_subject()
    reaches = reached(subject)
    found = problems(subject, reaches)
    names = " and ".join(split.name for split in subject.splits)
    title = f"{names} of {subject.data_dir}"
    for finding in found:
        print(f"{finding.severity.name.lower()}: {finding.text}")
    report.write(_OUTPUT.value, title, found, sections(subject, reaches))
    print(f"{report.verdict(found)} Written to {_OUTPUT.value}.")
    if any(f.severity == data_issues.Severity.ERROR for f in found):
        sys.exit(EXIT_UNFIT)


if __name__ == "__main__":
    flags.mark_flags_as_required(["output"])
    guard.run(main)
