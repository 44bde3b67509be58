"""Images for record files: JPEG and PNG as they are, all else as PNG, upright."""

import contextlib
import io
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import tensorflow as tf

from retinanet_tpu import errors

UNREADABLE = "images unreadable"
EMPTY = "images of 0 bytes"
TOO_LARGE = "images too large to be images"
_NOT_8_BIT = "images of 32-bit or float pixels"
_TURNED = "images turned upright (EXIF)"
# What the TensorFlow decoders of the input pipeline read. MPO is what phones call a
# JPEG with a second one behind it, which decoders pass over.
_STORED_FORMATS = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png"}
_JPEG_QUALITY = 95
_UPRIGHT = 1
# EXIF orientations that swap the sides: where a point (x, y) goes of a stored image
# of width w and height h.
_TURNS = {
    5: lambda x, y, w, h: (y, x),
    6: lambda x, y, w, h: (h - y, x),
    7: lambda x, y, w, h: (h - y, w - x),
    8: lambda x, y, w, h: (y, w - x),
}


class UnusableError(errors.UserError):
    """An image that cannot become a record; `what` is the kind of trouble."""

    def __init__(self, what: str, detail: str):
        """Takes the kind of trouble, for counting, and what it was in this image."""
        super().__init__(detail)
        self.kind = what


class StoredImage(NamedTuple):
    """An image as records hold it."""

    encoded: bytes
    image_format: str  # "jpeg" or "png"
    height: int  # px, upright
    width: int
    orientation: int  # EXIF's, of the file that it was
    changes: tuple[str, ...]  # what was done to it

    @property
    def is_turned(self) -> bool:
        """Returns whether its sides were swapped to make it upright."""
        return self.orientation in _TURNS


def prepare(encoded: bytes) -> StoredImage:
    """Makes an image ready for records, and proves that the pipeline can read it.

    A file whose header promises more pixels than Pillow thinks sane (179 million) is
    refused before anything of that size is made. Of 16-bit pixels the upper 8 bits
    stay, of an animation the first frame; transparency is dropped.

    Args:
      encoded: the file.

    Raises:
      UnusableError: the file is empty, broken, too large or of no known format.
    """
    with _opened(encoded) as picture:
        stored = _stored(picture, encoded)
        # The decoder of the input pipeline: what passes here passes there.
        height, width, _ = _decoded(stored.encoded).shape
    return stored._replace(height=height, width=width)


def decode(encoded: bytes) -> np.ndarray:
    """Decodes an image by the rules of `load`.

    Args:
      encoded: The content of the file.

    Returns:
      uint8 [H, W, 3] RGB, upright. The values are those of the record that `load`
      makes, except for a turned JPEG, which the record compresses again.
    Raises:
      UnusableError: The file is one that `load` refuses.
    """
    with _opened(encoded) as picture:
        if picture.format in _STORED_FORMATS and _orientation(picture) == _UPRIGHT:
            return _decoded(encoded)
        return np.array(_as_rgb(_turned_upright(picture)))


def rotate_box(
    box_xywh: tuple[float, float, float, float], picture: StoredImage
) -> tuple[float, float, float, float]:
    """Moves a box from an image as stored to the image upright.

    Args:
      box_xywh: px of the image as it was stored.
      image: one that is turned.
    """
    left, top, width, height = box_xywh
    # The sides as stored are the upright ones swapped.
    turn = _TURNS[picture.orientation]
    size = (picture.height, picture.width)
    x1, y1 = turn(left, top, *size)
    x2, y2 = turn(left + width, top + height, *size)
    return (min(x1, x2), min(y1, y2), height, width)


@contextlib.contextmanager
def _opened(encoded: bytes) -> Iterator[PIL.Image.Image]:
    """Opens a file; makes an UnusableError of whatever fails there or in the body."""
    if not encoded:
        raise UnusableError(EMPTY, "0 bytes")
    try:
        with PIL.Image.open(io.BytesIO(encoded)) as picture:
            if 0 in picture.size:
                raise UnusableError(UNREADABLE, "an image of 0 pixels")
            yield picture
    except PIL.Image.DecompressionBombError as error:
        size = str(error).partition(", could")[0]
        raise UnusableError(TOO_LARGE, size) from error
    except PIL.UnidentifiedImageError as error:
        raise UnusableError(UNREADABLE, "of no known format") from error
    except UnusableError:
        raise
    # Pillow's parsers raise whatever they stumble over in a broken file.
    except Exception as error:
        # Of TensorFlow's errors without the names of nodes and devices.
        detail = str(error).rpartition("}} ")[2].partition(" [Op:")[0]
        raise UnusableError(UNREADABLE, detail or type(error).__name__) from error


def _decoded(encoded: bytes) -> np.ndarray:
    """Returns uint8 [H, W, 3] from the decoder of the input pipeline."""
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return image.numpy()


def _orientation(picture: PIL.Image.Image) -> int:
    """Returns EXIF's orientation, upright if there is none that exists."""
    orientation = picture.getexif().get(PIL.ExifTags.Base.Orientation)
    return orientation if orientation in range(2, 9) else _UPRIGHT


def _turned_upright(picture: PIL.Image.Image) -> PIL.Image.Image:
    # Pillow turns a TIFF itself as it loads it, and then there is nothing to transpose.
    picture.load()
    return PIL.ImageOps.exif_transpose(picture)


def _stored(picture: PIL.Image.Image, encoded: bytes) -> StoredImage:
    orientation = _orientation(picture)
    image_format = _STORED_FORMATS.get(picture.format)
    if image_format and orientation == _UPRIGHT:
        return StoredImage(encoded, image_format, 0, 0, _UPRIGHT, ())
    file, changes = io.BytesIO(), []
    upright = _as_rgb(_turned_upright(picture))
    if orientation != _UPRIGHT:
        changes.append(_TURNED)
    if image_format == "jpeg":
        upright.save(file, "JPEG", quality=_JPEG_QUALITY)
    else:
        if not image_format:
            changes.append(f"images stored as PNG, were {picture.format}")
        upright.save(file, "PNG")
    return StoredImage(
        encoded=file.getvalue(),
        image_format=image_format or "png",
        height=0,
        width=0,
        orientation=orientation,
        changes=tuple(changes),
    )


def _as_rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    if picture.mode.startswith("I;16"):
        # Pillow itself would clip at 255, which leaves a white image.
        pixels = (np.asarray(picture) >> 8).astype(np.uint8)
        return PIL.Image.fromarray(pixels).convert("RGB")
    if picture.mode in ("I", "F"):
        raise UnusableError(
            _NOT_8_BIT,
            "its pixels are 32-bit integers or floats (Pillow mode "
            f"{picture.mode}), whose range is unknown; store it with 8 bits a channel",
        )
    return picture.convert("RGB")
