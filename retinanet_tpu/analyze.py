r"""Explains the result of an evaluation on one HTML page.

  python -m retinanet_tpu.analyze --model_dir=run1 [--split=test]
  python -m retinanet_tpu.analyze --detections=results.json \
      --annotations=instances_val2017.json [--images=val2017] --output=analysis.html

The page has the AP of each class, precision-recall curves, the cost of each kind of
errors, confused classes, groups of objects, calibration of the scores, and the worst
images with their boxes. The page loads no other files, so it can be sent or archived.

With --model_dir a checkpoint detects in the images of the run's evaluation split. The
settings are those of the run, and the default page is analysis-STEP.html beside the
split's eval.jsonl.

With --detections the file is in COCO's results format, such as that of
`evaluate_export --output`. Its image ids must be those of --annotations.
"""

import retinanet_tpu.startup.cpu

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from absl import flags, logging
from pycocotools.coco import COCO

from retinanet_tpu import errors, structures
from retinanet_tpu.analysis import (
    analyze as analysis_of,
    image_detections,
    image_reader,
    page,
    page_html,
    results,
)
from retinanet_tpu.data import record_images
from retinanet_tpu.estimator import summaries
from retinanet_tpu.estimator.cluster import strategy
from retinanet_tpu.estimator.model_dir import checkpoints, leases
from retinanet_tpu.evaluation import coco_metric
from retinanet_tpu.startup import guard
from retinanet_tpu.task import cli, configurables, metric_fn
from retinanet_tpu.task.run import Run

FLAGS = flags.FLAGS


class Source(NamedTuple):
    """An evaluation to analyze.

    Attributes:
      truth: The annotations.
      detections: The detections of each image that has some.
      title: The title of the page.
      subtitle: A line below the title.
      output: The path of the page.
      image_fn: Returns uint8 [H, W, 3], RGB, for the id of an image, or None.
      compared: The names and metrics of other evaluations.
    """

    truth: COCO
    detections: list[image_detections.ImageDetections]
    title: str
    subtitle: str
    output: str
    image_fn: Callable[[int], np.ndarray | None] | None = None
    compared: page.Compared = ()


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string(
        "split", None, "The split to analyze; default: the eval_split of the run."
    )
    flags.DEFINE_string(
        "detections", None, "A JSON file in COCO's results format, instead of a run."
    )
    flags.DEFINE_string("annotations", None, "The COCO JSON file of --detections.")
    flags.DEFINE_string(
        "images", None, "The folder of the images of --annotations, to draw them."
    )
    flags.DEFINE_string("output", None, "The HTML file to write.")
    flags.DEFINE_integer(
        "max_images", 24, "The most images that the page shows.", lower_bound=1
    )


def main() -> None:
    """Runs the command."""
    if bool(FLAGS.detections) == bool(cli.MODEL_DIR.value):
        raise errors.UserError(
            "Give either --model_dir of a run, or --detections with --annotations."
        )
    unused = ("split", "checkpoint") if FLAGS.detections else ("annotations", "images")
    if wrong := [f"--{name}" for name in unused if FLAGS[name].value is not None]:
        mode = "--detections" if FLAGS.detections else "--model_dir"
        raise errors.UserError(f"{mode} does not use {' and '.join(wrong)}; remove it.")
    if FLAGS.detections:
        source = evaluation_of_file(
            FLAGS.detections, FLAGS.annotations, FLAGS.images, FLAGS.output
        )
    else:
        source = evaluation_of_run(FLAGS.split, FLAGS.checkpoint, FLAGS.output)
    print(write_page(source, max_images=FLAGS.max_images))
    print(f"The page is {source.output}")


def write_page(source: Source, *, max_images: int = 24) -> str:
    """Analyzes an evaluation and writes the page; returns a summary in a few lines.

    Args:
      source: The evaluation.
      max_images: The most images that each list of the page shows.
    """
    analysis = analysis_of.analyze(source.truth, source.detections)
    html = page.html(
        analysis,
        title=source.title,
        subtitle=source.subtitle,
        image_fn=source.image_fn,
        compared=source.compared,
        max_images=max_images,
    )
    page_html.write(source.output, html)
    return summarize(analysis)


