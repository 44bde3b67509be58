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

import functools
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from absl import flags, logging
from pycocotools.coco import COCO

from retinanet_tpu import detector, errors
from retinanet_tpu.data import image_decoding
from retinanet_tpu.estimator.model_dir import files
from retinanet_tpu.evaluation import coco_metric, open_images_metric
from retinanet_tpu.serving import artifacts, batching, view_flags
from retinanet_tpu.startup import guard

FLAGS = flags.FLAGS


def check_categories(artifact: artifacts.Artifact, truth: COCO) -> None:
    """Checks, before a long evaluation, that its detections can be compared.

    Args:
      artifact: The exported model.
      truth: The annotations.
    Raises:
      UserError: The annotations have other categories than the model.
    """
    if artifact.categories is None:
        logging.warning(
            "%s has no categories.json beside it; its category ids may not be those of "
            "the annotations.",
            artifact.path,
        )
        return
    names = artifact.names
    annotated_names = {i: category["name"] for i, category in truth.cats.items()}
    differing = sorted({i for i, _ in names.items() ^ annotated_names.items()})
    if differing:
        first = differing[0]
        raise errors.UserError(
            f"Model and annotations differ in {len(differing)} categories, such as id "
            f"{first}: {names.get(first)} in {artifact.path}, "
            f"{annotated_names.get(first)} in the annotations. Use a model and "
            "annotations of the same dataset."
        )


def find_image_files(truth: COCO, images_dir: str) -> dict[int, str]:
    """Returns the path of each annotated image, by image id.

    Args:
      truth: The annotations.
      images_dir: The folder that the file names of the annotations are relative to.
    Raises:
      UserError: An image has no file name, or files are missing.
    """
    names = {image_id: _file_name(image) for image_id, image in truth.imgs.items()}
    # Listing a remote folder is one request; checking each image takes thousands.
    folders = {os.path.dirname(name) for name in names.values()}
    existing = {
        os.path.join(folder, name)
        for folder in folders
        if tf.io.gfile.isdir(os.path.join(images_dir, folder))
        for name in tf.io.gfile.listdir(os.path.join(images_dir, folder))
    }
    missing = [name for name in names.values() if name not in existing]
    if missing:
        raise errors.UserError(
            f"--images={images_dir} lacks {len(missing)} of {len(names)} annotated "
            f"images, such as {missing[0]}."
        )
    return {
        image_id: os.path.join(images_dir, name) for image_id, name in names.items()
    }


def _file_name(image: dict[str, Any]) -> str:
    name = image.get("file_name")
    if not isinstance(name, str) or not name:
        raise errors.UserError(
            f"--annotations: image {image['id']} has the file_name {name!r}; expected "
            "the path of its file below --images."
        )
    return name


def load_image(path: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """Reads an image with the decoder of the input pipeline.

    Args:
      path: The path of the file.
      size: The annotated height and width, px; None without them.
    Returns:
      uint8 [H, W, 3], RGB, with the pixels that evaluation reads from a record.
    Raises:
      UserError: The image cannot be read, or has another size.
    """
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            stored = image_decoding.prepare(file.read())
    except image_decoding.UnusableError as error:
        raise errors.UserError(
            f"{path} cannot be read: {error}; repair the file."
        ) from error
    if size and (stored.height, stored.width) != size:
        raise errors.UserError(
            f"{path} is {stored.height} px high and {stored.width} wide"
            f"{', rotated upright,' if stored.has_swapped_sides else ''} but annotated "
            "as "
            f"{size[0]} and {size[1]}; evaluate on the images that were annotated."
        )
    pixels = tf.io.decode_image(stored.encoded, channels=3, expand_animations=False)
    return pixels.numpy()


def detect_annotated_images(
    artifact: artifacts.Artifact,
    truth: COCO,
    images_dir: str,
    *,
    batch_size: int,
    meter: batching.Meter,
) -> Iterator[coco_metric.DetectionBatch]:
    """Yields the detections in all annotated images, with the image ids.

    Args:
      artifact: The exported model.
      truth: The annotations.
      images_dir: The folder that the file names of the annotations are relative to.
      batch_size: The most images of one size that are processed together.
      meter: The meter that counts the images.
    Raises:
      UserError: An image is missing, corrupt or of another size than annotated.
    """
    paths = find_image_files(truth, images_dir)
    load_fn = functools.partial(_load, truth=truth)
    images = batching.map_in_threads(load_fn, paths.items())
    for batch, detections in batching.detect_batches(
        artifact, images, batch_size=batch_size, meter=meter
    ):
        yield detections, np.array(batch.ids)


def _load(item: tuple[int, str], truth: COCO) -> tuple[int, np.ndarray]:
    image_id, path = item
    height = truth.imgs[image_id].get("height")
    width = truth.imgs[image_id].get("width")
    return image_id, load_image(path, (height, width) if height and width else None)


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
    check_categories(artifact, truth)
    artifact = view_flags.wrap(artifact, FLAGS)
    logging.info("evaluate | %s %s", artifact.kind, artifact.path)
    meter = batching.Meter("evaluate", len(truth.imgs))
    batches = list(
        detect_annotated_images(
            artifact, truth, FLAGS.images, batch_size=FLAGS.batch_size, meter=meter
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
        "Export, folder of exports, .onnx or .tflite file, run or checkpoint.",
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
