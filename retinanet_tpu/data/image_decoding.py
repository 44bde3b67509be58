"""Decodes users' images, and converts them for record files.

Upright JPEG and PNG files are stored unchanged. Other formats are stored as PNG, and
images with an EXIF rotation are stored upright.
"""

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import tensorflow as tf

from retinanet_tpu import errors

_RotatePoint: TypeAlias = Callable[[float, float, int, int], tuple[float, float]]

UNREADABLE = "images unreadable"
EMPTY = "images of 0 bytes"
TOO_LARGE = "images too large to be images"
_NOT_8_BIT = "images of 32-bit or float pixels"
_ROTATED = "images turned upright (EXIF)"
# The formats that the TensorFlow decoders of the input pipeline read, by Pillow's name.
# MPO, from phones, is a JPEG followed by a second one that decoders ignore.
_STORED_FORMATS = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png"}
_JPEG_QUALITY = 95
_UPRIGHT = 1
# The EXIF orientations that swap the sides. Each maps a point (x, y) of the original
# image, of width w and height h, to the upright image.
_ROTATIONS: dict[int, _RotatePoint] = {
    5: lambda x, y, w, h: (y, x),
    6: lambda x, y, w, h: (h - y, x),
    7: lambda x, y, w, h: (h - y, w - x),
    8: lambda x, y, w, h: (y, w - x),
}


class UnusableError(errors.UserError):
    """Raised for an image that cannot be stored in a record.

    Attributes:
      kind: The kind of the issue, under which images are counted.
    """

    def __init__(self, kind: str, detail: str) -> None:
        """Initializes the error.

        Args:
          kind: The kind of the issue.
          detail: The message about this image.
        """
        super().__init__(detail)
        self.kind = kind


class StoredImage(NamedTuple):
    """An image in the form in which records store it.

    Attributes:
      encoded: The content of the image file.
      image_format: "jpeg" or "png".
      height: The height of the upright image, px.
      width: The width of the upright image, px.
      orientation: The EXIF orientation of the original file.
      changes: The kinds of the changes that were made to the image.
    """

    encoded: bytes
    image_format: str
    height: int
    width: int
    orientation: int
    changes: tuple[str, ...]

    @property
    def has_swapped_sides(self) -> bool:
        """Returns whether height and width were swapped to make the image upright."""
        return self.orientation in _ROTATIONS


def prepare(encoded: bytes) -> StoredImage:
    """Converts an image for records, and checks that the pipeline can decode it.

    A file whose header declares more pixels than Pillow's limit (179 million) is
    rejected before memory is allocated for them. The upper 8 bits of 16-bit pixels and
    the first frame of an animation are kept. Transparency is dropped.

    Args:
      encoded: The content of the file.

    Raises:
      UnusableError: The file is empty, broken, too large or of an unknown format.
    """
    with _opened(encoded) as image:
        stored = _stored(image, encoded)
        # The decoder of the input pipeline: an image that it rejects is rejected here.
        height, width, _ = _decoded(stored.encoded).shape
    return stored._replace(height=height, width=width)


def decode(encoded: bytes) -> np.ndarray:
    """Decodes an image by the rules of `prepare`.

    Args:
      encoded: The content of the file.

    Returns:
      uint8 [H, W, 3] RGB, upright. The values equal those of the record, except for a
      rotated JPEG, which the record compresses again.
    Raises:
      UnusableError: The file is one that `prepare` rejects.
    """
    with _opened(encoded) as image:
        if image.format in _STORED_FORMATS and _orientation(image) == _UPRIGHT:
            return _decoded(encoded)
        return np.array(_to_rgb8(_rotate_upright(image)))


def rotate_box(
    box_xywh: tuple[float, float, float, float], image: StoredImage
) -> tuple[float, float, float, float]:
    """Moves a box from the original file's frame to the upright image.

    Args:
      box_xywh: (left, top, width, height), px of the image before its EXIF rotation.
      image: The stored image, whose sides were swapped.

    Returns:
      (left, top, width, height), px of the upright image.
    """
    left, top, width, height = box_xywh
    rotate = _ROTATIONS[image.orientation]
    # The width of the original file is the height of the upright image.
    size = (image.height, image.width)
    x1, y1 = rotate(left, top, *size)
    x2, y2 = rotate(left + width, top + height, *size)
    return (min(x1, x2), min(y1, y2), height, width)


@contextlib.contextmanager
def _opened(encoded: bytes) -> Iterator[PIL.Image.Image]:
    """Opens a file. All errors, also of the body, are raised as UnusableError."""
    if not encoded:
        raise UnusableError(EMPTY, "0 bytes")
    try:
        with PIL.Image.open(io.BytesIO(encoded)) as image:
            if 0 in image.size:
                raise UnusableError(UNREADABLE, "an image of 0 pixels")
            yield image
    except PIL.Image.DecompressionBombError as error:
        size = str(error).partition(", could")[0]
        raise UnusableError(TOO_LARGE, size) from error
    except PIL.UnidentifiedImageError as error:
        raise UnusableError(UNREADABLE, "of no known format") from error
    except UnusableError:
        raise
    # Pillow's parsers raise errors of any type for a broken file.
    except Exception as error:
        # Removes the names of nodes and devices from TensorFlow's errors.
        detail = str(error).rpartition("}} ")[2].partition(" [Op:")[0]
        raise UnusableError(UNREADABLE, detail or type(error).__name__) from error


def _decoded(encoded: bytes) -> np.ndarray:
    """Returns uint8 [H, W, 3] from the decoder of the input pipeline."""
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return image.numpy()


def _orientation(image: PIL.Image.Image) -> int:
    """Returns the EXIF orientation, or upright if it is absent or invalid."""
    orientation = image.getexif().get(PIL.ExifTags.Base.Orientation)
    if orientation is None or orientation not in range(2, 9):
        return _UPRIGHT
    return orientation


def _rotate_upright(image: PIL.Image.Image) -> PIL.Image.Image:
    # Pillow rotates a TIFF while loading it, and then exif_transpose does nothing.
    image.load()
    return PIL.ImageOps.exif_transpose(image)


def _stored(image: PIL.Image.Image, encoded: bytes) -> StoredImage:
    """Returns the stored form of an image, its height and width not yet set."""
    orientation = _orientation(image)
    image_format = _STORED_FORMATS.get(image.format or "")
    if image_format and orientation == _UPRIGHT:
        return StoredImage(encoded, image_format, 0, 0, _UPRIGHT, ())
    upright = _to_rgb8(_rotate_upright(image))
    file = io.BytesIO()
    changes = []
    if orientation != _UPRIGHT:
        changes.append(_ROTATED)
    if image_format == "jpeg":
        upright.save(file, "JPEG", quality=_JPEG_QUALITY)
    else:
        if not image_format:
            changes.append(f"images stored as PNG, were {image.format}")
        upright.save(file, "PNG")
    return StoredImage(
        encoded=file.getvalue(),
        image_format=image_format or "png",
        height=0,
        width=0,
        orientation=orientation,
        changes=tuple(changes),
    )


def _to_rgb8(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255, which gives a white image.
        pixels = (np.asarray(image) >> 8).astype(np.uint8)
        return PIL.Image.fromarray(pixels).convert("RGB")
    if image.mode in ("I", "F"):
        raise UnusableError(
            _NOT_8_BIT,
            "its pixels are 32-bit integers or floats (Pillow mode "
            f"{image.mode}), whose range is unknown; store it with 8 bits a channel",
        )
    return image.convert("RGB")
