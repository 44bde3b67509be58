"""Limits the cost of one request by assertions inside the graph of an export."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from retinanet_tpu import errors

_PNG = b"\x89PNG\r\n\x1a\n"
_BMP = b"BM"
_HEADER_BYTES = 26  # The header up to the sides of an image; every JPEG is longer.
_SCAN = b"\xff\xda"  # Begins a scan of a JPEG.
# The decoder processes all pixels for each scan, and a scan may have only 14 bytes.
# Encoders write about ten scans.
_MAX_SCANS = 64
# In random bytes, such as videos that phones append, the two bytes of _SCAN occur once
# in 64 KiB.
_BYTES_PER_SCAN = 1 << 14
# libpng expands each compressed text to up to 8 MB until the file is decoded.
_MAX_TEXTS = 16

# A condition, and the texts and tensors of the message if it is not met.
_Check = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of one request.

    Attributes:
      max_request_images: The most images of a request.
      max_image_pixels: The most pixels of an image.
    """

    max_request_images: int = 64
    max_image_pixels: int = 50_000_000

    def __post_init__(self) -> None:
        """Raises UserError if a limit is not an integer >= 1."""
        for name, value in dataclasses.asdict(self).items():
            if not isinstance(value, int) or value < 1:
                raise errors.UserError(
                    f"Recipe.{name} is {value!r}; it must be an integer >= 1."
                )

    def __str__(self) -> str:
        """Returns the limits and their gin names as one line."""
        return (
            f"{self.max_request_images} images "
            "(`Recipe.max_request_images`) of "
            f"{self.max_image_pixels:,} pixels (`Recipe.max_image_pixels`)"
        )

    def check_batch(self, batch: tf.Tensor) -> tf.Tensor:
        """Returns a batch; fails a request that has no images or too many.

        Args:
          batch: The images or files, any dtype, [B, ...].
        """
        num_images = tf.shape(batch)[0]
        too_many = (
            "The request has more images than this export accepts "
            f"(Recipe.max_request_images = {self.max_request_images}); send "
            "several requests. Images:"
        )
        return _checked(
            batch,
            # The convolutions of some builds crash on an empty batch.
            (num_images > 0, "The request has 0 images; send at least one."),
            (num_images <= self.max_request_images, too_many, num_images),
        )

    def check_pixels(self, images: tf.Tensor) -> tf.Tensor:
        """Returns decoded images; fails a request with images that are too large.

        Args:
          images: The images, any dtype, [..., H, W, 3].
        """
        return _checked(images, *self._size_checks(tf.shape(images)[-3:-1]))

    def check_file(self, encoded: tf.Tensor) -> tf.Tensor:
        """Returns a file; fails a request with a file that is too costly to decode.

        Only the header is decoded. A GIF fails, because its header does not contain the
        sizes of its frames, and the decoder expands all frames.

        Args:
          encoded: string [], a JPEG, PNG or BMP file.
        """
        is_jpeg = tf.io.is_jpeg(encoded)
        is_png = tf.strings.substr(encoded, 0, len(_PNG)) == _PNG
        is_bmp = tf.strings.substr(encoded, 0, len(_BMP)) == _BMP
        unknown = "Unknown image file format; send JPEG, PNG or BMP files."
        encoded = _checked(
            encoded,
            (is_jpeg | is_png | is_bmp, unknown),
            (tf.strings.length(encoded) >= _HEADER_BYTES, "An image file is cut off."),
        )

        def jpeg_size() -> tf.Tensor:
            return tf.image.extract_jpeg_shape(_with_few_scans(encoded))[:2]

        def other_size() -> tf.Tensor:
            return tf.cond(
                is_png, lambda: _png_size(encoded), lambda: _bmp_size(encoded)
            )

        size = tf.cond(is_jpeg, jpeg_size, other_size)
        return _checked(encoded, *self._size_checks(size))

    def _size_checks(self, size: tf.Tensor) -> Iterator[_Check]:
        sides = tf.cast(size, tf.int64)
        too_large = (
            "An image has more pixels than this export accepts "
            f"(Recipe.max_image_pixels = {self.max_image_pixels}); send a "
            "smaller one. Height and width:"
        )
        yield tf.reduce_all(sides > 0), "An image has no pixels. Its sides:", sides
        # No overflow: sides are below 2^31.
        is_allowed = tf.reduce_prod(sides) <= self.max_image_pixels
        yield is_allowed, too_large, sides


def _checked(tensor: tf.Tensor, *checks: _Check) -> tf.Tensor:
    """Returns the tensor, computed only if all conditions are met."""
    asserts = [tf.debugging.Assert(is_met, message) for is_met, *message in checks]
    with tf.control_dependencies(asserts):
        return tf.identity(tensor)


def _with_few_scans(encoded: tf.Tensor) -> tf.Tensor:
    limit = _MAX_SCANS + tf.strings.length(encoded) // _BYTES_PER_SCAN
    message = f"A JPEG file has more than {_MAX_SCANS} scans; encode it again. Scans:"
    num_scans = _count(encoded, _SCAN)
    return _checked(encoded, (num_scans <= limit, message, num_scans))


def _png_size(encoded: tf.Tensor) -> tf.Tensor:
    """Returns int32 [2]: height and width."""
    num_texts = _count(encoded, b"zTXt") + _count(encoded, b"iTXt")
    message = f"A PNG file has more than {_MAX_TEXTS} texts; encode it again. Texts:"
    has_header = tf.strings.substr(encoded, 12, 4) == b"IHDR"
    encoded = _checked(
        encoded,
        (has_header, "A PNG file does not begin with an IHDR chunk."),
        (num_texts <= _MAX_TEXTS, message, num_texts),
    )
    size = tf.strings.substr(encoded, 16, 8)
    return tf.io.decode_raw(size, tf.int32, little_endian=False)[::-1]


def _bmp_size(encoded: tf.Tensor) -> tf.Tensor:
    """Returns int32 [2]: height and width."""
    size = tf.io.decode_raw(tf.strings.substr(encoded, 18, 8), tf.int32)
    return tf.abs(size[::-1])  # Rows from top to bottom have a negative height.


def _count(encoded: tf.Tensor, marker: bytes) -> tf.Tensor:
    return tf.size(tf.strings.split(encoded, marker)) - 1
