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
    """An image whose pixels all differ; upright and turned cannot be mistaken."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 8, y * 8, (x + y) * 4], axis=-1).astype(np.uint8)


def encode(picture, image_format="PNG", **options):
    if isinstance(picture, np.ndarray):
        picture = PIL.Image.fromarray(picture)
    file = io.BytesIO()
    picture.save(file, image_format, **options)
    return file.getvalue()


def oriented(orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return exif


def decode(picture):
    pixels = tf.io.decode_image(picture.encoded, channels=3).numpy()
    assert pixels.shape == (picture.height, picture.width, 3)
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
def test_jpeg_and_png_stay_byte_for_byte(image_format, options, name):
    encoded = encode(ramp(), image_format, **options)
    assert image_decoding.prepare(encoded) == (encoded, name, 24, 30, 1, ())


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpeg_of_other_colors_stays_and_decodes(mode):
    encoded = encode(PIL.Image.fromarray(ramp()).convert(mode), "JPEG", quality=95)
    picture = image_decoding.prepare(encoded)
    assert picture.encoded == encoded
    shown = PIL.Image.open(io.BytesIO(encoded)).convert("RGB")
    assert np.abs(decode(picture) - np.asarray(shown).astype(int)).mean() < 4


def test_png_of_16_bits_stays_and_decodes_to_its_upper_8():
    values = (np.arange(24 * 30) * 90).astype(np.uint16).reshape(24, 30)
    picture = image_decoding.prepare(encode(PIL.Image.fromarray(values)))
    assert picture.changes == ()
    np.testing.assert_array_equal(decode(picture)[..., 0], values >> 8)


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
    picture = image_decoding.prepare(encoded)
    assert picture.image_format == "png"
    assert picture.changes == (f"images stored as PNG, were {image_format}",)
    shown = PIL.Image.open(io.BytesIO(encoded)).convert("RGB")
    np.testing.assert_array_equal(decode(picture), np.asarray(shown))


def test_tiff_of_16_bits_keeps_its_upper_8():
    values = (np.arange(24 * 30) * 90).astype(np.uint16).reshape(24, 30)
    picture = image_decoding.prepare(encode(PIL.Image.fromarray(values), "TIFF"))
    for channel in range(3):
        np.testing.assert_array_equal(decode(picture)[..., channel], values >> 8)


def as_records(encoded):
    """Returns the pixels of the record of a file, or why it has none."""
    try:
        return decode(image_decoding.prepare(encoded))
    except image_decoding.UnusableError as error:
        return error.kind, str(error)


def as_predicted(encoded):
    """Returns the pixels that predict takes of a file, or why it takes none."""
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
    """Yields (format and mode, file) of all that Pillow can write."""
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
def test_predict_sees_the_pixels_of_the_record_or_gives_its_refusal(orientation):
    kinds = dict(encodings(orientation))
    assert len(kinds) > 45
    for kind, encoded in kinds.items():
        record, predicted = as_records(encoded), as_predicted(encoded)
        if kind.startswith("JPEG") and orientation > 1:  # Its record is lossy.
            assert record.shape == predicted.shape == (30, 24, 3)
            assert np.abs(record - predicted).mean() < 4, kind
        else:
            np.testing.assert_array_equal(record, predicted, err_msg=kind)
        if kind in ("PNG I;16", "TIFF I;16"):
            upright = np.rot90(DEEP >> 8, -1 if orientation > 1 else 0)
            np.testing.assert_array_equal(predicted[..., 1], upright)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
@pytest.mark.parametrize("read", [image_decoding.prepare, image_decoding.decode])
def test_pixels_whose_range_nobody_knows_are_refused(dtype, read):
    encoded = encode(PIL.Image.fromarray(np.ones([24, 30], dtype)), "TIFF")
    with pytest.raises(
        image_decoding.UnusableError, match="8 bits a channel"
    ) as caught:
        read(encoded)
    assert caught.value.kind == "images of 32-bit or float pixels"


def test_first_frame_of_an_animation_is_stored():
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
def test_picture_is_turned_as_viewers_show_it(image_format, orientation):
    options = {"exif": oriented(orientation)}
    if image_format == "TIFF":
        options = {"tiffinfo": {0x0112: orientation}}
    encoded = encode(ramp(), image_format, lossless=True, **options)
    picture = image_decoding.prepare(encoded)
    a = ramp()
    shown = [a, a[:, ::-1], a[::-1, ::-1], a[::-1], a.swapaxes(0, 1)]
    turned = [np.rot90(a, -1), np.rot90(a, 2).swapaxes(0, 1), np.rot90(a)]
    expected = (shown + turned)[orientation - 1]
    np.testing.assert_array_equal(decode(picture), expected)
    assert picture.is_turned == (orientation in SWAPPING)
    assert ("images turned upright (EXIF)" in picture.changes) == (orientation > 1)


def test_turned_jpeg_stays_a_jpeg_without_orientation():
    picture = image_decoding.prepare(
        encode(ramp(), "JPEG", quality=95, exif=oriented(6))
    )
    stored = PIL.Image.open(io.BytesIO(picture.encoded))
    assert (picture.image_format, stored.format, stored.size) == (
        ("jpeg", "JPEG", (24, 30))
    )
    assert stored.getexif().get(0x0112, 1) == 1
    assert np.abs(decode(picture) - np.rot90(ramp(), -1)).mean() < 4


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_orientation_that_does_not_exist_is_upright(orientation):
    encoded = encode(ramp(), "JPEG", exif=oriented(orientation))
    assert image_decoding.prepare(encoded).encoded == encoded


@pytest.mark.parametrize("orientation", SWAPPING)
def test_boxes_turn_with_the_pixels(orientation):
    stored = np.zeros([24, 30, 3], np.uint8)
    stored[3:10, 5:21] = 255
    picture = image_decoding.prepare(encode(stored, exif=oriented(orientation)))
    left, top, width, height = image_decoding.rotate_box((5, 3, 16, 7), picture)
    expected = np.zeros([30, 24, 3], int)
    expected[top : top + height, left : left + width] = 255
    np.testing.assert_array_equal(decode(picture), expected)


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
        (jpeg_header(65_500), 65_500),  # A JPEG cannot promise more.
        (bmp_header(HUGE), HUGE),
    ],
    ids=["png", "jpeg", "bmp"],
)
def test_header_of_a_giant_is_refused_before_memory_is_taken(encoded, side, read):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(image_decoding.UnusableError, match=str(side**2)) as caught:
        read(encoded)
    assert caught.value.kind == "images too large to be images"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    assert grown < 50_000  # KiB; the pixels would take 12 GB and more.


@pytest.mark.parametrize("read", [image_decoding.prepare, image_decoding.decode])
@pytest.mark.parametrize(
    ("encoded", "what"),
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
def test_broken_file_is_refused_with_a_reason(encoded, what, read):
    with pytest.raises(image_decoding.UnusableError, match=r"\w") as caught:
        read(encoded)
    assert caught.value.kind == what
    assert "\n" not in str(caught.value)
