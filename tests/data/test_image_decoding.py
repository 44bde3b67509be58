import io
import resource
import struct

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

import annotation_files
from retinanet_tpu.data import image_decoding

SWAPPING = (5, 6, 7, 8)
HUGE = 100_000


def ramp(height=24, width=30):
    """Returns an image whose pixels all differ, so that rotations differ too."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 8, y * 8, (x + y) * 4], axis=-1).astype(np.uint8)


def encode(image, image_format="PNG", **options):
    if isinstance(image, np.ndarray):
        image = PIL.Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def oriented(orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return exif


def decode(image):
    pixels = tf.io.decode_image(image.encoded, channels=3).numpy()
    assert pixels.shape == (image.height, image.width, 3)
    return pixels.astype(int)


@pytest.mark.parametrize(
    ("image_format", "options", "name"),
    [
        ("JPEG", {}, "jpeg"),
        ("JPEG", {"progressive": True, "exif": oriented(1)}, "jpeg"),
        ("MPO", {"save_all": True, "append_images": [PIL.Image.new("RGB", (8, 8))]},
         "jpeg"),
        ("PNG", {}, "png"),
    ],
)  # fmt: skip
def test_jpeg_and_png_are_stored_unchanged(image_format, options, name):
    encoded = encode(ramp(), image_format, **options)
    assert image_decoding.prepare(encoded) == (encoded, name, 24, 30, 1, ())


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpegs_of_other_color_modes_are_stored_unchanged_and_decode(mode):
    encoded = encode(PIL.Image.fromarray(ramp()).convert(mode), "JPEG", quality=95)
    image = image_decoding.prepare(encoded)
    assert image.encoded == encoded
    shown = PIL.Image.open(io.BytesIO(encoded)).convert("RGB")
    assert np.abs(decode(image) - np.asarray(shown).astype(int)).mean() < 4


def test_a_16_bit_png_is_stored_unchanged_and_decodes_to_its_upper_8_bits():
    values = (np.arange(24 * 30) * 90).astype(np.uint16).reshape(24, 30)
    image = image_decoding.prepare(encode(PIL.Image.fromarray(values)))
    assert image.changes == ()
    np.testing.assert_array_equal(decode(image)[..., 0], values >> 8)


@pytest.mark.parametrize(
    ("image_format", "mode"),
    [
        *(("TIFF", mode) for mode in ("RGB", "RGBA", "L", "P", "1", "CMYK", "LAB")),
        *(("BMP", mode) for mode in ("RGB", "RGBA", "L", "P", "1")),
        *(("WEBP", mode) for mode in ("RGB", "RGBA")),
        *(("GIF", mode) for mode in ("RGB", "L", "P")),
        ("PPM", "RGB"),
        ("ICO", "RGBA"),
    ],
)
def test_other_formats_and_colors_are_stored_as_png(image_format, mode):
    source = PIL.Image.fromarray(ramp())
    source = PIL.Image.new("LAB", (30, 24)) if mode == "LAB" else source.convert(mode)
    options = {"sizes": [(30, 24)]} if image_format == "ICO" else {}
    options |= {"lossless": True} if image_format == "WEBP" else {}
    encoded = encode(source, image_format, **options)
    image = image_decoding.prepare(encoded)
    assert image.image_format == "png"
    assert image.changes == (f"images stored as PNG, were {image_format}",)
    shown = PIL.Image.open(io.BytesIO(encoded)).convert("RGB")
    np.testing.assert_array_equal(decode(image), np.asarray(shown))


def test_a_16_bit_tiff_keeps_its_upper_8_bits():
    values = (np.arange(24 * 30) * 90).astype(np.uint16).reshape(24, 30)
    image = image_decoding.prepare(encode(PIL.Image.fromarray(values), "TIFF"))
    for channel in range(3):
        np.testing.assert_array_equal(decode(image)[..., channel], values >> 8)


def record_pixels(encoded):
    """Returns the pixels of the record of a file, or the kind and text of the error."""
    try:
        return decode(image_decoding.prepare(encoded))
    except image_decoding.UnusableError as error:
        return error.kind, str(error)


def predict_pixels(encoded):
    """Returns the pixels that predict reads, or the kind and text of the error."""
    try:
        return image_decoding.decode(encoded).astype(int)
    except image_decoding.UnusableError as error:
        return error.kind, str(error)


DEEP = (np.arange(24 * 30) * 90).reshape(24, 30)
SOURCES = {
    **{
        mode: PIL.Image.fromarray(ramp()).convert(mode)
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV")
    },
    "LAB": PIL.Image.new("LAB", (30, 24), (120, 9, 9)),
    "I;16": PIL.Image.fromarray(DEEP.astype(np.uint16)),
    "I": PIL.Image.fromarray(DEEP.astype(np.int32)),
    "F": PIL.Image.fromarray(DEEP.astype(np.float32) / DEEP.max()),
}
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "PPM")


def encodings(orientation):
    """Yields (format and mode, file content) of all that Pillow can write."""
    for mode, source in SOURCES.items():
        for image_format in FORMATS:
            options = {"exif": oriented(orientation), "lossless": True}
            if image_format == "TIFF":
                options = {"tiffinfo": {0x0112: orientation}}
            try:
                yield f"{image_format} {mode}", encode(source, image_format, **options)
            except (OSError, ValueError, KeyError):
                continue  # The format has no such mode.


@pytest.mark.parametrize("orientation", [1, 6])
def test_predict_reads_the_pixels_of_the_record_or_raises_the_same_error(orientation):
    kinds = dict(encodings(orientation))
    assert len(kinds) > 45
    for kind, encoded in kinds.items():
        record, predicted = record_pixels(encoded), predict_pixels(encoded)
        if kind.startswith("JPEG") and orientation > 1:
            # The record is compressed again.
            assert record.shape == predicted.shape == (30, 24, 3)
            assert np.abs(record - predicted).mean() < 4, kind
        else:
            np.testing.assert_array_equal(record, predicted, err_msg=kind)
        if kind in ("PNG I;16", "TIFF I;16"):
            upright = np.rot90(DEEP >> 8, -1 if orientation > 1 else 0)
            np.testing.assert_array_equal(predicted[..., 1], upright)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
@pytest.mark.parametrize("read", [image_decoding.prepare, image_decoding.decode])
def test_pixels_of_unknown_range_are_an_error(dtype, read):
    encoded = encode(PIL.Image.fromarray(np.ones([24, 30], dtype)), "TIFF")
    with pytest.raises(
        image_decoding.UnusableError, match="8 bits a channel"
    ) as caught:
        read(encoded)
    assert caught.value.kind == "images of 32-bit or float pixels"


def test_the_first_frame_of_an_animation_is_stored():
    more = PIL.Image.new("RGB", (30, 24), "red")
    first = PIL.Image.fromarray(ramp() // 32 * 32)
    encoded = encode(first, "WEBP", save_all=True, append_images=[more], lossless=True)
    for shown in (
        decode(image_decoding.prepare(encoded)),
        image_decoding.decode(encoded),
    ):
        np.testing.assert_array_equal(shown, np.asarray(first))


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_rotated_by_its_exif_orientation(image_format, orientation):
    options = {"exif": oriented(orientation)}
    if image_format == "TIFF":
        options = {"tiffinfo": {0x0112: orientation}}
    encoded = encode(ramp(), image_format, lossless=True, **options)
    image = image_decoding.prepare(encoded)
    a = ramp()
    shown = [a, a[:, ::-1], a[::-1, ::-1], a[::-1], a.swapaxes(0, 1)]
    turned = [np.rot90(a, -1), np.rot90(a, 2).swapaxes(0, 1), np.rot90(a)]
    expected = (shown + turned)[orientation - 1]
    np.testing.assert_array_equal(decode(image), expected)
    assert image.has_swapped_sides == (orientation in SWAPPING)
    assert ("images turned upright (EXIF)" in image.changes) == (orientation > 1)


def test_a_rotated_jpeg_is_stored_as_jpeg_without_orientation():
    image = image_decoding.prepare(encode(ramp(), "JPEG", quality=95, exif=oriented(6)))
    stored = PIL.Image.open(io.BytesIO(image.encoded))
    assert (image.image_format, stored.format, stored.size) == (
        ("jpeg", "JPEG", (24, 30))
    )
    assert stored.getexif().get(0x0112, 1) == 1
    assert np.abs(decode(image) - np.rot90(ramp(), -1)).mean() < 4


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_invalid_orientation_counts_as_upright(orientation):
    encoded = encode(ramp(), "JPEG", exif=oriented(orientation))
    assert image_decoding.prepare(encoded).encoded == encoded


@pytest.mark.parametrize("orientation", SWAPPING)
def test_boxes_are_rotated_with_the_pixels(orientation):
    stored = np.zeros([24, 30, 3], np.uint8)
    stored[3:10, 5:21] = 255
    image = image_decoding.prepare(encode(stored, exif=oriented(orientation)))
    left, top, width, height = image_decoding.rotate_box((5, 3, 16, 7), image)
    expected = np.zeros([30, 24, 3], int)
    expected[top : top + height, left : left + width] = 255
    np.testing.assert_array_equal(decode(image), expected)


def jpeg_header(side):
    encoded = bytearray(encode(ramp(), "JPEG"))
    size = encoded.index(b"\xff\xc0") + 5
    encoded[size : size + 4] = struct.pack(">HH", side, side)
    return bytes(encoded)


def bmp_header(side):
    encoded = bytearray(encode(ramp(), "BMP"))
    encoded[18:26] = struct.pack("<ii", side, side)
    return bytes(encoded)


@pytest.mark.parametrize("read", [image_decoding.prepare, image_decoding.decode])
@pytest.mark.parametrize(
    ("encoded", "side"),
    [
        (annotation_files.giant_png(HUGE), HUGE),
        (jpeg_header(65_500), 65_500),  # The largest size of a JPEG.
        (bmp_header(HUGE), HUGE),
    ],
    ids=["png", "jpeg", "bmp"],
)
def test_a_giant_header_is_an_error_before_memory_is_allocated(encoded, side, read):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(image_decoding.UnusableError, match=str(side**2)) as caught:
        read(encoded)
    assert caught.value.kind == "images too large to be images"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    assert grown < 50_000  # KiB. The pixels would need 12 GB or more.


@pytest.mark.parametrize("read", [image_decoding.prepare, image_decoding.decode])
@pytest.mark.parametrize(
    ("encoded", "kind"),
    [
        (b"", "images of 0 bytes"),
        (b"no image", "images unreadable"),
        (encode(ramp(), "JPEG")[:500], "images unreadable"),
        (encode(ramp(), "PNG")[:70], "images unreadable"),
        (encode(ramp(), "BMP")[:100], "images unreadable"),
        (b"\xff\xd8\xff\xe0 no more of it", "images unreadable"),
    ],
    ids=["empty", "text", "jpeg", "png", "bmp", "marker"],
)
def test_a_broken_file_is_an_error_with_a_reason(encoded, kind, read):
    with pytest.raises(image_decoding.UnusableError, match=r"\w") as caught:
        read(encoded)
    assert caught.value.kind == kind
    assert "\n" not in str(caught.value)
