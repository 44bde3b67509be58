"""Draws boxes on images, to be read by people: at 100 pixels and at 4000."""

import colorsys
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFont

from retinanet_tpu import errors

# Steps of the golden ratio keep any run of consecutive ids far apart on the wheel.
_GOLDEN = (math.sqrt(5) - 1) / 2
# Cycling through three tones as well tells apart hues that meet again after 8 steps.
_TONES = ((0.85, 1.0), (0.62, 1.0), (0.95, 0.78))
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
_PLATE_ALPHA = 215  # Of 255: what is under a label stays guessable.
# Labels of all boxes together; an image of 100 px would be nothing but letters.
_LABELED_SHARE = 1 / 3
_BACKGROUND = (24, 26, 30)


class _Label(NamedTuple):
    texts: tuple[str, ...]  # the longest first
    corners: tuple[int, int, int, int]  # of the box: first and last x, y pixel
    color: tuple[int, int, int]


def class_color(class_id: int) -> tuple[int, int, int]:
    """Returns the RGB color of a class, the same in every image and every run."""
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
    """Draws a labeled box around each object found.

    Lines and letters grow with the image, and better detections lie on top. A label
    goes where its box leaves room; where there is none, or a third of the image is
    written on, it shrinks to the score, then gives way, so that what is written can be
    read, and the rest be seen.

    Args:
      image: uint8 [H, W, 3], RGB; not changed.
      boxes_yxyx: float [D, 4], pixels of `image`.
      scores: float [D] in [0, 1].
      classes: int [D], any ids; an id decides the color.
      names: class id to name; an id without a name is shown as a number.
      ground_truth_yxyx: float [N, 4], annotated boxes, drawn dashed in black and white.
      min_score: detections below it are not drawn.
    Returns:
      uint8 [H, W, 3].
    Raises:
      UserError: image is not uint8 [H, W, 3], or the arrays differ in length.
    """
    image, scores = np.asarray(image), np.asarray(scores)
    boxes, classes = np.reshape(boxes_yxyx, [-1, 4]), np.asarray(classes)
    _check(image, boxes, scores, classes)
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas, "RGBA")
    width = max(1, round(math.sqrt(canvas.width * canvas.height) * 0.0033))
    if ground_truth_yxyx is not None:
        for box in np.reshape(ground_truth_yxyx, [-1, 4]):
            _draw_dashed(draw, _pixels(box, canvas.size), max(1, width // 2))
    is_shown = (scores >= min_score) & np.isfinite(boxes).all(axis=-1)
    labels = []
    for index in np.argsort(-scores, kind="stable"):
        if is_shown[index]:
            class_id, percent = int(classes[index]), f"{scores[index]:.0%}"
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
    """Lays images out in rows, all with the same height.

    Args:
      images: uint8 [H, W, 3] each, of any size; at least one.
      columns: how many share a row.
      height: of every image in the layout, px.
      gap: between images and around them, px.
    Returns:
      uint8 [rows * (height + gap) + gap, widest row, 3].
    Raises:
      UserError: there are no images, or fewer than one column.
    """
    if not images or columns < 1:
        raise errors.UserError(
            f"{len(images)} images in {columns} columns; both must be >= 1."
        )
    pictures = []
    for image in images:
        picture = Image.fromarray(np.asarray(image))
        width = max(1, round(picture.width * height / picture.height))
        pictures.append(picture.resize((width, height), Image.Resampling.LANCZOS))
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    full_width = max(sum(p.width + gap for p in row) for row in rows) + gap
    full_height = len(rows) * (height + gap) + gap
    canvas = Image.new("RGB", (full_width, full_height), _BACKGROUND)
    for row_index, row in enumerate(rows):
        left = gap
        for picture in row:
            canvas.paste(picture, (left, gap + row_index * (height + gap)))
            left += picture.width + gap
    return np.array(canvas)


def save(image: np.ndarray, path: str) -> None:
    """Writes uint8 [H, W, 3] as a PNG or, by any other extension, as a JPEG."""
    encoded = io.BytesIO()
    if path.endswith(".png"):
        Image.fromarray(image).save(encoded, "PNG")
    else:
        # Coarser JPEG smears the colors of thin lines.
        Image.fromarray(image).save(encoded, "JPEG", quality=92, subsampling=0)
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(encoded.getvalue())


def _check(image, boxes, scores, classes) -> None:
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


def _pixels(box_yxyx, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns the first and last pixel (x0, y0, x1, y1) of a box, in the image."""
    wide, high = size
    ymin, xmin, ymax, xmax = np.clip(box_yxyx, 0, [high, wide, high, wide])
    x0, y0 = min(round(xmin), wide - 1), min(round(ymin), high - 1)
    return x0, y0, max(x0, round(xmax) - 1), max(y0, round(ymax) - 1)


def _draw_box(draw, corners, color, width: int) -> None:
    x0, y0, x1, y1 = corners
    # A small box must not be all frame.
    width = max(1, min(width, (x1 - x0) // 6, (y1 - y0) // 6))
    rim = max(1, width // 3)
    outer = (x0 - rim, y0 - rim, x1 + rim, y1 + rim)
    draw.rectangle(outer, outline=(*_BLACK, 110), width=rim)
    draw.rectangle(corners, outline=color, width=width)


def _draw_dashed(draw, corners, width: int) -> None:
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


def _draw_labels(draw, labels: list[_Label], size: tuple[int, int]) -> None:
    """Draws the labels that have room, the most important first."""
    # Below 9 px the built-in font loses its shapes.
    font_size = max(9, round(math.sqrt(size[0] * size[1]) * 0.022))
    font = ImageFont.load_default(size=font_size)
    margin, high = max(1, font_size // 5), sum(font.getmetrics())
    placed, room = [], size[0] * size[1] * _LABELED_SHARE
    for label in labels:
        for text in label.texts:
            wide = math.ceil(font.getlength(text)) + 2 * margin + 1
            plate = _free_plate(label.corners, (wide, high), size, placed)
            if plate and wide * high <= room:
                placed.append(plate)
                room -= wide * high
                fill = (*label.color, _PLATE_ALPHA)
                draw.rounded_rectangle(plate, radius=margin, fill=fill)
                position = (plate[0] + margin, plate[1])
                draw.text(position, text, fill=_text_color(label.color), font=font)
                break


def _free_plate(corners, plate_size, size, placed):
    """Returns a place (x0, y0, x1, y1) at the box that covers no label, or None."""
    x0, y0, x1, y1 = corners
    wide, high = plate_size
    # Above the box, flush left, comes first; then inside, at its foot and below. Inside
    # a box of less than three lines it would hide what it names.
    above, inside, below = (y0 - high,), (y0, y1 + 1 - high), (y1 + 1,)
    is_roomy = y1 + 1 - y0 >= 3 * high
    rows = above + (inside + below if is_roomy else below + inside)
    for x, y in itertools.product((x0, x1 + 1 - wide), rows):
        left = max(0, min(x, size[0] - wide))
        top = max(0, min(y, size[1] - high))
        plate = (left, top, left + wide - 1, top + high - 1)
        if not any(_overlaps(plate, other) for other in placed):
            return plate
    return None


def _overlaps(a, b) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _text_color(color) -> tuple[int, int, int]:
    red, green, blue = color
    # Rec. 601 luma; black reads better from a bit under the middle upwards.
    return _BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else _WHITE
