"""Draws detections on images of any size, from 100 to 4000 pixels."""

import colorsys
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFont

from retinanet_tpu import errors

# Steps of the golden ratio keep consecutive ids far apart on the color wheel.
_GOLDEN = (math.sqrt(5) - 1) / 2
# Saturation and value. After 8 steps hues are similar again; three tones distinguish
# them.
_TONES = ((0.85, 1.0), (0.62, 1.0), (0.95, 0.78))
_WHITE = (255, 255, 255)
_BLACK = (0, 0, 0)
_PLATE_ALPHA = 215  # Of 255, so that the image remains visible below a label.
# The share of the image that labels may cover. Without it they fill a small image.
_LABELED_SHARE = 1 / 3
_BACKGROUND = (24, 26, 30)

_Color = tuple[int, int, int]  # RGB in 0..255
_Corners = tuple[int, int, int, int]  # x0, y0, x1, y1: the first and last pixel


class _Label(NamedTuple):
    texts: tuple[str, ...]  # the longest first
    corners: _Corners  # of the box
    color: _Color


def class_color(class_id: int) -> tuple[int, int, int]:
    """Returns the RGB color of a class, the same in every image and every run.

    Args:
      class_id: The id, any integer.
    """
    hue = (class_id * _GOLDEN + 0.02) % 1.0
    saturation, value = _TONES[class_id % len(_TONES)]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_detections(
    image: np.ndarray,
    boxes_yxyx: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    *,
    names: Mapping[int, str] | None = None,
    ground_truth_yxyx: np.ndarray | None = None,
    min_score: float = 0.3,
) -> np.ndarray:
    """Draws a labeled box for each detection.

    Lines and letters grow with the image. Detections with higher scores are on top. A
    label is placed beside or inside its box. Without room for it, or if labels cover a
    third of the image, the label is shortened to the score or left out. Labels
    therefore stay readable and most of the image stays visible.

    Args:
      image: uint8 [H, W, 3], RGB; not changed.
      boxes_yxyx: float [D, 4], pixels of `image`.
      scores: float [D] in [0, 1].
      classes: int [D], any ids; the id determines the color.
      names: The class names by id; an id without a name is written as a number.
      ground_truth_yxyx: float [N, 4], annotated boxes, drawn dashed in black and white.
      min_score: The lowest score that is drawn.
    Returns:
      uint8 [H, W, 3].
    Raises:
      UserError: image is not uint8 [H, W, 3], or the arrays differ in length.
    """
    image = np.asarray(image)
    boxes = np.reshape(boxes_yxyx, [-1, 4])
    scores = np.asarray(scores)
    classes = np.asarray(classes)
    _check_arrays(image, boxes, scores, classes)
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas, "RGBA")
    width = max(1, round(math.sqrt(canvas.width * canvas.height) * 0.0033))
    if ground_truth_yxyx is not None:
        for box in np.reshape(ground_truth_yxyx, [-1, 4]):
            _draw_dashed(draw, _pixels(box, canvas.size), max(1, width // 2))
    is_drawn = (scores >= min_score) & np.isfinite(boxes).all(axis=-1)
    labels = []
    for index in np.argsort(-scores, kind="stable"):
        if is_drawn[index]:
            class_id = int(classes[index])
            percent = f"{scores[index]:.0%}"
            name = (names or {}).get(class_id, str(class_id))
            corners = _pixels(boxes[index], canvas.size)
            texts = (f"{name} {percent}", percent)
            labels.append(_Label(texts, corners, class_color(class_id)))
    for label in reversed(labels):
        _draw_box(draw, label.corners, label.color, width)
    _draw_labels(draw, labels, canvas.size)
    return np.array(canvas)


def grid(
    images: Sequence[np.ndarray], columns: int, *, height: int = 480, gap: int = 8
) -> np.ndarray:
    """Returns one image with all images in rows, scaled to the same height.

    Args:
      images: The images, uint8 [H, W, 3] each, of any size; at least one.
      columns: The number of images per row.
      height: The height of every image in the grid, px.
      gap: The gap between images and around them, px.
    Returns:
      uint8 [rows * (height + gap) + gap, widest row, 3].
    Raises:
      UserError: There are no images, or columns is less than 1.
    """
    if not images or columns < 1:
        raise errors.UserError(
            f"{len(images)} images in {columns} columns; both must be >= 1."
        )
    scaled_images = []
    for image in images:
        scaled = Image.fromarray(np.asarray(image))
        width = max(1, round(scaled.width * height / scaled.height))
        scaled_images.append(scaled.resize((width, height), Image.Resampling.LANCZOS))
    rows = [
        scaled_images[i : i + columns] for i in range(0, len(scaled_images), columns)
    ]
    full_width = max(sum(x.width + gap for x in row) for row in rows) + gap
    full_height = len(rows) * (height + gap) + gap
    canvas = Image.new("RGB", (full_width, full_height), _BACKGROUND)
    for row_index, row in enumerate(rows):
        left = gap
        for scaled in row:
            canvas.paste(scaled, (left, gap + row_index * (height + gap)))
            left += scaled.width + gap
    return np.array(canvas)


def save(image: np.ndarray, path: str) -> None:
    """Writes an image file, a PNG if the path ends in .png, else a JPEG.

    Args:
      image: uint8 [H, W, 3], RGB.
      path: The path of the file, local or remote.
    """
    encoded = io.BytesIO()
    if path.endswith(".png"):
        Image.fromarray(image).save(encoded, "PNG")
    else:
        # With chroma subsampling the colors of thin lines blur.
        Image.fromarray(image).save(encoded, "JPEG", quality=92, subsampling=0)
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(encoded.getvalue())


def _check_arrays(
    image: np.ndarray, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray
) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise errors.UserError(
            f"image is {image.dtype} {list(image.shape)}, expected uint8 [H, W, 3]; "
            "convert it to RGB in 0..255."
        )
    if not len(boxes) == len(scores) == len(classes):
        raise errors.UserError(
            f"{len(boxes)} boxes, {len(scores)} scores and {len(classes)} classes; "
            "give one of each per detection."
        )


def _pixels(box_yxyx: np.ndarray, size: tuple[int, int]) -> _Corners:
    """Returns the first and last pixel of a box within an image of (width, height)."""
    width, height = size
    ymin, xmin, ymax, xmax = np.clip(box_yxyx, 0, [height, width, height, width])
    x0 = min(round(xmin), width - 1)
    y0 = min(round(ymin), height - 1)
    return x0, y0, max(x0, round(xmax) - 1), max(y0, round(ymax) - 1)


def _draw_box(
    draw: ImageDraw.ImageDraw, corners: _Corners, color: _Color, width: int
) -> None:
    x0, y0, x1, y1 = corners
    # The frame must not fill a small box.
    width = max(1, min(width, (x1 - x0) // 6, (y1 - y0) // 6))
    rim = max(1, width // 3)
    outer = (x0 - rim, y0 - rim, x1 + rim, y1 + rim)
    draw.rectangle(outer, outline=(*_BLACK, 110), width=rim)
    draw.rectangle(corners, outline=color, width=width)


def _draw_dashed(draw: ImageDraw.ImageDraw, corners: _Corners, width: int) -> None:
    x0, y0, x1, y1 = corners
    dash = 4 * width
    draw.rectangle(corners, outline=_BLACK, width=width)
    for x in range(x0, x1 + 1, 2 * dash):
        end = min(x + dash - 1, x1)
        draw.rectangle((x, y0, end, min(y0 + width - 1, y1)), fill=_WHITE)
        draw.rectangle((x, max(y1 - width + 1, y0), end, y1), fill=_WHITE)
    for y in range(y0, y1 + 1, 2 * dash):
        end = min(y + dash - 1, y1)
        draw.rectangle((x0, y, min(x0 + width - 1, x1), end), fill=_WHITE)
        draw.rectangle((max(x1 - width + 1, x0), y, x1, end), fill=_WHITE)


def _draw_labels(
    draw: ImageDraw.ImageDraw, labels: list[_Label], size: tuple[int, int]
) -> None:
    """Draws the labels that have room, in their order."""
    # Below 9 px the letters of the built-in font are unreadable.
    font_size = max(9, round(math.sqrt(size[0] * size[1]) * 0.022))
    # With a size, Pillow returns a FreeTypeFont.
    font = cast(ImageFont.FreeTypeFont, ImageFont.load_default(size=font_size))
    margin = max(1, font_size // 5)
    height = sum(font.getmetrics())
    plates: list[_Corners] = []
    room = size[0] * size[1] * _LABELED_SHARE
    for label in labels:
        for text in label.texts:
            width = math.ceil(font.getlength(text)) + 2 * margin + 1
            plate = _free_plate(label.corners, (width, height), size, plates)
            if plate and width * height <= room:
                plates.append(plate)
                room -= width * height
                fill = (*label.color, _PLATE_ALPHA)
                draw.rounded_rectangle(plate, radius=margin, fill=fill)
                position = (plate[0] + margin, plate[1])
                draw.text(position, text, fill=_text_color(label.color), font=font)
                break


def _free_plate(
    corners: _Corners,
    plate_size: tuple[int, int],
    size: tuple[int, int],
    plates: list[_Corners],
) -> _Corners | None:
    """Returns a free place for a plate beside or inside a box, or None."""
    x0, y0, x1, y1 = corners
    width, height = plate_size
    # The first choice is above the box, aligned with its left edge; then inside at the
    # top, inside at the bottom, and below. In a box lower than three lines a plate
    # inside would cover the object, so below is tried before inside.
    above = (y0 - height,)
    inside = (y0, y1 + 1 - height)
    below = (y1 + 1,)
    is_roomy = y1 + 1 - y0 >= 3 * height
    rows = above + (inside + below if is_roomy else below + inside)
    for x, y in itertools.product((x0, x1 + 1 - width), rows):
        left = max(0, min(x, size[0] - width))
        top = max(0, min(y, size[1] - height))
        plate = (left, top, left + width - 1, top + height - 1)
        if not any(_overlaps(plate, other) for other in plates):
            return plate
    return None


def _overlaps(a: _Corners, b: _Corners) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _text_color(color: _Color) -> _Color:
    red, green, blue = color
    # The Rec. 601 luma. Black is easier to read from slightly below the middle upwards.
    return _BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else _WHITE
