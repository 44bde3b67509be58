"""Scores an exported model of any format on any annotated set in COCO's format.

  python -m retinanet_tpu.evaluate_export --model=run1/export/latest \
    --images=coco/val2017 --annotations=coco/annotations/instances_val2017.json \
    [--output=results.json]

--model takes a SavedModel, a .onnx or .tflite file, or a folder of exports (the newest
is used). --output keeps what was found, in COCO's results format.

Images are decoded as retinanet-tpu convert and the input pipeline do it, and the
scores are computed by the code of `retinanet_tpu.evaluate`, so that a SavedModel gets
the scores of its checkpoint. That goes for EXIF's orientation too: images are turned
upright, and one that was annotated lying on its side is an error.
"""

import retinanet_tpu.startup.cpu

import functools
import json
import os
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from absl import flags, logging
from pycocotools import coco as coco_lib

from retinanet_tpu import errors, structures
from retinanet_tpu.data import image_decoding
from retinanet_tpu.estimator.model_dir import files
from retinanet_tpu.evaluation import coco_metric
from retinanet_tpu.serving import artifacts, batching
from retinanet_tpu.startup import guard

FLAGS = flags.FLAGS


def check_categories(artifact: artifacts.Artifact, truth: coco_lib.COCO) -> None:
    """Checks before a long evaluation that its end can be scored.

    Raises:
      UserError: the annotations have other categories than the model.
    """
    if artifact.categories is None:
        logging.warning(
            "%s has no categories.json beside it: nothing says whether its ids are "
            "those of the annotations",
            artifact.path,
        )
        return
    known, annotated = artifact.names, {i: c["name"] for i, c in truth.cats.items()}
    differing = sorted({i for i, _ in known.items() ^ annotated.items()})
    if differing:
        first = differing[0]
        raise errors.UserError(
            f"Model and annotations differ in {len(differing)} categories, such as id "
            f"{first}: {known.get(first)} to {artifact.path}, {annotated.get(first)} "
            "to the annotations; both must be of one data set."
        )


def find_pictures(truth: coco_lib.COCO, images_dir: str) -> dict[int, str]:
    """Returns the path of each annotated image, by image id.

    Raises:
      UserError: An image has no file name, or some are not there.
    """
    names = {image_id: _file_name(image) for image_id, image in truth.imgs.items()}
    # Listing a remote folder is one request, asking for each image thousands.
    folders = {os.path.dirname(name) for name in names.values()}
    there = {
        os.path.join(folder, name)
        for folder in folders
        if tf.io.gfile.isdir(os.path.join(images_dir, folder))
        for name in tf.io.gfile.listdir(os.path.join(images_dir, folder))
    }
    missing = [name for name in names.values() if name not in there]
    if missing:
        raise errors.UserError(
            f"--images={images_dir} lacks {len(missing)} of {len(names)} annotated "
            f"images, such as {missing[0]}."
        )
    return {
        image_id: os.path.join(images_dir, name) for image_id, name in names.items()
    }


def _file_name(image: dict) -> str:
    name = image.get("file_name")
    if not isinstance(name, str) or not name:
        raise errors.UserError(
            f"--annotations: image {image['id']} has the file_name {name!r}; expected "
            "the path of its file below --images."
        )
    return name


def load_picture(path: str, size: tuple[int, int] | None = None) -> np.ndarray:
    """Reads an image with the decoder of the input pipeline.

    Args:
      path: of the file.
      size: height and width as annotated, if they are.
    Returns:
      uint8 [H, W, 3], RGB, as evaluation would get it from a record.
    Raises:
      UserError: it cannot be read, or has another size.
    """
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            stored = image_decoding.prepare(file.read())
    except image_decoding.UnusableError as error:
        raise errors.UserError(f"{path} cannot be read: {error}; mend it.") from error
    found = (stored.height, stored.width)
    if size and found != size:
        raise errors.UserError(
            f"{path} is {found[0]} px high and {found[1]} wide"
            f"{', turned upright,' if stored.has_swapped_sides else ''} but annotated as "
            f"{size[0]} and {size[1]}; score on the images that were annotated."
        )
    pixels = tf.io.decode_image(stored.encoded, channels=3, expand_animations=False)
    return pixels.numpy()


def detections(
    artifact: artifacts.Artifact,
    truth: coco_lib.COCO,
    images_dir: str,
    *,
    batch_size: int,
    meter: batching.Meter,
) -> Iterator[tuple[structures.Detections, np.ndarray]]:
    """Yields what is found in all annotated images.

    Args:
      artifact: finds it.
      truth: the annotations.
      images_dir: what the images' file names are relative to.
      batch_size: images of one size that go through the model at once.
      meter: counts the images.
    Returns:
      Pairs of Detections and image ids, as `coco_metric.evaluate` takes them.
    Raises:
      UserError: an image is missing, broken or of another size than annotated.
    """
    paths = find_pictures(truth, images_dir)
    load_fn = functools.partial(_load, truth=truth)
    read = batching.ahead(load_fn, paths.items())
    for batch, found in batching.detect(
        artifact, read, batch_size=batch_size, meter=meter
    ):
        yield found, np.array(batch.ids)


def _load(item: tuple[int, str], truth: coco_lib.COCO) -> tuple[int, np.ndarray]:
    image_id, path = item
    size = tuple(truth.imgs[image_id].get(side) for side in ("height", "width"))
    return image_id, load_picture(path, size if all(size) else None)


def _recorded(batches, records: list[dict]):
    """Passes batches on, and keeps their objects as lines of a results file."""
    for found, image_ids in batches:
        for row, image_id in enumerate(image_ids):
            one = artifacts.objects(found, row)
            records += coco_metric.detection_records(*one[:3], image_id)
        yield found, image_ids


def main() -> None:
    """Runs the command."""
    truth = coco_metric.ground_truth(FLAGS.annotations)
    artifact = artifacts.load(artifacts.find(FLAGS.model))
    check_categories(artifact, truth)
    logging.info(f"evaluate | {artifact.kind} {artifact.path}")
    meter, records = batching.Meter("evaluate", len(truth.imgs)), []
    batches = detections(
        artifact, truth, FLAGS.images, batch_size=FLAGS.batch_size, meter=meter
    )
    # The meter's clock goes on while the scores are computed, so it is read before.
    found = list(_recorded(batches, records))
    meter.close()
    logging.info(f"evaluate | done | {meter}")
    if FLAGS.output:
        files.write_whole(FLAGS.output, json.dumps(records))
    result = coco_metric.evaluate(found, truth)
    print(coco_metric.table(result))
    print(coco_metric.per_class_table(result))


def define_flags() -> None:
    """Defines the flags; not on import, when another tool may run."""
    flags.DEFINE_string("model", None, "SavedModel, .onnx, .tflite, or their folder.")
    flags.DEFINE_string("images", None, "Folder of the images.")
    flags.DEFINE_string("annotations", None, "COCO JSON of the same images.")
    flags.DEFINE_string("output", None, "JSON file for what was found.")
    flags.DEFINE_integer(
        "batch_size", 8, "Images of one size to take at once.", lower_bound=1
    )
    flags.mark_flags_as_required(["model", "images", "annotations"])


if __name__ == "__main__":
    define_flags()
    guard.run(main)
