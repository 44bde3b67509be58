"""Detects objects in images and videos with a trained model.

  python -m retinanet_tpu.predict --model=export/latest --images=photos \
      --output_dir=detections
--images is a folder, a glob or a file, and may be repeated; further files may follow as
plain arguments. --model is an export of any format, a folder of exports, whose newest
version is used, the directory of a run, or a checkpoint of it. An export requires no
other file. Files in --output_dir:
  detections.json  COCO results: image_id, category_id, bbox (xywh, pixels), score
  images.json      the file, width and height of each image_id
  NAME.jpg|.png    a drawing of each image
  NAME.mp4         a drawing of each video, without sound
  NAME.json        the detections in each frame of a video
The JSON contains all detections. The drawings show those with at least the threshold of
the model: the score of the highest F1 in the evaluation of its checkpoint, or 0.3 if
it was not evaluated. --min_score sets the lowest score of both.
--flip, --scales and --tile_size detect in several views of each image and merge.
Images are rotated as their EXIF orientation requires, videos as their display matrix
does. Files that cannot be read, and images that the model rejects, are logged and
skipped. The exit code is 0 if at least one file could be processed. Videos require the
extra `video`.
"""

import retinanet_tpu.startup.cpu

import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import flags, logging

from retinanet_tpu import detector, errors, structures
from retinanet_tpu.data import image_files
from retinanet_tpu.estimator.model_dir import files
from retinanet_tpu.evaluation import coco_metric, visualize
from retinanet_tpu.serving import (
    artifacts,
    batching,
    multi_view,
    video,
    video_files,
    view_flags,
)
from retinanet_tpu.startup import guard

FLAGS = flags.FLAGS


class _Result(NamedTuple):
    """The detections in one image."""

    image_id: int
    height: int  # px
    width: int  # px
    detections: structures.Detections  # without the batch dimension


def predict_files(
    artifact: artifacts.Artifact,
    paths: Sequence[str],
    output_dir: str,
    *,
    min_score: float | None = None,
    batch_size: int = 8,
) -> int:
    """Writes detections.json, images.json and the drawings of image files.

    Args:
      artifact: The exported model.
      paths: The paths of the images; the id of an image is its position, from 1.
      output_dir: The output directory. It is made if necessary, and must not contain
        `paths`.
      min_score: The lowest score that is written and drawn; None writes all, and draws
        those with at least the threshold of the artifact, or 0.3.
      batch_size: The most images of one size that are processed together.
    Returns:
      The number of files that could be processed.
    Raises:
      UserError: A drawing would overwrite an image, or an image has too many views.
    """
    _check_output_dir(paths, output_dir)
    tf.io.gfile.makedirs(output_dir)
    meter = batching.Meter("predict", len(paths))
    loaded = enumerate(batching.map_in_threads(_load_or_skip, paths), start=1)
    batches = batching.detect_batches(
        artifact,
        ((image_id, image) for image_id, image in loaded if image is not None),
        batch_size=batch_size,
        meter=meter,
        skip_fn=functools.partial(_skip_batch, paths=paths),
    )
    drawing_paths = [os.path.join(output_dir, name) for name in _drawing_names(paths)]
    draw_fn = functools.partial(
        _draw,
        paths=drawing_paths,
        names=artifact.names,
        min_score=_drawn_score(artifact, min_score),
    )
    images = _iter_images(batches, min_score or 0.0)
    results = list(batching.map_in_threads(draw_fn, images))
    meter.close()
    _save_results(
        sorted(results, key=lambda result: result.image_id), paths, output_dir
    )
    logging.info("predict | done | %s | %s", meter, output_dir)
    return len(results)


def _check_output_dir(paths: Sequence[str], output_dir: str) -> None:
    # Both the folder of a link and that of its target.
    folders = {os.path.realpath(os.path.dirname(path)) for path in paths}
    folders |= {os.path.dirname(os.path.realpath(path)) for path in paths}
    if os.path.realpath(output_dir) in folders or _has_link_to(paths, output_dir):
        raise errors.UserError(
            f"--output_dir={output_dir} contains the images or videos themselves, or "
            "links to them, which the drawings would overwrite; choose another folder."
        )


def _has_link_to(paths: Sequence[str], folder: str) -> bool:
    if not os.path.isdir(folder):  # New or remote.
        return False
    with os.scandir(folder) as entries:
        targets = {
            os.path.realpath(entry.path) for entry in entries if entry.is_symlink()
        }
    return not targets.isdisjoint(map(os.path.realpath, paths))


def _drawn_score(artifact: artifacts.Artifact, min_score: float | None) -> float:
    """Returns the lowest score that is drawn."""
    if min_score is not None:
        return min_score
    if artifact.threshold is None:
        return artifacts.DEFAULT_THRESHOLD
    return artifact.threshold


def _log_drawn_score(artifact: artifacts.Artifact) -> None:
    """Logs the lowest score that is drawn without --min_score, and its origin."""
    score = _drawn_score(artifact, None)
    if artifact.threshold is None:
        logging.info("predict | drawings have scores from %.2f", score)
        return
    logging.info(
        "predict | drawings have scores from %.2f, that of the highest F1 in the "
        "evaluation; the JSON has all",
        score,
    )


