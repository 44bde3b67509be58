import errno
import os
import pathlib
import sys

import numpy as np
import pytest

import video_clips
from retinanet_tpu import errors
from retinanet_tpu.serving import video_files

needs_av = pytest.mark.usefixtures("av")


@pytest.fixture
def av():
    return pytest.importorskip("av")


def copy(source, target):
    """Writes the frames of a video unchanged, and returns what was read."""
    with video_files.read(source) as video, video_files.write(target, video) as writer:
        frames = list(video.frames())
        for frame in frames:
            writer.write(frame, frame.image)
    return video, frames


@needs_av
def test_frames_are_read_exactly_and_in_order(tmp_path):
    images = video_clips.gray_images(7)
    path = video_clips.write(tmp_path / "a.mov", images)
    with video_files.read(path) as video:
        frames = list(video.frames())
        assert (video.width, video.height, video.frame_rate) == (32, 24, 10)
        assert video.num_frames == 7 and video.corruption() is None
    assert [frame.number for frame in frames] == list(range(7))
    times = [float(frame.pts * video.time_base) for frame in frames]
    np.testing.assert_allclose(times, np.arange(7) / 10)
    np.testing.assert_array_equal([frame.image for frame in frames], images)
    assert video.num_ticks * video.time_base == pytest.approx(0.7)


@needs_av
@pytest.mark.parametrize("size", [(24, 32), (25, 33), (24, 33)])
@pytest.mark.parametrize("encoders", [None, ("mpeg4",)])
def test_a_copy_has_the_size_the_times_and_the_colors(
    tmp_path, monkeypatch, size, encoders
):
    if encoders:
        monkeypatch.setattr(video_files, "_ENCODERS", encoders)
    height, width = size
    images = video_clips.gray_images(5, height=height, width=width)
    for image in images:
        image[:, :16] = (200, 30, 60)
    pts = [0, 100, 130, 700, 750]  # A variable rate; the last frame lasts 0.1 s.
    source = video_clips.write(tmp_path / "a.mov", images, pts=pts)
    target = str(tmp_path / "b.mp4")
    video, _ = copy(source, target)
    times, copies = video_clips.read(target)
    np.testing.assert_allclose(times, np.array(pts) / 1000, atol=1e-4)
    assert copies[0].shape == (height + height % 2, width + width % 2, 3)
    for image, image_copy in zip(images, copies, strict=True):
        difference = image_copy[:height, :width].astype(int) - image
        assert np.abs(difference[:, 2:13]).max() < 8  # Not at the edge of the colors.
        assert np.abs(difference[:, 20:]).max() < 8
    with video_files.read(target) as again:
        assert len(list(again.frames())) == 5 and again.corruption() is None
    seconds = float(again.num_ticks * again.time_base)
    assert seconds == pytest.approx(float(video.num_ticks * video.time_base), abs=1e-3)


@needs_av
@pytest.mark.parametrize("matrix", video_clips.ORIENTATIONS)
def test_frames_are_turned_as_the_display_matrix_requires(tmp_path, matrix):
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    path = video_clips.write(tmp_path / "a.mov", [image], aspect="2/1")
    video_clips.set_display_matrix(path, *matrix)
    a, b, c, d = matrix
    y, x = np.mgrid[:4, :6]
    shown_x, shown_y = a * x + c * y, b * x + d * y
    expected = np.zeros((4, 6, 3) if a else (6, 4, 3), np.uint8)
    expected[shown_y - shown_y.min(), shown_x - shown_x.min()] = image
    with video_files.read(path) as video:
        frame = next(video.frames())
    np.testing.assert_array_equal(frame.image, expected)
    assert (video.height, video.width) == expected.shape[:2]
    assert video.aspect_ratio == (2 if a else 1 / 2)


@needs_av
def test_a_copy_has_the_shape_of_the_pixels(tmp_path, av):
    images = video_clips.gray_images(2)
    source = video_clips.write(tmp_path / "a.mov", images, aspect="4/3")
    copy(source, str(tmp_path / "b.mp4"))
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio * 3 == 4


@needs_av
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_the_frames_of_a_truncated_file_are_kept(tmp_path, av, name):
    noise = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), np.uint8)
    options = {"movflags": "+faststart"} if name == "a.mp4" else {}
    path = video_clips.write(tmp_path / name, noise, codec="mpeg4", options=options)
    size = os.path.getsize(path) * 6 // 10
    with av.open(path) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    num_whole = sum(packet.pos + packet.size <= size for packet in packets)
    os.truncate(path, size)
    with video_files.read(path) as video:
        frames = list(video.frames())
    assert num_whole <= len(frames) <= num_whole + 1 and 4 <= num_whole <= 16
    assert " of 2.0 s could be read" in video.corruption()


@needs_av
def test_a_stream_that_starts_again_with_another_size_goes_on(tmp_path):
    content = b""
    for size in ((24, 32), (48, 64)):
        images = video_clips.gray_images(25, height=size[0], width=size[1])
        part = video_clips.write(tmp_path / "a.ts", images, codec="libx264", rate=25)
        content += pathlib.Path(part).read_bytes()
    path = tmp_path / "both.ts"
    path.write_bytes(content)
    with video_files.read(str(path)) as video:
        frames = list(video.frames())
    assert [frame.image.shape for frame in frames] == [(24, 32, 3)] * 50
    times = [float(frame.pts * video.time_base) for frame in frames]
    np.testing.assert_allclose(times, np.arange(50) / 25, atol=0.001)


