"""Evaluates an exported model with sotabench's own COCO evaluator.

  pip install --no-deps sotabencheval==0.0.38 sotabenchapi==0.0.16
  pip install click requests tabulate
  python tools/sotabench.py --model=run1/export/latest --coco_root=coco

The evaluator reads COCO_ROOT/annotations/instances_val2017.json, or unpacks it from
COCO_ROOT/annotations_trainval2017.zip. It downloads nothing. The images are read from
COCO_ROOT/val2017. --no-deps is necessary: the package requires releases of 2019.

State of the service in November 2026:
* The last release of the package is of September 2020. It runs with TensorFlow 2.20's
  NumPy and returns the same six APs as pycocotools.
* It connects to sotabench.com only on that site's machines (SOTABENCH_SERVER) or to
  check a submission (SOTABENCH_CHECK).
* Papers with Code, which ran the site, closed in July 2025. Whether a site still
  accepts results was not tested.
* SOTABENCH_STORE_FILENAME=results.json writes the result to a file, in the site's
  format.
"""

import retinanet_tpu.startup.cpu

from collections.abc import Callable
from typing import Any

from absl import flags, logging

from retinanet_tpu import errors
from retinanet_tpu.evaluation import coco_metric
from retinanet_tpu.serving import annotated_images, artifacts, batching
from retinanet_tpu.startup import guard

FLAGS = flags.FLAGS


def make_evaluator(coco_root: str, split: str, year: str, **model: str) -> Any:
    """Returns sotabench's COCOEvaluator.

    Args:
      coco_root: The folder of the data set; see above.
      split: The split, "val".
      year: The year of the data set, "2017".
      model: The description of the model: model_name, paper_arxiv_id and others of
        COCOEvaluator.

    Raises:
      UserError: The package is missing, or the annotations are missing or invalid.
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
    # The evaluator itself does not check the file.
    coco_metric.ground_truth(f"{evaluator.root}/{name}")
    return evaluator


def feed(
    evaluator: Any,
    artifact: artifacts.Artifact,
    images_dir: str,
    *,
    batch_size: int,
) -> dict[str, float]:
    """Runs a model on the annotated images and passes the detections to the evaluator.

    Args:
      evaluator: The COCOEvaluator.
      artifact: The exported model.
      images_dir: The folder of the annotated images.
      batch_size: The number of images of one size that are processed together.

    Returns:
      sotabench's six metrics: "box AP", "AP50", "AP75", "APS", "APM", "APL".

    Raises:
      UserError: The model and the annotations have different categories, an image
        cannot be read, there are no detections, or the evaluator fails.
    """
    truth = evaluator.coco
    annotated_images.check_categories(artifact.path, artifact.categories, truth)
    meter, records = batching.Meter("sotabench", len(truth.imgs)), []
    image_files = annotated_images.find(truth, images_dir)
    batches = annotated_images.detect(
        artifact, image_files, batch_size=batch_size, meter=meter
    )
    evaluator.reset_time()
    is_first = True
    for detections, image_ids in batches:
        for row, image_id in enumerate(image_ids):
            one = artifacts.select_image(detections, row)
            records += coco_metric.detection_records(*one[:3], image_id)
        # The site recognizes an evaluated model by its first detections. The evaluator
        # builds its index at each call of `add`, so the rest is added in one call.
        if records and is_first:
            _call(evaluator.add, records)
            records, is_first = [], False
            if evaluator.cache_exists:
                break
    meter.close()
    logging.info(f"sotabench | {meter}")
    if is_first:
        raise errors.UserError(
            "The model has no detections, so sotabench cannot score it; check --model."
        )
    if records:
        _call(evaluator.add, records)
    return _call(evaluator.save).results


def _call(method: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Calls the evaluator. Newer versions of its dependencies may break it."""
    try:
        return method(*arguments, **keywords)
    except OSError:
        raise
    except Exception as error:
        raise errors.UserError(
            f"sotabencheval failed with {type(error).__name__}: {error}; "
            "retinanet-tpu evaluate_export computes the same APs without it."
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
    # On the site's machines the evaluator replaces --coco_root.
    images_dir = f"{evaluator.root}/{FLAGS.split}{FLAGS.year}"
    results = feed(evaluator, artifact, images_dir, batch_size=FLAGS.batch_size)
    for name, value in results.items():
        print(f"{name:<8}{value:.3f}")


def define_flags() -> None:
    """Defines the flags; not on import, when another tool may run."""
    flags.DEFINE_string(
        "model", None, "SavedModel, .onnx, .tflite or .xml file, or folder of exports."
    )
    flags.DEFINE_string("coco_root", None, "Folder of annotations/ and val2017/.")
    flags.DEFINE_string("split", "val", "Split of the data set.")
    flags.DEFINE_string("year", "2017", "Year of the data set.")
    flags.DEFINE_string("model_name", "RetinaNet", "Model name on the leaderboard.")
    flags.DEFINE_string("arxiv_id", "1708.02002", "arXiv id of the model's paper.")
    flags.DEFINE_integer(
        "batch_size",
        8,
        "Images of one size that are processed together.",
        lower_bound=1,
    )
    flags.mark_flags_as_required(["model", "coco_root"])


if __name__ == "__main__":
    define_flags()
    guard.run(main)
