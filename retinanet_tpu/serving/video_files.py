"""Reads the frames of video files and writes MP4 files, through PyAV and FFmpeg.

  with video_files.read("clip.mov") as video, video_files.write(path, video) as writer:
      for frame in video.frames():
          writer.write(frame, frame.image)

Frames stream through: only a few are in memory. PyAV is the extra `video`.
"""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from retinanet_tpu import errors, optional_packages
from retinanet_tpu.estimator.model_dir import files

EXTENSIONS = (
    *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg"),
    *(".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"),
)
# The first that the build of FFmpeg contains. x264 has the best quality.
_ENCODERS = ("libx264", "libopenh264", "mpeg4")
# Without B-frames the times in the file are exact for variable frame rates too.
_X264_OPTIONS = {"crf": "20", "preset": "veryfast", "bf": "0"}
_BITS_PER_PIXEL = 0.25  # For encoders that have no constant quality.
_MAX_MPEG4_RATE = 60_000  # MPEG-4 stores at most 65,535 ticks per second.
_DEFAULT_RATE = Fraction(25)  # For files without a frame rate.
_JUMP_SECS = 0.5  # Smaller steps back are frames in a wrong order.
_MISSING_SECS = 0.5  # Durations in files are imprecise by some frames.
# Values of FFmpeg, equal in the color space, the primaries and the transfer function.
_BT709 = 1
_UNSPECIFIED = 2
_LIMITED_RANGE = 1
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_HD_HEIGHT = 720  # Players assume BT.709 from this height on, BT.601 below.


class Frame(NamedTuple):
    """A frame of a video, as a player displays it."""

    number: int  # from 0
    pts: int  # ticks of Video.time_base since the first frame, rising
    image: np.ndarray  # uint8 [H, W, 3] RGB


class Video:
    """A video file that is open for reading.

    Attributes:
      width, height: The size of the images, px, after the rotation.
      frame_rate: The average number of frames per second.
      time_base: The seconds of a tick.
      num_frames: The number of frames according to the file, or None. It is imprecise.
      num_ticks: The ticks from the first frame to the end of the last one read.
      aspect_ratio: The width of a pixel divided by its height.
    """

    def __init__(self, av: ModuleType, container: Any, path: str):
        """Initializes the video and decodes the first frame.

        Raises:
          UserError: There is no frame, or its codec is unknown.
        """
        self._error = av.error.FFmpegError
        self._container = container
        self._stream = container.streams.best("video")
        if self._stream is None:
            raise errors.UserError(f"{path} cannot be read: it contains no video.")
        if self._stream.codec_context is None:
            raise errors.UserError(
                f"{path} cannot be read: FFmpeg has no decoder for its codec; convert "
                "it to H.264."
            )
        self._stream.thread_type = "AUTO"
        self._num_errors = 0
        self.num_ticks = 0
        self.time_base: Fraction = self._stream.time_base
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.frame_rate = Fraction(rate or _DEFAULT_RATE)
        self._decoded = self._decode()
        self._first = next(self._decoded, None)
        if self._first is None:
            raise errors.UserError(f"{path} cannot be read: no frame can be decoded.")
        self._start = self._pts(self._first, 0)
        self.height, self.width = _image(self._first).shape[:2]
        ratio = self._stream.sample_aspect_ratio or Fraction(1)
        is_turned = _orientation(self._first)[0]
        self.aspect_ratio = 1 / ratio if is_turned else ratio
        self.num_frames = self._stream.frames or None
        duration = self._duration()
        if self.num_frames is None and duration is not None:
            self.num_frames = round(duration * self.frame_rate)

    @property
    def frame_ticks(self) -> int:
        """Returns the ticks of a frame at the average rate."""
        return max(1, round(1 / (self.frame_rate * self.time_base)))

    def frames(self) -> Iterator[Frame]:
        """Yields the frames, once. Parts that cannot be decoded are left out."""
        frame, number = self._first, 0
        self._first = None
        start = self._start
        pts = -1
        while frame is not None:
            next_pts = self._pts(frame, number) - start
            if (next_pts - pts) * self.time_base < -_JUMP_SECS:
                # The clock of a stream may start again, in the middle of a file.
                start += next_pts - self.num_ticks
                next_pts = self.num_ticks
            pts = max(pts + 1, next_pts)
            self.num_ticks = pts + (frame.duration or self.frame_ticks)
            yield Frame(number, pts, _image(frame, self.width, self.height))
            frame, number = next(self._decoded, None), number + 1

    def corruption(self) -> str | None:
        """Returns the errors that were found while reading, None for a valid file."""
        found = []
        duration = self._duration()
        if duration is not None:
            start = (self._stream.start_time or 0) * self.time_base
            end = (self._start + self.num_ticks) * self.time_base
            missing = start + duration - end
            if missing > _MISSING_SECS:
                read = float(duration - missing)
                found.append(f"{read:.1f} of {float(duration):.1f} s could be read")
        if self._num_errors:
            noun = "error" if self._num_errors == 1 else "errors"
            found.append(f"{self._num_errors} decoding {noun}")
        return ", ".join(found) or None

    def _pts(self, frame: Any, number: int) -> int:
        return number * self.frame_ticks if frame.pts is None else frame.pts

    def _decode(self) -> Iterator[Any]:
        """Yields the frames that can be decoded, and counts errors."""
        packets = iter(self._container.demux(self._stream))
        while True:
            try:
                packet = next(packets, None)
            except self._error:
                self._num_errors += 1
                packet = None
            try:
                # None, at the end, makes the decoder return the frames that it holds.
                frames = self._stream.codec_context.decode(packet)
            except EOFError:  # They were returned before.
                frames = []
            except self._error:
                self._num_errors += 1
                frames = []
            for frame in frames:
                self._num_errors += frame.is_corrupt
                yield frame
            if packet is None:
                return

    def _duration(self) -> Fraction | None:
        """Returns the seconds of the video stream according to the file."""
        if self._stream.duration:
            return self._stream.duration * self.time_base
        # Matroska has the duration of a stream only in a tag, as hours:minutes:seconds.
        tag = self._stream.metadata.get("DURATION", "")
        with contextlib.suppress(ValueError):
            hours, minutes, secs = map(Fraction, tag.split(":"))
            return hours * 3600 + minutes * 60 + secs
        if self._container.duration and len(self._container.streams) == 1:
            return Fraction(self._container.duration, 1_000_000)
        return None