@needs_av
@pytest.mark.parametrize(("height", "space"), [(720, "ITU709"), (704, "ITU601")])
def test_colors_without_a_color_space_are_those_of_players(tmp_path, av, height, space):
    image = np.full((height, 16, 3), (200, 30, 60), np.uint8)
    path = str(tmp_path / "a.mp4")
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", 10)
        stream.width, stream.height, stream.pix_fmt = 16, height, "yuv420p"
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=space)
        frame.colorspace = 2  # Unspecified.
        container.mux(stream.encode(frame) + stream.encode(None))
    with video_files.read(path) as video:
        difference = next(video.frames()).image.astype(int) - image
    assert np.abs(difference).max() < 6


@needs_av
def test_the_frames_after_a_corrupt_part_are_kept(tmp_path, av):
    noise = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), np.uint8)
    path = video_clips.write(tmp_path / "a.mov", noise)
    with av.open(path) as container:
        packet = list(container.demux(video=0))[10]
    with open(path, "r+b") as file:
        file.seek(packet.pos)
        file.write(bytes(packet.size))
    with video_files.read(path) as video:
        frames = list(video.frames())
    assert len(frames) == 19 and video.corruption() == "1 decoding error"
    np.testing.assert_array_equal(frames[-1].image, noise[-1])
    assert float(frames[-1].pts * video.time_base) == pytest.approx(1.9)


@needs_av
def test_files_that_are_no_videos_have_an_error_with_their_name(tmp_path):
    (tmp_path / "text.mp4").write_text("no video" * 100)
    (tmp_path / "empty.mp4").write_text("")
    for name in ("text.mp4", "empty.mp4", "absent.mp4", os.fsdecode(b"\xff.mp4")):
        with (
            pytest.raises(errors.UserError, match="cannot be read") as caught,
            video_files.read(str(tmp_path / name)),
        ):
            pass
        assert ascii(name)[1:-1] in str(caught.value)


@needs_av
def test_a_file_without_frames_is_an_error(tmp_path, av):
    path = str(tmp_path / "sound.mp4")
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", 8000)
        samples = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp")
        samples.rate = 8000
        container.mux(stream.encode(samples) + stream.encode(None))
    with (
        pytest.raises(errors.UserError, match="contains no video"),
        video_files.read(path),
    ):
        pass


@needs_av
def test_an_unknown_codec_is_an_error(tmp_path):
    path = video_clips.write_unknown_codec(tmp_path / "a.mkv")
    with (
        pytest.raises(errors.UserError, match=r"a\.mkv .* no decoder for its codec"),
        video_files.read(path),
    ):
        pass


@needs_av
def test_errors_of_ffmpeg_have_the_name_of_the_video_but_a_full_disk_stops(av):
    with (
        pytest.raises(errors.UserError, match=r"^a\.mov cannot be .* not supported\.$"),
        video_files.user_errors("a.mov"),
    ):
        video_files._image(av.VideoFrame(16, 16, "rgb96le"))  # No conversion to RGB.
    with pytest.raises(OSError, match="space") as caught, video_files.user_errors("a"):
        raise av.error.OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not isinstance(caught.value, errors.UserError)


@needs_av
def test_remote_files_are_read_and_written(tmp_path):
    images = video_clips.gray_images(3)
    source = video_clips.write(tmp_path / "a.mov", images)
    import tensorflow as tf

    tf.io.gfile.makedirs("ram://clips")
    tf.io.gfile.copy(source, "ram://clips/a.mov", overwrite=True)
    copy("ram://clips/a.mov", "ram://clips/b.mp4")
    assert len(copy("ram://clips/b.mp4", str(tmp_path / "c:d.mp4"))[1]) == 3
    assert sorted(tf.io.gfile.listdir("ram://clips")) == ["a.mov", "b.mp4"]


@needs_av
@pytest.mark.parametrize("num_written", [0, 3])
def test_an_interrupted_writer_leaves_no_file_and_keeps_the_old_one(
    tmp_path, monkeypatch, num_written
):
    # Unlike x264, this encoder returns the first frames at once.
    monkeypatch.setattr(video_files, "_ENCODERS", ("mpeg4",))
    source = video_clips.write(tmp_path / "a.mov", video_clips.gray_images(3))
    folder = tmp_path / "output"
    folder.mkdir()
    (folder / "b.mp4").write_text("old")
    with (
        pytest.raises(KeyboardInterrupt),
        video_files.read(source) as video,
        video_files.write(str(folder / "b.mp4"), video) as writer,
    ):
        for _, frame in zip(range(num_written), video.frames(), strict=False):
            writer.write(frame, frame.image)
        assert len(os.listdir(folder)) == (2 if num_written else 1)
        raise KeyboardInterrupt
    assert os.listdir(folder) == ["b.mp4"]
    assert (folder / "b.mp4").read_text() == "old"


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(errors.MissingPackageError, match=r"a.mp4 .* av.*\[video\]"):
        video_files.require("a.mp4")


def test_videos_have_known_extensions():
    assert video_files.is_video("a/b.MP4") and not video_files.is_video("a.mp4/b.gif")