def summarize(analysis: results.Analysis) -> str:
    """Returns the result and the cost of each kind of errors, in a few lines.

    Args:
      analysis: The analysis.
    """
    whole = analysis.all_classes
    threshold = whole.curve.best_threshold
    f1 = (
        "no detection is correct"
        if threshold is None
        else f"highest F1 {whole.curve.f1.max():.3f} at the score {threshold:.2f}"
    )
    lines = [
        f"AP {whole.ap:.3f} | AP50 {whole.ap50:.3f} | AP75 {whole.ap75:.3f} | {f1}"
    ]
    for kind, count, cost in sorted(analysis.errors, key=lambda e: -e.ap50_cost):
        lines.append(f"{kind:<12} {count:6d} errors cost {cost:.3f} AP50")
    return "\n".join(lines)


def evaluation_of_file(
    detections: str,
    annotations: str | None,
    images_dir: str | None,
    output: str | None,
) -> Source:
    """Returns the evaluation of a file in COCO's results format.

    Args:
      detections: The path of the file.
      annotations: The path of the COCO JSON file of its images.
      images_dir: The folder of the images, to draw them; None for gray.
      output: The path of the page.
    Raises:
      UserError: A path is missing, or the files do not fit each other.
    """
    if not annotations or not output:
        raise errors.UserError("--detections also requires --annotations and --output.")
    page_html.check_output(output)
    truth = coco_metric.ground_truth(annotations)
    return Source(
        truth=truth,
        detections=image_detections.read_results(detections, truth),
        title=f"Analysis of {os.path.basename(detections)}",
        subtitle=f"Against {os.path.basename(annotations)}",
        output=output,
        image_fn=image_reader.of_folder(truth, images_dir) if images_dir else None,
    )


def evaluation_of_run(
    split: str | None = None, checkpoint: str | None = None, output: str | None = None
) -> Source:
    """Returns the evaluation of a checkpoint of --model_dir.

    Args:
      split: The split to detect in; None for the eval_split of the run.
      checkpoint: The path of the checkpoint; None for the latest.
      output: The path of the page; None for a file beside eval.jsonl.
    Raises:
      MissingFileError: There is no checkpoint, or the split has no files.
    """
    settings = ["COMPUTE_DTYPE = 'float32'"]
    if split:
        settings.append(f"Data.eval_split = {split!r}")
    cli.parse_model_dir(*settings)
    model_dir = cli.model_dir()
    run = configurables.make_run(
        model_dir,
        strategy_fn=lambda: strategy.make_strategy(
            "cpu", num_devices=1, single_process=True
        ),
    )
    path = checkpoint or checkpoints.latest(model_dir)
    if not path:
        raise errors.MissingFileError(
            f"No checkpoint in {model_dir}; train first or check --model_dir."
        )
    truth = coco_metric.ground_truth(run.data.annotation_file)
    step = path.rpartition("-")[2]
    folder = summaries.eval_dir(model_dir, split)
    output = output or f"{folder}/analysis-{step}.html"
    page_html.check_output(output)
    return Source(
        truth=truth,
        detections=_detect(run, path),
        title=f"Analysis of {os.path.basename(model_dir)}, step {step}",
        subtitle=f"{path}, split {run.data.eval_split}",
        output=output,
        image_fn=record_images.RecordImages(run.data.dir, run.data.eval_split),
        compared=page.previous_and_best(
            summaries.read_evaluations(folder), int(step) if step.isdigit() else None
        ),
    )


def _detect(run: Run, path: str) -> list[image_detections.ImageDetections]:
    """Returns the detections of a checkpoint in the evaluation split."""
    found: list[image_detections.ImageDetections] = []
    with (
        cli.explain_data_errors(run),
        leases.lease_if_of_run(cli.model_dir(), path),
    ):
        batches = run.estimator.predict(run.eval_spec.input_fn, checkpoint_path=path)
        for batch in batches:
            image_ids = batch.pop("image_ids")
            before = len(found)
            detections = structures.Detections(**batch)
            found += image_detections.from_batch(detections, image_ids)
            every = metric_fn.PROGRESS_EVERY
            if before // every != len(found) // every:
                logging.info("Detected in %d images", len(found))
    return found


if __name__ == "__main__":
    define_flags()
    cli.checkpoint_flag()
    guard.run(main)
