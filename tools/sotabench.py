"""Scores an exported model with sotabench's own evaluator of COCO.

  pip install --no-deps sotabencheval==0.0.38 sotabenchapi==0.0.16
  pip install click requests tabulate
  python tools/sotabench.py --model=run1/export/latest --coco_root=coco

The evaluator reads COCO_ROOT/annotations/instances_val2017.json, or unpacks it from
COCO_ROOT/annotations_trainval2017.zip, and downloads nothing; the images are taken
from COCO_ROOT/val2017. --no-deps, because it asks for releases of 2019.

What is known of it (November 2026): the package is of September 2020, the last; it
still runs, on TensorFlow 2.20's NumPy, and gives the six APs that pycocotools gives. It
talks to sotabench.com only on that site's machines (SOTABENCH_SERVER) or if asked to
check a submission (SOTABENCH_CHECK). Papers with Code, whose site it was, was closed in
July 2025; whether anything still takes results was not tried. With
SOTABENCH_STORE_FILENAME=results.json the result goes into a file as the site took it.
"""

import retinanet_tpu.startup.cpu

from collections.abc import Callable
from typing import Any

from absl import flags, logging

from retinanet_tpu import errors, evaluate_export
from retinanet_tpu.evaluation import coco_metric
from retinanet_tpu.serving import artifacts, batching
from retinanet_tpu.startup import guard

FLAGS = flags.FLAGS


def make_evaluator(coco_root: str, split: str, year: str, **model: str) -> Any:
    """Returns sotabench's COCOEvaluator.

    Args:
      coco_root: see above.
      split: "val".
      year: of the data set, "2017".
      model: its model_name, paper_arxiv_id and so on.
    Raises:
      UserError: the package is missing, or there are no annotations, or they cannot be
        scored.
    """
    try:
        from sotabencheval import object_detection
    except ImportError as error:
        raise errors.UserError(
            f"sotabencheval cannot be imported ({error}): pip install --no-deps "
            "sotabencheval==0.0.38 sotabenchapi==0.0.16; pip install click requests "
            "tabulate"
        ) from error
    name = f"annotations/instances_{split}{year}.json"
    try:
        evaluator = _call(
            object_detection.COCOEvaluator,
            root=coco_root,
            split=split,
            dataset_year=year,
            **model,
        )
    except OSError as error:
        raise errors.UserError(
            f"--coco_root={coco_root} has no {name}: {error}."
        ) from error
    # The evaluator reads the file without checks.
    coco_metric.ground_truth(f"{evaluator.root}/{name}")
    return evaluator


def feed(
    evaluator: Any,
    artifact: artifacts.Artifact,
    images_dir: str,
    *,
    batch_size: int,
) -> dict[str, float]:
    """Shows the annotated images to a model and its findings to the evaluator.

    Args:
      evaluator: a COCOEvaluator.
      artifact: an exported model.
      images_dir: of the annotated images.
      batch_size: images of one size that go through the model at once.
    Returns:
      sotabench's six numbers: "box AP", "AP50", "AP75", "APS", "APM", "APL".
    Raises:
      UserError: the model and the annotations do not fit, an image cannot be read,
        nothing was found, which the evaluator cannot take, or it fails.
    """
    truth = evaluator.coco
    evaluate_export.check_categories(artifact, truth)
    meter, records = batching.Meter("sotabench", len(truth.imgs)), []
    batches = evaluate_export.detect_annotated_images(
        artifact, truth, images_dir, batch_size=batch_size, meter=meter
    )
    evaluator.reset_time()
    is_first = True
    for found, image_ids in batches:
        for row, image_id in enumerate(image_ids):
            one = artifacts.select_image(found, row)
            records += coco_metric.detection_records(*one[:3], image_id)
        # The site knows a model that it has scored by what it finds first. All that is
        # added later is indexed anew each time, so that the rest comes in one piece.
        if records and is_first:
            _call(evaluator.add, records)
            records, is_first = [], False
            if evaluator.cache_exists:
                break
    meter.close()
    logging.info(f"sotabench | {meter}")
    if is_first:
        raise errors.UserError("The model finds nothing, which sotabench cannot score.")
    if records:
        _call(evaluator.add, records)
    return _call(evaluator.save).results


def _call(method: Callable, *arguments: Any, **named: Any) -> Any:
    """Calls the evaluator, in which what is newer than itself may break anything."""
    try:
        return method(*arguments, **named)
    except OSError:
        raise
    except Exception as error:
        raise errors.UserError(
            f"sotabencheval failed with {type(error).__name__}: {error}; "
            "retinanet-tpu evaluate_export gives the same APs without it."
        ) from error


def main() -> None:
    """Runs the command."""
    evaluator = make_evaluator(
        FLAGS.coco_root,
        FLAGS.split,
        FLAGS.year,
        model_name=FLAGS.model_name,
        paper_arxiv_id=FLAGS.arxiv_id,
    )
    artifact = artifacts.load(artifacts.find(FLAGS.model))
    logging.info(f"sotabench | {artifact.kind} {artifact.path}")
    # On the site's machines the evaluator has a root of its own.
    images_dir = f"{evaluator.root}/{FLAGS.split}{FLAGS.year}"
    results = feed(evaluator, artifact, images_dir, batch_size=FLAGS.batch_size)
    for name, value in results.items():
        print(f"{name:<8}{value:.3f}")


def define_flags() -> None:
    """Defines the flags; not on import, as evaluate_export."""
    flags.DEFINE_string("model", None, "SavedModel, .onnx, .tflite, or their folder.")
    flags.DEFINE_string("coco_root", None, "Has annotations/ and val2017/.")
    flags.DEFINE_string("split", "val", "Of the data set.")
    flags.DEFINE_string("year", "2017", "Of the data set.")
    flags.DEFINE_string("model_name", "RetinaNet", "As the leaderboard is to call it.")
    flags.DEFINE_string("arxiv_id", "1708.02002", "Of the model's paper.")
    flags.DEFINE_integer(
        "batch_size", 8, "Images of one size to take at once.", lower_bound=1
    )
    flags.mark_flags_as_required(["model", "coco_root"])


if __name__ == "__main__":
    define_flags()
    guard.run(main)
