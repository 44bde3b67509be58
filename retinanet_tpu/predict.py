"""Finds objects in photographs with an exported model.

Needs nothing but the SavedModel:
  python -m retinanet_tpu.predict --saved_model=export/latest --images=photos \
      --output_dir=found
--images takes a folder, a glob or a file, and may be repeated; more files may follow as
plain arguments. --saved_model takes a SavedModel or a folder of exports, whose newest
version is used. Writes to --output_dir:
  detections.json  COCO results: image_id, category_id, bbox (xywh, pixels), score
  images.json      which file has which image_id, with width and height
  NAME.jpg|.png    a drawing of each photograph
Files that cannot be read are named and skipped; the exit code is 0 if any could.
"""

import io
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from absl import app, flags, logging
from PIL import Image, ImageOps

from retinanet_tpu import structures
from retinanet_tpu.data import categories
from retinanet_tpu.evaluation import coco_metric, visualize

FLAGS = flags.FLAGS

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_INPUTS = {
    "image": tf.TensorSpec([None, None, 3], tf.float32),
    "image_id": tf.TensorSpec([], tf.int32),
}
_OUTPUTS = {"boxes", "scores", "class_ids", "valid_detections"}


def list_images(patterns: Sequence[str]) -> list[str]:
    """Returns the files that folders, globs and file names stand for, each once.

    Args:
      patterns: a folder stands for the pictures right inside it, told by extension.
    Raises:
      ValueError: nothing was asked for, or one of the patterns matches no file.
    """
    if not patterns:
        raise ValueError("No images asked for; set --images to a folder, glob or file.")
    paths = []
    for pattern in patterns:
        if tf.io.gfile.isdir(pattern):
            names = tf.io.gfile.listdir(pattern)
            pictures = [name for name in names if name.lower().endswith(_EXTENSIONS)]
            found = [os.path.join(pattern, name) for name in pictures]
        elif tf.io.gfile.exists(pattern):
            found = [pattern]
        else:
            found = tf.io.gfile.glob(pattern)
        if not found:
            raise ValueError(
                f"--images={pattern} matches no picture; give a folder with "
                f"{', '.join(_EXTENSIONS)} files, a glob in quotes, or a file."
            )
        paths += sorted(found)
    return list(dict.fromkeys(paths))