class Writer:
    """An MP4 file that is open for writing."""

    def __init__(self, av: ModuleType, container: Any, video: Video):
        """Initializes the stream with the size, rate and times of another video."""
        self._av = av
        self._container = container
        self._video = video
        self._held: Any = None  # The last packet.
        encoder = next(name for name in _ENCODERS if name in av.codecs_available)
        options = _X264_OPTIONS if encoder == "libx264" else {}
        stream = container.add_stream(encoder, video.frame_rate, options=options)
        stream.width = video.width + video.width % 2
        stream.height = video.height + video.height % 2
        stream.pix_fmt = "yuv420p"  # The only format that all players decode.
        context = stream.codec_context
        context.time_base = video.time_base
        if encoder != "libx264":
            pixel_rate = video.width * video.height * video.frame_rate
            context.bit_rate = int(pixel_rate * _BITS_PER_PIXEL)
            context.time_base = max(video.time_base, Fraction(1, _MAX_MPEG4_RATE))
        context.sample_aspect_ratio = video.aspect_ratio
        context.color_range = _LIMITED_RANGE
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        self._stream = stream

    def write(self, frame: Frame, image: np.ndarray) -> None:
        """Writes an image at the time of a frame.

        Args:
          frame: The frame of the video that was read.
          image: uint8 [H, W, 3] RGB of the same size. An odd width or height grows by a
            copy of the last column or row, because the codec requires even ones.
        """
        height, width = image.shape[:2]
        if height % 2 or width % 2:
            image = np.pad(image, [(0, height % 2), (0, width % 2), (0, 0)], "edge")
        encoded = self._av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
            format="yuv420p", dst_colorspace="ITU709", dst_color_range=_LIMITED_RANGE
        )
        encoded.pts = frame.pts
        encoded.time_base = self._video.time_base
        self._mux(self._stream.encode(encoded))

    def finish(self) -> None:
        """Writes the rest. The last frame is displayed as long as in the source."""
        self._mux(self._stream.encode(None))
        if self._held is not None:
            end = self._video.num_ticks * self._video.time_base
            ticks = round(end / self._held.time_base) - self._held.pts
            self._held.duration = max(1, ticks)
            self._container.mux(self._held)

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            if self._held is not None:
                self._container.mux(self._held)
            self._held = packet


