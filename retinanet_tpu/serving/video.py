"""Detects objects in videos: an annotated MP4 file and a JSON file for each.

The JSON file is one object. Each frame in which objects were detected has a line.
  {"file_name": …, "width": …, "height": …, "frame_rate": …, "frame_step": …,
  "frames": [
  {"index": 0, "time": 0.0, "detections": [{"category_id": …, "bbox": …, "score": …}]},
  …
  ], "num_frames": …, "duration": …}
"""

import contextlib
import dataclasses
import functools
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tpu import errors, structures
from retinanet_tpu.estimator.model_dir import files
from retinanet_tpu.evaluation import coco_metric, visualize
from retinanet_tpu.serving import artifacts, batching, video_files

# The names of the files with the detections in images.
_RESERVED = ("detections", "images")


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the detection in videos.

    Attributes:
      min_score: The lowest score that is written to the JSON file.
      drawn_score: The lowest score that is drawn.
      batch_size: The most frames that are processed together.
      frame_step: Objects are detected in every frame_step-th frame, from the first. The
        frames between are drawn with the last detections.
    """

    min_score: float = 0.0
    drawn_score: float = artifacts.DEFAULT_THRESHOLD
    batch_size: int = 8
    frame_step: int = 1


class _Detected(NamedTuple):
    frame: video_files.Frame
    detections: structures.Detections
    is_own: bool  # False: the detections are those of an earlier frame.


def detect_in_videos(
    artifact: artifacts.Artifact,
    paths: Sequence[str],
    output_dir: str,
    options: Options,
) -> int:
    """Writes NAME.mp4 and NAME.json for each video.

    A video that cannot be read or encoded is logged and skipped. Of a corrupt one, the
    frames that can be read are kept. Both files of a video get their names when they
    are complete.

    Args:
      artifact: The exported model.
      paths: The video files.
      output_dir: The output directory. It is made if necessary, and must not contain
        `paths`.
      options: The settings.
    Returns:
      The number of videos whose files were written.
    Raises:
      MissingPackageError: PyAV is not installed.
    """
    tf.io.gfile.makedirs(output_dir)
    num_read = 0
    for path, stem in zip(paths, output_stems(paths), strict=True):
        video_files.require(path)
        try:
            _detect_in_video(artifact, path, os.path.join(output_dir, stem), options)
            num_read += 1
        except errors.UserError as error:
            batching.log_warning("predict | skipped %s", error)
    return num_read


def output_stems(paths: Sequence[str]) -> list[str]:
    """Returns a unique name, without extension, for the files of each video."""
    stems: dict[str, str] = {}
    for path in paths:
        stem = os.path.splitext(os.path.basename(path))[0]
        while stem in stems or stem in _RESERVED:
            stem += "_"
        stems[stem] = path
    return list(stems)


def _detect_in_video(
    artifact: artifacts.Artifact, path: str, stem: str, options: Options
) -> None:
    """Writes stem.mp4 and stem.json.

    Raises:
      UserError: The video cannot be read or encoded, or the artifact rejects its
        frames.
    """
    draw_fn = functools.partial(
        _draw, names=artifact.names, min_score=options.drawn_score
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(video_files.user_errors(path))
        video = stack.enter_context(video_files.read(path))
        name = f"predict {os.path.basename(path)}"
        meter = batching.Meter(name, video.num_frames, unit="frames")
        stack.callback(meter.close)
        records = stack.enter_context(_json_file(f"{stem}.json", path, video, options))
        writer = stack.enter_context(video_files.write(f"{stem}.mp4", video))
        try:
            frames = _detect(artifact, video, options, meter)
            for detected, drawing in batching.map_in_threads(draw_fn, frames):
                writer.write(detected.frame, drawing)
                records.add(detected)
        except errors.UserError as error:
            raise errors.UserError(f"{path}: {error}") from error
    if corruption := video.corruption():
        batching.log_warning(
            "predict | %s is corrupt: %s; the %d frames that could be decoded are kept",
            path,
            corruption,
            meter.num_images,
        )
    logging.info("predict | done | %s | %s.mp4, %s.json", meter, stem, stem)


def _detect(
    artifact: artifacts.Artifact,
    video: video_files.Video,
    options: Options,
    meter: batching.Meter,
) -> Iterator[_Detected]:
    """Yields all frames in order; at most a batch of them waits for detections."""
    most = batching.most_images(video.height, video.width, options.batch_size)
    batch_size = max(1, most // options.frame_step)
    last: structures.Detections | None = None
    waiting: list[video_files.Frame] = []
    num_own = 0
    for frame in video.frames():
        waiting.append(frame)
        num_own += frame.number % options.frame_step == 0
        if num_own in (0, batch_size):
            for detected in _detect_batch(artifact, waiting, last, options, meter):
                last = detected.detections
                yield detected
            waiting, num_own = [], 0
    if waiting:
        yield from _detect_batch(artifact, waiting, last, options, meter)


def _detect_batch(
    artifact: artifacts.Artifact,
    frames: Sequence[video_files.Frame],
    last: structures.Detections | None,
    options: Options,
    meter: batching.Meter,
) -> list[_Detected]:
    """Returns frames with their own detections, or the last ones before them."""
    images = [frame.image for frame in frames if frame.number % options.frame_step == 0]
    start_secs = time.perf_counter()
    batch = artifact.detect(np.stack(images)) if images else None
    meter.add(len(frames), time.perf_counter() - start_secs)
    results = []
    row = 0
    for frame in frames:
        is_own = frame.number % options.frame_step == 0
        if batch is not None and is_own:
            last = artifacts.select_image(batch, row, min_score=options.min_score)
            row += 1
        assert last is not None  # The first frame has its own.
        results.append(_Detected(frame, last, is_own))
    return results


def _draw(
    detected: _Detected, *, names: Mapping[int, str], min_score: float
) -> tuple[_Detected, np.ndarray]:
    drawing = visualize.draw_detections(
        detected.frame.image,
        detected.detections.boxes_yxyx,
        detected.detections.scores,
        detected.detections.classes,
        names=names,
        min_score=min_score,
    )
    return detected, drawing


class _Records:
    """The entries of a JSON file that is written line by line."""

    def __init__(self, file: Any, video: video_files.Video):
        self._file = file
        self._time_base = video.time_base
        self._separator = ""
        self.num_frames = 0

    def add(self, detected: _Detected) -> None:
        """Adds a frame; it is written if it has its own detections."""
        self.num_frames += 1
        if not detected.is_own:
            return
        boxes_yxyx, scores, classes, _ = detected.detections
        records = coco_metric.detection_records(boxes_yxyx, scores, classes, 0)
        for record in records:
            del record["image_id"]
        frame = detected.frame
        entry = {
            "index": frame.number,
            "time": float(frame.pts * self._time_base),
            "detections": records,
        }
        self._file.write(self._separator + json.dumps(entry))
        self._separator = ",\n"


@contextlib.contextmanager
def _json_file(
    path: str, source: str, video: video_files.Video, options: Options
) -> Iterator[_Records]:
    """Opens a JSON file, which gets its name if the block ends without an exception."""
    header = {
        "file_name": source,
        "width": video.width,
        "height": video.height,
        "frame_rate": float(video.frame_rate),
        "frame_step": options.frame_step,
    }
    with files.whole_file(path) as temporary, tf.io.gfile.GFile(temporary, "w") as file:
        file.write(json.dumps(header)[:-1] + ',\n"frames": [\n')
        records = _Records(file, video)
        yield records
        duration = float(video.num_ticks * video.time_base)
        footer = {"num_frames": records.num_frames, "duration": duration}
        file.write("\n], " + json.dumps(footer)[1:] + "\n")
