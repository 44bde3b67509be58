"""Short video files of known frames."""

from fractions import Fraction

import numpy as np

ORIENTATIONS = [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1)]
ORIENTATIONS += [(0, 1, 1, 0), (0, -1, 1, 0), (0, 1, -1, 0), (0, -1, -1, 0)]


def gray_images(count, *, height=24, width=32):
    """Returns images of one color each; the level 10 * i identifies image i."""
    return [np.full((height, width, 3), 10 * i, np.uint8) for i in range(count)]


def write(path, images, *, pts=None, rate=10, codec="png", aspect=None, options=None):
    """Writes images, without loss for the codec "png"; `pts` are milliseconds."""
    import av

    height, width = images[0].shape[:2]
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate)
        stream.width, stream.height = width, height
        stream.pix_fmt = "rgb24" if codec == "png" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        if aspect:
            stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = pts[index] if pts else index * 1000 // rate
            frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def write_unknown_codec(path):
    """Writes a video in Matroska whose codec FFmpeg does not know."""
    write(path, gray_images(3), codec="mpeg4")
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/", b"V_OTHER/"))
    return str(path)


def set_display_matrix(path, a, b, c, d):
    """Changes the display matrix of a MOV or MP4 file, as a telephone writes it."""
    with open(path, "r+b") as file:
        start = file.read().index(b"tkhd") + 44  # ISO/IEC 14496-12, 8.3.2.
        file.seek(start)
        matrix = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 14])
        file.write((matrix << 16).astype(">i4").tobytes())


def read(path):
    """Returns the seconds and the images of a file, read without this package."""
    import av

    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    return [f.time for f in frames], [f.to_ndarray(format="rgb24") for f in frames]
