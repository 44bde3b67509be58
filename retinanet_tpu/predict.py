"""Finds objects in images with an exported model.

Needs nothing but the model:
  python -m retinanet_tpu.predict --model=export/latest --images=photos \
      --output_dir=found
--images takes a folder, a glob or a file, and may be repeated; more files may follow as
plain arguments. --model takes a SavedModel, a .onnx or .tflite file, or a folder of
exports, whose newest version is used. Writes to --output_dir:
  detections.json  COCO results: image_id, category_id, bbox (xywh, pixels), score
  images.json      which file has which image_id, with width and height
  NAME.jpg|.png    a drawing of each image
Images are seen as viewers show them: turned as their EXIF orientation says. Files
that cannot be read are named and skipped; the exit code is 0 if any could.
"""

import retinanet_tpu.startup.cpu

import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf
import tqdm
from absl import flags, logging

from retinanet_tpu import errors, structures
from retinanet_tpu.data import image_files
from retinanet_tpu.estimator.model_dir import files
from retinanet_tpu.evaluation import coco_metric, visualize
from retinanet_tpu.serving import artifacts, batching
from retinanet_tpu.startup import guard

FLAGS = flags.FLAGS


def predict_files(
    artifact: artifacts.Artifact,
    paths: Sequence[str],
    output_dir: str,
    *,
    min_score: float = 0.3,
    batch_size: int = 8,
) -> int:
    """Predicts and draws files, and writes detections.json and images.json.

    Args:
      artifact: finds the objects.
      paths: images; an image's id is its place in them, from 1.
      output_dir: made if it is not there; must not be a folder of `paths`.
      min_score: lowest score that is written and drawn.
      batch_size: images of one size that go through the model at once.
    Returns:
      How many of the files could be read.
    Raises:
      UserError: a drawing would overwrite an image.
    """
    folders = {os.path.realpath(os.path.dirname(path)) for path in paths}
    if os.path.realpath(output_dir) in folders:
        raise errors.UserError(
            f"--output_dir={output_dir} holds the images themselves, which the "
            "drawings would overwrite; choose another folder."
        )
    tf.io.gfile.makedirs(output_dir)
    meter = batching.Meter("predict", len(paths))
    read = enumerate(batching.ahead(_load_or_skip, paths), start=1)
    pictures = ((image_id, image) for image_id, image in read if image is not None)
    found = batching.detect(
        artifact,
        pictures,
        batch_size=batch_size,
        meter=meter,
        skip_fn=functools.partial(_skip_batch, paths=paths),
    )
    drawings = [os.path.join(output_dir, name) for name in _drawing_names(paths)]
    draw_fn = functools.partial(_draw, drawings=drawings, names=artifact.names)
    results = list(batching.ahead(draw_fn, _each(found, min_score)))
    meter.close()
    _save_results(sorted(results, key=lambda result: result[0]), paths, output_dir)
    logging.info(f"predict | done | {meter} | {output_dir}")
    return len(results)


def _load_or_skip(path: str) -> np.ndarray | None:
    try:
        return image_files.load(path)
    except errors.UserError as error:
        _log_skipped(error)
        return None


def _skip_batch(batch: batching.Batch, error: errors.UserError, *, paths) -> None:
    for image_id in batch.ids:
        _log_skipped(f"{paths[image_id - 1]}: {error}")


def _log_skipped(reason: object) -> None:
    with tqdm.tqdm.external_write_mode():
        logging.warning("predict | skipped %s", reason)


def _each(
    found: Iterable[tuple[batching.Batch, structures.Detections]], min_score: float
) -> Iterator[tuple[int, np.ndarray, structures.Detections]]:
    """Yields id, image and objects of each image of each batch."""
    for batch, detections in found:
        for row, image_id in enumerate(batch.ids):
            objects = artifacts.objects(detections, row, min_score=min_score)
            yield image_id, batch.pictures[row], objects


def _draw(
    item: tuple[int, np.ndarray, structures.Detections],
    *,
    drawings: Sequence[str],
    names: Mapping[int, str],
) -> tuple[int, tuple[int, int], structures.Detections]:
    """Saves the drawing of an image; returns its id, its size and its objects."""
    image_id, image, objects = item
    drawing = visualize.draw_detections(image, *objects[:3], names=names, min_score=0)
    visualize.save(drawing, drawings[image_id - 1])
    return image_id, image.shape[:2], objects


def _drawing_names(paths: Sequence[str]) -> list[str]:
    """Returns a name for the drawing of each path, no name twice."""
    names = {}
    for path in paths:
        stem, extension = os.path.splitext(os.path.basename(path))
        extension = ".png" if extension.lower() == ".png" else ".jpg"
        while stem + extension in names:
            stem += "_"
        names[stem + extension] = path
    return list(names)


def _save_results(results, paths: Sequence[str], output_dir: str) -> None:
    """Writes detections.json and images.json, each whole or not at all."""
    records, images = [], []
    for image_id, (height, width), objects in results:
        records += coco_metric.detection_records(*objects[:3], image_id)
        name = {"id": image_id, "file_name": paths[image_id - 1]}
        images.append(name | {"width": width, "height": height})
    for name, content in (("detections", records), ("images", images)):
        files.write_whole(f"{output_dir}/{name}.json", json.dumps(content))


def define_flags() -> None:
    """Defines this command's flags; not on import, when another command may run."""
    flags.DEFINE_string("model", None, "SavedModel, .onnx, .tflite, or their folder.")
    flags.DEFINE_multi_string("images", [], "Folder, glob or file; may be repeated.")
    flags.DEFINE_string("output_dir", None, "Where findings and drawings go.")
    flags.DEFINE_float("min_score", 0.3, "Lowest score that is written and drawn.")
    flags.DEFINE_integer(
        "batch_size", 8, "Photos of one size to take at once.", lower_bound=1
    )
    flags.mark_flags_as_required(["model", "output_dir"])


def main(paths: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    paths = image_files.find([*FLAGS.images, *paths])
    artifact = artifacts.load(artifacts.find(FLAGS.model))
    logging.info(
        f"predict | {artifact.kind} {artifact.path} | {len(paths)} images to read"
    )
    num_read = predict_files(
        artifact,
        paths,
        FLAGS.output_dir,
        min_score=FLAGS.min_score,
        batch_size=FLAGS.batch_size,
    )
    if num_read == 0:
        logging.error(f"predict | none of the {len(paths)} files could be read.")
        return 1
    return 0


if __name__ == "__main__":
    define_flags()
    guard.run(main, takes_arguments=True)
