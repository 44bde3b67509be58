"""Evaluates an exported model of any format on any dataset with COCO annotations.

  python -m retinanet_tpu.evaluate_export --model=run1/export/latest \
    --images=coco/val2017 --annotations=coco/annotations/instances_val2017.json \
    [--output=results.json] [--metric=open_images [--hierarchy=hierarchy.json]]

--model is an export of any format, a folder of exports, whose newest version is used,
the directory of a run, or a checkpoint of it. --output saves the detections in COCO's
results format. --metric=open_images computes the metric of the Open Images Challenge
instead of COCO's. --flip, --scales and --tile_size detect in several views of each
image and merge the detections.

Images are decoded as in `retinanet-tpu convert` and the input pipeline. The metrics are
computed by the code of `retinanet_tpu.evaluate`. A SavedModel therefore has exactly the
metrics of its checkpoint. Images are rotated as their EXIF orientation requires; an
image whose annotations ignore the orientation is an error.
"""

import retinanet_tpu.startup.cpu

import json
from collections.abc import Iterable
from typing import Any

from absl import flags, logging
from pycocotools.coco import COCO

from retinanet_tpu import detector, errors
from retinanet_tpu.estimator.model_dir import files
from retinanet_tpu.evaluation import coco_metric, open_images_metric
from retinanet_tpu.serving import annotated_images, artifacts, batching, view_flags
from retinanet_tpu.startup import guard

FLAGS = flags.FLAGS


def _detection_records(
    batches: Iterable[coco_metric.DetectionBatch],
) -> list[dict[str, Any]]:
    """Returns all detections as entries of a COCO results file."""
    records = []
    for detections, image_ids in batches:
        for row, image_id in enumerate(image_ids):
            boxes_yxyx, scores, classes, _ = artifacts.select_image(detections, row)
            records += coco_metric.detection_records(
                boxes_yxyx, scores, classes, image_id
            )
    return records


def _evaluate(
    batches: Iterable[coco_metric.DetectionBatch],
    truth: COCO,
    metric: open_images_metric.OpenImagesMetric | None,
) -> str:
    """Returns the table of Open Images' metric, or of COCO's without one."""
    if metric is None:
        result = coco_metric.evaluate(batches, truth)
        return f"{coco_metric.table(result)}\n{coco_metric.per_class_table(result)}"
    evaluator = coco_metric.Evaluator(truth)
    for detections, image_ids in batches:
        evaluator.add(detections, image_ids)
    return open_images_metric.table(metric(truth, *evaluator.detected()))


def _open_images_metric(truth: COCO) -> open_images_metric.OpenImagesMetric | None:
    """Returns the metric that the flags select, None for COCO's."""
    if FLAGS.metric == "open_images":
        metric = open_images_metric.OpenImagesMetric(FLAGS.hierarchy)
        metric.check(truth)
        return metric
    if FLAGS.hierarchy:
        raise errors.UserError(
            "--hierarchy is for --metric=open_images; add that, or leave it out."
        )
    return None


def main() -> None:
    """Runs the command."""
    truth = coco_metric.ground_truth(FLAGS.annotations)
    metric = _open_images_metric(truth)
    artifact = detector.load_artifact(FLAGS.model, label="--model=")
    annotated_images.check_categories(artifact.path, artifact.categories, truth)
    artifact = view_flags.wrap(artifact, FLAGS)
    logging.info("evaluate | %s %s", artifact.kind, artifact.path)
    image_files = annotated_images.find(truth, FLAGS.images)
    meter = batching.Meter("evaluate", len(image_files))
    batches = list(
        annotated_images.detect(
            artifact, image_files, batch_size=FLAGS.batch_size, meter=meter
        )
    )
    # Logged before the metrics are computed, because the meter's clock runs on.
    meter.close()
    logging.info("evaluate | done | %s", meter)
    if FLAGS.output:
        files.write_whole(FLAGS.output, json.dumps(_detection_records(batches)))
    print(_evaluate(batches, truth, metric))


def define_flags() -> None:
    """Defines the flags; not on import, when another command may run."""
    flags.DEFINE_string(
        "model",
        None,
        "Export, folder of exports, .onnx, .tflite or .xml file, run or checkpoint.",
    )
    flags.DEFINE_string("images", None, "Folder of the images.")
    flags.DEFINE_string("annotations", None, "COCO JSON file of the same images.")
    flags.DEFINE_string("output", None, "JSON file to write the detections to.")
    flags.DEFINE_enum(
        "metric", "coco", ["coco", "open_images"], "The metric to compute."
    )
    flags.DEFINE_string(
        "hierarchy",
        None,
        "JSON file of the hierarchy of the classes, for --metric=open_images.",
    )
    flags.DEFINE_integer(
        "batch_size",
        8,
        "Images of one size that are processed together.",
        lower_bound=1,
    )
    view_flags.define()
    flags.mark_flags_as_required(["model", "images", "annotations"])


if __name__ == "__main__":
    define_flags()
    guard.run(main)
