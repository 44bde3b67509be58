r"""Finds anchors that suit the boxes of a data set, and writes them as a gin file.

  python -m retinanet_tpu.fit_anchors --gin_file=gin_configs/bccd_r18.gin \
      --gin_param="DATA_DIR = 'data/bccd'" --output=anchors.gin
  python -m retinanet_tpu.train --gin_file=gin_configs/bccd_r18.gin \
      --gin_file=anchors.gin --model_dir=runs/bccd

Boxes are taken as training shows them: resized to IMAGE_SIZE, with the scale jitter of
the run. Size, scales and aspect ratios of the run's Anchors are the start; levels stay.
--num_scales and --num_aspect_ratios ask for other counts, which also changes how many
outputs the heads have. What is printed for the split to score on, whole images that
the search never saw, says whether the find is more than luck.
"""

import retinanet_tpu.startup.cpu

import tensorflow as tf
from absl import flags

from retinanet_tpu import errors
from retinanet_tpu.boxes import anchors as anchors_lib
from retinanet_tpu.data import examples
from retinanet_tpu.inspection import anchor_recall, anchor_search, dataset_stats
from retinanet_tpu.startup import guard
from retinanet_tpu.task import cli, configurables
from retinanet_tpu.task.run import Run

_OUTPUT = flags.DEFINE_string("output", None, "Gin file to write.")
_NUM_SCALES = flags.DEFINE_integer("num_scales", None, "As in the run by default.")
_NUM_ASPECT_RATIOS = flags.DEFINE_integer(
    "num_aspect_ratios", None, "As in the run by default."
)
_PASSES = 2  # How often each image's jitter is drawn.


def rows(
    shown: anchor_recall.AugmentedBoxes,
    split: dataset_stats.Split,
    choices: tuple[anchors_lib.Anchors, anchors_lib.Anchors],
    image_size: tuple[int, int],
) -> list[str]:
    """Returns the table of one split: how well boxes are reached before and after.

    Args:
      shown: its boxes on the canvas.
      split: where they are from.
      choices: the anchors before and after.
      image_size: height and width of the network's input, px.
    """
    before, after = (
        anchor_recall.by_size(
            anchor_search.best_iou(shown.boxes_yxyx, anchors, image_size), shown, split
        )
        for anchors in choices
    )
    return [
        f"{size:>8}{before[size].num_boxes:>9,}"
        f"{before[size].recall:>10.4f} -> {after[size].recall:.4f}"
        f"{before[size].mean_iou:>10.4f} -> {after[size].mean_iou:.4f}"
        for size in before
    ]


def gin_text(found: anchors_lib.Anchors, comment: list[str]) -> str:
    """Returns a gin file of the anchors."""
    return "".join(
        [
            *(f"# {line}\n" for line in comment),
            f"Anchors.size = {found.size}\n",
            f"Anchors.scales = {found.scales}\n",
            f"Anchors.aspect_ratios = {found.aspect_ratios}\n",
        ]
    )


def find(run: Run) -> tuple[anchors_lib.Anchors, list[str]]:
    """Returns the anchors and the tables that say what they gain.

    Raises:
      MissingFileError: the split to train on has no records.
      UserError: it has no boxes, or a record is damaged.
    """
    recipe, data, categories = run.recipe, run.data, run.data.read_categories()
    start, image_size = recipe.anchors, recipe.image_size
    canvas = examples.OutputSpec(image_size, data.max_boxes)
    train = dataset_stats.read(data.dir, data.train_split, categories)
    shown = anchor_recall.augment_boxes(
        train, canvas, augmentation=data.augmentation, passes=_PASSES
    )
    if not len(shown.boxes_yxyx):
        raise errors.UserError(
            f"No box of {data.train_split} can be seen at {image_size}; "
            "retinanet-tpu inspect_data says why."
        )
    found = anchor_search.fit(
        shown.boxes_yxyx,
        start,
        image_size,
        groups=train.size_indexes[shown.places],
        counts=(
            _NUM_SCALES.value or len(start.scales),
            _NUM_ASPECT_RATIOS.value or len(start.aspect_ratios),
        ),
    )
    head = (
        f"{'size':>8}{'boxes':>9}{'recall at IoU .5':>20}{'mean best IoU':>20}".rstrip()
    )
    choices = (start, found)
    lines = [
        f"{train.name}, as training shows it at {image_size[0]} x {image_size[1]}:",
        head,
        *rows(shown, train, choices, image_size),
    ]
    if data.eval_split != data.train_split and tf.io.gfile.exists(data.annotation_file):
        val = dataset_stats.read(data.dir, data.eval_split, categories)
        whole = anchor_recall.augment_boxes(val, canvas)
        lines += [f"{val.name}, which the search did not see, whole:", head]
        lines += rows(whole, val, choices, image_size)
    return found, lines


def main() -> None:
    """Runs the command."""
    cli.parse_files()
    run = configurables.make_run(None, strategy_fn=tf.distribute.get_strategy)
    found, lines = find(run)
    print("\n".join(lines))
    start = run.recipe.anchors
    if found is start:
        print("Nothing better was found; the anchors of the run stay.")
    text = gin_text(
        found,
        [
            f"Anchors for {run.data.dir}, found by retinanet-tpu fit_anchors from size "
            f"{start.size:.4g},",
            f"scales {_short(start.scales)}, aspect ratios "
            f"{_short(start.aspect_ratios)}. Recall and IoU before -> after:",
            *lines,
        ],
    )
    with tf.io.gfile.GFile(_OUTPUT.value, "w") as file:
        file.write(text)
    print(
        f"\n{text.splitlines()[-3]}\n{text.splitlines()[-2]}\n{text.splitlines()[-1]}"
    )
    print(f"Written to {_OUTPUT.value}; name it as a further --gin_file.")


def _short(values) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"


if __name__ == "__main__":
    flags.mark_flags_as_required(["output"])
    guard.run(main)