def is_video(path: str) -> bool:
    """Returns whether the name of a file has the extension of a video."""
    return path.lower().endswith(EXTENSIONS)


def require(path: str) -> ModuleType:
    """Returns PyAV.

    Args:
      path: The file that requires it, for the message.
    Raises:
      MissingPackageError: It is not installed.
    """
    return optional_packages.optional_import("av", "video", needed_by=path)


@contextlib.contextmanager
def user_errors(path: str) -> Iterator[None]:
    """Raises UserError for an error of FFmpeg, except that of a full disk.

    Args:
      path: The video that is processed, for the message.
    Raises:
      UserError: FFmpeg cannot convert a frame, encode one of this size, or the like.
    """
    av = require(path)
    try:
        yield
    except av.error.FFmpegError as error:
        if error.errno in _DISK_FULL:  # Every later video would fail too.
            raise
        message = f"{path} cannot be processed: FFmpeg: {error.strerror}."
        raise errors.UserError(message) from error


@contextlib.contextmanager
def read(path: str) -> Iterator[Video]:
    """Opens a video file for reading.

    Args:
      path: The local or remote file.
    Raises:
      UserError: The file cannot be read, is no video, has no frame, or its codec is
        unknown.
      MissingPackageError: PyAV is not installed.
    """
    av = require(path)
    with contextlib.ExitStack() as stack:
        try:
            path.encode()  # TensorFlow raises TypeError for a name that is not UTF-8.
            file = stack.enter_context(tf.io.gfile.GFile(path, "rb"))
            container = stack.enter_context(av.open(file))
        except UnicodeError as error:
            message = f"{path!a} cannot be read: the name is not UTF-8; rename it."
            raise errors.UserError(message) from error
        except tf.errors.OpError as error:
            reason = error.message.rpartition("; ")[2]
            raise errors.UserError(f"{path} cannot be read: {reason}.") from error
        except av.error.FFmpegError as error:
            message = f"{path} cannot be read as a video: {error.strerror}."
            raise errors.UserError(message) from error
        yield Video(av, container, path)


@contextlib.contextmanager
def write(path: str, video: Video) -> Iterator[Writer]:
    """Opens an MP4 file for writing.

    The file gets its name when the block ends without an exception.

    Args:
      path: The local or remote file.
      video: The video whose size, frame rate, times and duration are used.
    """
    av = require(path)
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(files.whole_file(path))
        local = temporary
        if "://" in path:  # The index of an MP4 file is written last, to its front.
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            local = os.path.join(directory, "video.mp4")
        # Without "file:" FFmpeg takes the text before a colon for a protocol.
        with av.open(
            f"file:{local}", "w", format="mp4", options={"movflags": "+faststart"}
        ) as container:
            writer = Writer(av, container, video)
            yield writer
            writer.finish()
        if local != temporary:
            tf.io.gfile.copy(local, temporary)


def _orientation(frame: Any) -> tuple[bool, bool, bool]:
    """Returns if a player exchanges x and y, then mirrors x, then mirrors y.

    Source: FFmpeg, libavutil/display.h: a pixel (x, y) is displayed at
    (a x + c y, b x + d y), where the matrix begins with a, b, u, c, d.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    if abs(b) > abs(a):
        return True, c < 0, b < 0
    return False, a < 0, d < 0


def _image(frame: Any, width: int = 0, height: int = 0) -> np.ndarray:
    """Returns uint8 [H, W, 3] RGB, rotated, and scaled to a size if it is given."""
    is_turned, is_mirrored, is_flipped = _orientation(frame)
    if is_turned:
        width, height = height, width
    is_hd = frame.colorspace == _UNSPECIFIED and frame.height >= _HD_HEIGHT
    image = frame.to_ndarray(
        format="rgb24",
        width=width or frame.width,
        height=height or frame.height,
        src_colorspace="ITU709" if is_hd else None,
    )
    if is_turned:
        image = image.transpose(1, 0, 2)
    image = image[:: -1 if is_flipped else 1, :: -1 if is_mirrored else 1]
    return np.ascontiguousarray(image)