def load_image(path: str) -> np.ndarray:
    """Reads a picture the way a viewer shows it.

    Returns:
      uint8 [H, W, 3] RGB, turned by its EXIF orientation; transparency is dropped.
    Raises:
      ValueError: the file cannot be read or is not a picture.
    """
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            image = Image.open(io.BytesIO(file.read()))
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith(
            "I;16"
        ):  # convert() would clip all above 255 to white.
            image = Image.fromarray((np.array(image) >> 8).astype(np.uint8))
        return np.array(image.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise errors of ten kinds.
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error


def find_saved_model(directory: str) -> str:
    """Returns the directory itself if it is a SavedModel, else its newest version.

    Raises:
      ValueError: it is neither a SavedModel nor a folder of 10-digit versions.
    """
    if tf.saved_model.contains_saved_model(directory):
        return directory
    names = tf.io.gfile.listdir(directory) if tf.io.gfile.isdir(directory) else []
    names = sorted((name.rstrip("/") for name in names), reverse=True)
    for name in names:
        version = os.path.join(directory, name)
        if re.fullmatch(r"\d{10}", name) and tf.saved_model.contains_saved_model(
            version
        ):
            return version
    raise ValueError(
        f"--saved_model={directory} holds no saved_model.pb and no folder named by 10 "
        f"digits that does; found {', '.join(names) or 'nothing'}. Run "
        "`python -m retinanet_tpu.export` or correct the path."
    )


def load_model(directory: str):
    """Loads a SavedModel and makes sure that this command can call it.

    Returns:
      The loaded object; it owns the weights, so keep it as long as its signature.
    Raises:
      ValueError: `serving_default` is missing, or its inputs or outputs are others.
    """
    model = tf.saved_model.load(directory)
    signature = model.signatures.get("serving_default")
    if signature is None:
        raise ValueError(
            f"{directory} has no signature serving_default, only "
            f"{', '.join(model.signatures) or 'none'}; export the model again."
        )
    inputs = {
        name: tf.TensorSpec(spec.shape, spec.dtype)
        for name, spec in signature.structured_input_signature[1].items()
    }
    outputs = signature.structured_outputs
    if inputs != _INPUTS or not _OUTPUTS.issubset(outputs):
        raise ValueError(
            f"serving_default of {directory} maps {_spelled(inputs)} to "
            f"{', '.join(sorted(outputs))}; predict needs {_spelled(_INPUTS)} to "
            f"{', '.join(sorted(_OUTPUTS))}. Export with the default signature."
        )
    return model


def category_names(directory: str) -> dict[int, str]:
    """Returns dataset id -> name as exported with the model, {} if it was not."""
    path = os.path.join(directory, "assets.extra", categories.FILE_NAME)
    if not tf.io.gfile.exists(path):
        return {}
    return {entry.id: entry.name for entry in categories.read(path).categories}


def predict_image(
    model, image: np.ndarray, *, image_id: int = 0, min_score: float = 0.0
) -> structures.Detections:
    """Returns what the model finds in one picture.

    Args:
      model: what `load_model` returned.
      image: uint8 [H, W, 3], RGB.
      image_id: int32; handed to the model, which hands it back.
      min_score: detections below it are dropped, and all of NO_CATEGORY.
    Returns:
      Detections of arrays without the batch dimension and without padding.
    """
    outputs = model.signatures["serving_default"](
        image=tf.constant(image, tf.float32), image_id=tf.constant(image_id, tf.int32)
    )
    count = int(outputs["valid_detections"])
    scores = outputs["scores"].numpy()[:count]
    classes = outputs["class_ids"].numpy()[:count]
    kept = (scores >= min_score) & (classes != categories.NO_CATEGORY)
    return structures.Detections(
        boxes_yxyx=outputs["boxes"].numpy()[:count][kept][:, [1, 0, 3, 2]],
        scores=scores[kept],
        classes=classes[kept],
        num_detections=int(kept.sum()),
    )


def predict_files(
    model,
    paths: Sequence[str],
    output_dir: str,
    *,
    names: Mapping[int, str],
    min_score: float = 0.3,
) -> int:
    """Predicts and draws files, and writes detections.json and images.json.

    Args:
      model: what `load_model` returned.
      paths: pictures; an image's id is its place in them, from 1.
      output_dir: made if it is not there; must not be a folder of `paths`.
      names: class id to name, for the drawings.
      min_score: lowest score that is written and drawn.
    Returns:
      How many of the files could be read.
    Raises:
      ValueError: a drawing would overwrite a picture.
    """
    folders = {os.path.realpath(os.path.dirname(path)) for path in paths}
    if os.path.realpath(output_dir) in folders:
        raise ValueError(
            f"--output_dir={output_dir} holds the pictures themselves, which the "
            "drawings would overwrite; choose another folder."
        )
    tf.io.gfile.makedirs(output_dir)
    records, images = [], []
    for image_id, (path, name) in enumerate(_drawing_names(paths), start=1):
        start_secs = time.perf_counter()
        try:
            image = load_image(path)
        except ValueError as error:
            logging.warning("predict | skipped %s", error)
            continue
        found = predict_image(model, image, image_id=image_id, min_score=min_score)
        objects = (found.boxes_yxyx, found.scores, found.classes)
        records += coco_metric.detection_records(*objects, image_id)
        drawing = visualize.draw_detections(image, *objects, names=names, min_score=0)
        visualize.save(drawing, os.path.join(output_dir, name))
        height, width = image.shape[:2]
        size = {"width": width, "height": height}
        images.append({"id": image_id, "file_name": path, **size})
        logging.info(
            f"predict | image {image_id}/{len(paths)} | {path} | {width}x{height} | "
            f"{found.num_detections} objects | {time.perf_counter() - start_secs:.2f} s"
        )
    _save_json(records, os.path.join(output_dir, "detections.json"))
    _save_json(images, os.path.join(output_dir, "images.json"))
    return len(images)


def _spelled(specs: Mapping[str, tf.TensorSpec]) -> str:
    return ", ".join(
        f"{name} {spec.dtype.name} {spec.shape}" for name, spec in sorted(specs.items())
    )


def _drawing_names(paths: Sequence[str]) -> list[tuple[str, str]]:
    """Returns each path with the name of its drawing, no name twice."""
    pairs, taken = [], set()
    for path in paths:
        stem, extension = os.path.splitext(os.path.basename(path))
        extension = ".png" if extension.lower() == ".png" else ".jpg"
        while stem + extension in taken:
            stem += "_"
        taken.add(stem + extension)
        pairs.append((path, stem + extension))
    return pairs


def _save_json(content: list[dict], path: str) -> None:
    with tf.io.gfile.GFile(path, "w") as file:
        json.dump(content, file)


def define_flags() -> None:
    """Defines this command's flags; not on import, when another command may run."""
    flags.DEFINE_string("saved_model", None, "SavedModel, or folder of its versions.")
    flags.DEFINE_multi_string("images", [], "Folder, glob or file; may be repeated.")
    flags.DEFINE_string("output_dir", None, "Where findings and drawings go.")
    flags.DEFINE_float("min_score", 0.3, "Lowest score that is written and drawn.")
    flags.mark_flags_as_required(["saved_model", "output_dir"])


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    logging.set_verbosity(logging.INFO)
    try:
        return _predict(list_images([*FLAGS.images, *argv[1:]]))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")


def _predict(paths: Sequence[str]) -> int:
    directory = find_saved_model(FLAGS.saved_model)
    logging.info(f"predict | model {directory} | {len(paths)} images")
    model, names = load_model(directory), category_names(directory)
    start_secs = time.perf_counter()
    num_read = predict_files(
        model, paths, FLAGS.output_dir, names=names, min_score=FLAGS.min_score
    )
    rate = num_read / (time.perf_counter() - start_secs)
    logging.info(
        f"predict | done | {num_read} of {len(paths)} images | {rate:.1f} images/s | "
        f"{FLAGS.output_dir}"
    )
    if num_read == 0:
        logging.error(f"predict | none of the {len(paths)} files could be read.")
        return 1
    return 0


if __name__ == "__main__":
    define_flags()
    app.run(main)
