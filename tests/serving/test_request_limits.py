import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.serving import request_limits

LIMITS = request_limits.Limits(max_request_images=4, max_image_pixels=600)
FORMATS = ("JPEG", "PNG", "BMP")
InvalidArgumentError = tf.errors.InvalidArgumentError


@tf.function(input_signature=[tf.TensorSpec([], tf.string)])
def decode(encoded):
    """Decodes a file within the limits, as a serving module does."""
    allowed = LIMITS.check_file(encoded)
    return tf.io.decode_image(allowed, channels=3, expand_animations=False)


def encode(width, height, image_format, **options):
    file = io.BytesIO()
    PIL.Image.new("RGB", (width, height), "red").save(file, image_format, **options)
    return file.getvalue()


def with_header(encoded, image_format, width, height):
    """Returns a file whose header contains another size."""
    offset, layout = {
        "JPEG": (encoded.find(b"\xff\xc0") + 5, ">HH"),
        "PNG": (16, ">II"),
        "BMP": (18, "<ii"),
    }[image_format]
    sides = (height, width) if image_format == "JPEG" else (width, height)
    header = struct.pack(layout, *sides)
    return encoded[:offset] + header + encoded[offset + len(header) :]


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize(("width", "height"), [(30, 20), (1, 1), (600, 1), (1, 600)])
def test_file_within_the_limit_is_decoded(image_format, width, height):
    pixels = decode(encode(width, height, image_format))
    assert pixels.shape == (height, width, 3)
    np.testing.assert_allclose(pixels[0, 0], [255, 0, 0], atol=3)


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize(("width", "height"), [(31, 20), (601, 1), (60_000, 60_000)])
def test_header_beyond_the_limit_is_an_error_with_the_name_of_the_limit(
    image_format, width, height
):
    encoded = with_header(encode(8, 8, image_format), image_format, width, height)
    message = rf"max_image_pixels = 600\); send a smaller.*\[{height} {width}\]"
    with pytest.raises(InvalidArgumentError, match=message):
        decode(encoded)


@pytest.mark.parametrize(
    ("image_format", "width", "height"),
    [
        ("PNG", 2**31 - 1, 2**31 - 1),
        ("PNG", 2**32 - 1, 2**32 - 1),
        ("PNG", 0, 5),
        ("BMP", 2**31 - 1, -(2**31)),
        ("BMP", -5, -(2**31)),
        ("BMP", 0, 5),
    ],
)
def test_header_with_impossible_sides_fails(image_format, width, height):
    encoded = with_header(encode(8, 8, image_format), image_format, width, height)
    with pytest.raises(InvalidArgumentError, match=r"max_image_pixels|has no pixels"):
        decode(encoded)


@pytest.mark.parametrize("image_format", FORMATS)
def test_file_that_ends_early_fails(image_format):
    encoded = encode(30, 20, image_format)
    for length in range(min(60, len(encoded))):
        with pytest.raises(InvalidArgumentError):
            decode(encoded[:length])


@pytest.mark.parametrize("encoded", [b"", b"text", encode(8, 8, "WEBP")])
def test_unknown_format_fails(encoded):
    with pytest.raises(InvalidArgumentError, match="send JPEG, PNG or BMP"):
        decode(encoded)


def test_gif_fails_because_frames_may_be_larger_than_its_header():
    with pytest.raises(InvalidArgumentError, match="send JPEG, PNG or BMP"):
        decode(encode(8, 8, "GIF"))


def test_rows_from_top_to_bottom_are_a_valid_bmp():
    encoded = encode(30, 20, "BMP")
    assert decode(with_header(encoded, "BMP", 30, -20)).shape == (20, 30, 3)


def test_progressive_jpeg_with_hundreds_of_scans_fails():
    encoded = encode(30, 20, "JPEG", progressive=True)
    assert decode(encoded).shape == (20, 30, 3)
    last_scan = encoded[encoded.rindex(b"\xff\xda") : -2]
    hostile = encoded[:-2] + 200 * last_scan + encoded[-2:]
    assert len(hostile) < 20_000
    with pytest.raises(InvalidArgumentError, match="more than 64 scans"):
        decode(hostile)


def test_video_behind_a_jpeg_does_not_count_as_scans():
    video = np.random.default_rng(0).integers(0, 256, 10_000_000, np.uint8).tobytes()
    assert video.count(b"\xff\xda") > 100
    assert decode(encode(30, 20, "JPEG") + video).shape == (20, 30, 3)


def chunk(name, content):
    check = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + check


def png_with(*chunks, offset=33):
    """Returns a PNG with additional chunks, by default after its header."""
    encoded = encode(8, 8, "PNG")
    return encoded[:offset] + b"".join(chunks) + encoded[offset:]


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt"])
def test_png_with_many_compressed_texts_fails(name):
    start = b"k\0\0" if name == b"zTXt" else b"k\0\1\0\0\0"
    text = chunk(name, start + zlib.compress(bytes(100_000)))
    assert decode(png_with(*[text] * 16)).shape == (8, 8, 3)
    with pytest.raises(InvalidArgumentError, match="more than 16 texts"):
        decode(png_with(*[text] * 17))


def test_png_whose_header_is_not_first_fails():
    with pytest.raises(InvalidArgumentError, match="not begin with an IHDR"):
        decode(png_with(chunk(b"teSt", bytes(40)), offset=8))


@pytest.mark.parametrize(
    ("size", "message"), [(0, "has 0 images; send"), (5, r"max_request_images = 4\)")]
)
def test_batch_that_is_empty_or_too_long_fails(size, message):
    with pytest.raises(InvalidArgumentError, match=message):
        tf.function(LIMITS.check_batch)(tf.zeros([size, 2]))
    np.testing.assert_array_equal(LIMITS.check_batch(tf.ones([4, 2])), np.ones([4, 2]))


@pytest.mark.parametrize("shape", [(2, 25, 25, 3), (601, 1, 3), (1, 0, 8, 3)])
def test_decoded_images_without_pixels_or_with_too_many_fail(shape):
    with pytest.raises(InvalidArgumentError, match=r"max_image_pixels|has no pixels"):
        tf.function(LIMITS.check_pixels)(tf.zeros(shape))


@pytest.mark.parametrize("value", [0, -1, 1.5, "8", None])
def test_limit_that_is_not_a_positive_integer_is_rejected(value):
    with pytest.raises(errors.UserError, match=r"max_image_pixels is .*integer >= 1"):
        request_limits.Limits(max_image_pixels=value)
