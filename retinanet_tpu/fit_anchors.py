r"""Fits anchors to the boxes of a dataset, and writes them as a gin file.

  python -m retinanet_tpu.fit_anchors --gin_file=gin_configs/bccd_r18.gin \
      --gin_param="DATA_DIR = 'data/bccd'" --output=anchors.gin
  python -m retinanet_tpu.train --gin_file=gin_configs/bccd_r18.gin \
      --gin_file=anchors.gin --model_dir=runs/bccd

Boxes are augmented as in training: resized to IMAGE_SIZE, with the scale jitter of the
run. The search starts from the size, scales and aspect ratios of the run's Anchors;
levels stay. --num_scales and --num_aspect_ratios set other counts, which also changes
the number of outputs of the heads. The printed table of the evaluation split, whose
whole images the search does not use, shows whether the gain generalizes.
"""

import retinanet_tpu.startup.cpu

from collections.abc import Sequence

import tensorflow as tf
from absl import flags

from retinanet_tpu import errors
from retinanet_tpu.boxes.anchors import Anchors
from retinanet_tpu.data import examples
from retinanet_tpu.inspection import anchor_recall, anchor_search, dataset_stats
from retinanet_tpu.startup import guard
from retinanet_tpu.task import cli, configurables
from retinanet_tpu.task.run import Run

_OUTPUT = flags.DEFINE_string("output", None, "The gin file to write.", required=True)
_NUM_SCALES = flags.DEFINE_integer(
    "num_scales", None, "The number of scales; default: that of the run."
)
_NUM_ASPECT_RATIOS = flags.DEFINE_integer(
    "num_aspect_ratios", None, "The number of aspect ratios; default: that of the run."
)
_PASSES = 2  # The number of augmented samples of each image.


def coverage_lines(
    augmented: anchor_recall.AugmentedBoxes,
    split: dataset_stats.Split,
    choices: tuple[Anchors, Anchors],
    image_size: tuple[int, int],
) -> list[str]:
    """Returns the table of one split: the coverage of its boxes before and after.

    Args:
      augmented: The boxes in the network's input.
      split: The split that they are from.
      choices: The anchors before and after.
      image_size: The height and width of the network's input, px.
    """
    before, after = (
        anchor_recall.by_size(
            anchor_search.best_iou(augmented.boxes_yxyx, anchors, image_size),
            augmented,
            split,
        )
        for anchors in choices
    )
    return [
        f"{size:>8}{before[size].num_boxes:>9,}"
        f"{before[size].recall:>10.4f} -> {after[size].recall:.4f}"
        f"{before[size].mean_iou:>10.4f} -> {after[size].mean_iou:.4f}"
        for size in before
    ]


def gin_text(anchors: Anchors, comment: Sequence[str]) -> str:
    """Returns the text of a gin file.

    Args:
      anchors: The anchors that it sets.
      comment: The lines of the comment at its beginning.
    """
    return "".join(
        [
            *(f"# {line}\n" for line in comment),
            f"Anchors.size = {anchors.size}\n",
            f"Anchors.scales = {anchors.scales}\n",
            f"Anchors.aspect_ratios = {anchors.aspect_ratios}\n",
        ]
    )


def fit(run: Run) -> tuple[Anchors, list[str]]:
    """Returns the fitted anchors and the lines of the tables of coverage.

    Args:
      run: The run; it needs no model_dir.
    Raises:
      MissingFileError: The training split has no records.
      UserError: It has no boxes, or a record is corrupt.
    """
    recipe, data, categories = run.recipe, run.data, run.data.read_categories()
    start, image_size = recipe.anchors, recipe.image_size
    output = examples.OutputSpec(
        recipe.image_size, data.max_boxes, recipe.keep_aspect_ratio
    )
    train = dataset_stats.read(data.dir, data.train_split, categories)
    augmented = anchor_recall.augment_boxes(
        train, output, augmentation=data.augmentation, passes=_PASSES
    )
    if not len(augmented.boxes_yxyx):
        raise errors.UserError(
            f"No box of {data.train_split} is visible at {image_size}; "
            "retinanet-tpu inspect_data shows why."
        )
    anchors = anchor_search.fit(
        augmented.boxes_yxyx,
        start,
        image_size,
        groups=train.size_indexes[augmented.box_indices],
        counts=(
            _NUM_SCALES.value or len(start.scales),
            _NUM_ASPECT_RATIOS.value or len(start.aspect_ratios),
        ),
    )
    head = f"{'size':>8}{'boxes':>9}{'recall at IoU .5':>20}{'mean best IoU':>20}"
    choices = (start, anchors)
    lines = [
        f"{train.name}, augmented, at {image_size[0]} x {image_size[1]}:",
        head,
        *coverage_lines(augmented, train, choices, image_size),
    ]
    if data.eval_split != data.train_split and tf.io.gfile.exists(data.annotation_file):
        val = dataset_stats.read(data.dir, data.eval_split, categories)
        whole = anchor_recall.augment_boxes(val, output)
        lines += [f"{val.name}, whole images, not used by the search:", head]
        lines += coverage_lines(whole, val, choices, image_size)
    return anchors, lines


def main() -> None:
    """Runs the command."""
    cli.parse_files()
    run = configurables.make_run(None, strategy_fn=tf.distribute.get_strategy)
    anchors, lines = fit(run)
    print("\n".join(lines))
    start = run.recipe.anchors
    if anchors is start:
        print("Nothing better was found; the anchors of the run stay.")
    comment = [
        f"Anchors for {run.data.dir}, fitted by retinanet-tpu fit_anchors from size "
        f"{start.size:.4g},",
        f"scales {_short(start.scales)}, aspect ratios {_short(start.aspect_ratios)}. "
        "Recall and IoU before -> after:",
        *lines,
    ]
    text = gin_text(anchors, comment)
    with tf.io.gfile.GFile(_OUTPUT.value, "w") as file:
        file.write(text)
    print()
    print("\n".join(text.splitlines()[-3:]))
    print(f"Written to {_OUTPUT.value}; name it as a further --gin_file.")


def _short(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"


if __name__ == "__main__":
    guard.run(main)
