import json
import os
import pathlib

import numpy as np
import pytest

import video_clips
from retinanet_tpu import errors, structures
from retinanet_tpu.evaluation import visualize
from retinanet_tpu.serving import artifacts, video, video_files

pytest.importorskip("av")


def detect(images):
    """Detects a box whose left edge is the number of the frame, and a weak one."""
    numbers = np.round(images[:, 0, 0, 0] / 10).astype(np.float32)
    count, height = len(images), images.shape[1]
    boxes = np.zeros((count, 3, 4), np.float32)
    boxes[:, :2] = [0, 0, height, 30]
    boxes[:, :2, 1] = numbers[:, None]
    return structures.Detections(
        boxes_yxyx=boxes,
        scores=np.tile(np.float32([0.75, 0.25, 0.0]), [count, 1]),
        classes=np.tile(np.int32([3, 90, 0]), [count, 1]),
        num_detections=np.full(count, 2, np.int32),
    )


def run(paths, output_dir, *, detect_fn=detect, **options):
    artifact = artifacts.Artifact("", "ONNX", None, detect_fn)
    return video.detect_in_videos(
        artifact, paths, str(output_dir), video.Options(**options)
    )


def read_json(path):
    return json.loads(pathlib.Path(path).read_text())


@pytest.fixture
def clip(tmp_path):
    return video_clips.write(tmp_path / "clip.mov", video_clips.gray_images(20))


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("frame_step", [1, 3, 50])
def test_each_detected_frame_has_its_own_boxes(clip, tmp_path, batch_size, frame_step):
    output_dir = tmp_path / "output"
    options = {"batch_size": batch_size, "frame_step": frame_step}
    assert run([clip], output_dir, **options) == 1
    assert sorted(os.listdir(output_dir)) == ["clip.json", "clip.mp4"]
    content = read_json(output_dir / "clip.json")
    frames = content.pop("frames")
    assert content == {
        "file_name": clip,
        "width": 32,
        "height": 24,
        "frame_rate": 10.0,
        "frame_step": frame_step,
        "num_frames": 20,
        "duration": pytest.approx(2.0),
    }
    assert [frame["index"] for frame in frames] == list(range(0, 20, frame_step))
    for frame in frames:
        left = frame["index"]
        box = [left, 0, 30 - left, 24]
        assert frame["time"] == pytest.approx(frame["index"] / 10)
        assert frame["detections"] == [
            {"category_id": 3, "bbox": box, "score": 0.75},
            {"category_id": 90, "bbox": box, "score": 0.25},
        ]


def test_frames_between_are_drawn_with_the_last_detections(clip, tmp_path, monkeypatch):
    def draw(image, boxes_yxyx, scores, classes, *, names, min_score):
        assert (scores >= min_score).sum() == 1
        drawing = image.copy()
        drawing[:, 16:] = 10 * boxes_yxyx[0, 1]
        return drawing

    monkeypatch.setattr(visualize, "draw_detections", draw)
    run([clip], tmp_path / "output", frame_step=3, drawn_score=0.5)
    times, drawings = video_clips.read(tmp_path / "output" / "clip.mp4")
    np.testing.assert_allclose(times, np.arange(20) / 10, atol=1e-4)
    levels = np.array([[image[9, 5, 0], image[9, 26, 0]] for image in drawings]) / 10
    expected = [[number, number - number % 3] for number in range(20)]
    np.testing.assert_allclose(levels, expected, atol=0.5)


def test_weak_detections_are_left_out_on_request(clip, tmp_path):
    run([clip], tmp_path / "output", min_score=0.3)
    for frame in read_json(tmp_path / "output" / "clip.json")["frames"]:
        assert [entry["score"] for entry in frame["detections"]] == [0.75]


@pytest.mark.parametrize("frame_step", [1, 3, 50])
def test_only_a_few_frames_are_in_memory(tmp_path, monkeypatch, frame_step):
    images = [np.zeros((8, 8, 3), np.uint8)] * 100
    clip = video_clips.write(tmp_path / "clip.mov", images)
    held, most = set(), []
    frames, write = video_files.Video.frames, video_files.Writer.write

    def counted_frames(self):
        for frame in frames(self):
            held.add(frame.number)
            most.append(len(held))
            yield frame

    def counted_write(self, frame, image):
        held.remove(frame.number)
        write(self, frame, image)

    monkeypatch.setattr(video_files.Video, "frames", counted_frames)
    monkeypatch.setattr(video_files.Writer, "write", counted_write)
    run([clip], tmp_path / "output", batch_size=8, frame_step=frame_step)
    assert len(most) == 100 and max(most) <= 24 and not held


def test_progress_is_logged(clip, tmp_path, caplog):
    caplog.set_level("INFO", logger="absl")
    run([clip], tmp_path / "output", batch_size=4)
    assert "predict clip.mov | 8/20 frames" in caplog.text
    assert "done | 20/20 frames" in caplog.text


def test_an_interrupted_run_leaves_no_files(clip, tmp_path, monkeypatch):
    def interrupted(images):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([clip], tmp_path / "output", detect_fn=interrupted)
    assert os.listdir(tmp_path / "output") == []


def test_unusable_videos_are_named_and_skipped(clip, tmp_path, caplog):
    def limited(images):
        if images.shape[1] == 40:
            raise errors.UserError("An image has too many pixels.")
        return detect(images)

    (tmp_path / "text.mp4").write_text("no video")
    unknown = video_clips.write_unknown_codec(tmp_path / "unknown.mkv")
    large = video_clips.gray_images(2, height=40)
    large_path = video_clips.write(tmp_path / "large.mov", large)
    # x264 ends at 16,384 px, MPEG-4 before.
    wide = video_clips.gray_images(1, height=2, width=16_400)
    wide_path = video_clips.write(tmp_path / "wide.mov", wide)
    paths = [str(tmp_path / "text.mp4"), unknown, large_path, wide_path, clip]
    assert run(paths, tmp_path / "output", detect_fn=limited) == 1
    assert sorted(os.listdir(tmp_path / "output")) == ["clip.json", "clip.mp4"]
    assert f"skipped {tmp_path}/text.mp4 cannot be read as a video" in caplog.text
    assert f"skipped {large_path}: An image has too many pixels." in caplog.text
    assert f"skipped {unknown} cannot be read: FFmpeg has no decoder" in caplog.text
    assert f"skipped {wide_path} cannot be processed: FFmpeg: " in caplog.text


def test_the_frames_of_a_corrupt_video_are_kept_with_a_warning(tmp_path, caplog):
    noise = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), np.uint8)
    clip = video_clips.write(tmp_path / "clip.mkv", noise, codec="mpeg4")
    os.truncate(clip, os.path.getsize(clip) // 2)
    assert run([clip], tmp_path / "output") == 1
    content = read_json(tmp_path / "output" / "clip.json")
    count = content["num_frames"]
    assert 2 < count < 18 and len(content["frames"]) == count
    assert len(video_clips.read(tmp_path / "output" / "clip.mp4")[0]) == count
    assert f"{clip} is corrupt" in caplog.text and f"the {count} frames" in caplog.text


def test_files_of_videos_have_unique_names():
    paths = ["x/a.mp4", "x/a.MOV", "y/a.mp4", "detections.mp4", "images.avi", "b.mp4"]
    stems = video.output_stems(paths)
    assert stems == ["a", "a_", "a__", "detections_", "images_", "b"]