def _load_or_skip(path: str) -> np.ndarray | None:
    try:
        return image_files.load(path)
    except errors.UserError as error:
        _log_skipped(error)
        return None


def _skip_batch(
    batch: batching.Batch, error: errors.UserError, *, paths: Sequence[str]
) -> None:
    if isinstance(error, multi_view.TooManyViewsError):
        # The flags are wrong, so the other images would fail too.
        raise errors.UserError(f"{paths[batch.ids[0] - 1]}: {error}") from error
    for image_id in batch.ids:
        _log_skipped(f"{paths[image_id - 1]}: {error}")


def _log_skipped(reason: object) -> None:
    batching.log_warning("predict | skipped %s", reason)


def _iter_images(
    batches: Iterable[tuple[batching.Batch, structures.Detections]], min_score: float
) -> Iterator[tuple[int, np.ndarray, structures.Detections]]:
    """Yields id, image and detections of each image of each batch."""
    for batch, detections in batches:
        for row, image_id in enumerate(batch.ids):
            selected = artifacts.select_image(detections, row, min_score=min_score)
            yield image_id, batch.images[row], selected


def _draw(
    item: tuple[int, np.ndarray, structures.Detections],
    *,
    paths: Sequence[str],
    names: Mapping[int, str],
    min_score: float,
) -> _Result:
    """Writes the drawing of an image."""
    image_id, image, detections = item
    drawing = visualize.draw_detections(
        image,
        detections.boxes_yxyx,
        detections.scores,
        detections.classes,
        names=names,
        min_score=min_score,
    )
    visualize.save(drawing, paths[image_id - 1])
    height, width = image.shape[:2]
    return _Result(image_id, height, width, detections)


def _drawing_names(paths: Sequence[str]) -> list[str]:
    """Returns a unique file name for the drawing of each path."""
    names = {}
    for path in paths:
        stem, extension = os.path.splitext(os.path.basename(path))
        extension = ".png" if extension.lower() == ".png" else ".jpg"
        while stem + extension in names:
            stem += "_"
        names[stem + extension] = path
    return list(names)


def _save_results(
    results: Iterable[_Result], paths: Sequence[str], output_dir: str
) -> None:
    """Writes detections.json and images.json, each atomically."""
    records = []
    images = []
    for image_id, height, width, detections in results:
        records += coco_metric.detection_records(
            detections.boxes_yxyx, detections.scores, detections.classes, image_id
        )
        images.append(
            {
                "id": image_id,
                "file_name": paths[image_id - 1],
                "width": width,
                "height": height,
            }
        )
    files.write_whole(f"{output_dir}/detections.json", json.dumps(records))
    files.write_whole(f"{output_dir}/images.json", json.dumps(images))


def define_flags() -> None:
    """Defines this command's flags; not on import, when another command may run."""
    flags.DEFINE_string(
        "model",
        None,
        "Export, folder of exports, .onnx, .tflite or .xml file, run or checkpoint.",
    )
    flags.DEFINE_multi_string("images", [], "Folder, glob or file of images or videos.")
    flags.DEFINE_string("output_dir", None, "Folder for the detections and drawings.")
    flags.DEFINE_float(
        "min_score",
        None,
        "Lowest score that is written and drawn; default: all are written, and drawn "
        "from the export's threshold, or 0.3.",
    )
    flags.DEFINE_integer(
        "batch_size",
        8,
        "Images of one size, or frames, that are processed together.",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "frame_step",
        1,
        "Videos: the step between frames in which objects are detected; frames between "
        "are drawn with the last detections.",
        lower_bound=1,
    )
    view_flags.define()
    flags.mark_flags_as_required(["model", "output_dir"])


def main(paths: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    extensions = image_files.EXTENSIONS + video_files.EXTENSIONS
    paths = image_files.find([*FLAGS.images, *paths], extensions=extensions)
    images = [path for path in paths if not video_files.is_video(path)]
    videos = [path for path in paths if video_files.is_video(path)]
    if videos:
        video_files.require(videos[0])
        _check_output_dir(videos, FLAGS.output_dir)
    artifact = detector.load_artifact(FLAGS.model, label="--model=")
    artifact = view_flags.wrap(artifact, FLAGS)
    logging.info(
        "predict | %s %s | %d images, %d videos to read",
        *(artifact.kind, artifact.path, len(images), len(videos)),
    )
    if FLAGS.min_score is None:
        _log_drawn_score(artifact)
    num_read = 0
    if images:
        num_read = predict_files(
            artifact,
            images,
            FLAGS.output_dir,
            min_score=FLAGS.min_score,
            batch_size=FLAGS.batch_size,
        )
    if videos:
        options = video.Options(
            min_score=FLAGS.min_score or 0.0,
            drawn_score=_drawn_score(artifact, FLAGS.min_score),
            batch_size=FLAGS.batch_size,
            frame_step=FLAGS.frame_step,
        )
        num_read += video.detect_in_videos(artifact, videos, FLAGS.output_dir, options)
    if num_read == 0:
        logging.error("predict | none of the %d files could be processed.", len(paths))
        return 1
    return 0


if __name__ == "__main__":
    define_flags()
    guard.run(main, takes_arguments=True)
