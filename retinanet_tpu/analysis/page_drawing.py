"""Draws images with their boxes, for the pages of analyses."""

import base64
import io
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image

from retinanet_tpu.analysis import page_html, results

# Returns uint8 [H, W, 3], RGB, for the id of an image; None if it cannot be read.
ImageFn = Callable[[int], np.ndarray | None]
# The top, left, bottom and right edge of a part of an image, px.
Frame = tuple[int, int, int, int]

_QUALITY = 80
# No box has the kind "missed", which counts objects that no detection explains.
_DETECTION_KINDS = ("correct", *(k for k in results.ERROR_KINDS if k != "missed"))
_KINDS = (*_DETECTION_KINDS, results.NOT_DETECTED)


def legend() -> str:
    """Returns the colors and lines of the kinds of boxes."""
    marks = [
        ("object", "detected object", "found"),
        ("object", "object that is not detected", results.NOT_DETECTED),
    ]
    marks += [("object", "crowd", "crowd")]
    marks += [("", kind, kind) for kind in _DETECTION_KINDS]
    return (
        "<p class='legend wide'>"
        + "".join(
            f"<span><i class='swatch {kind}' style='--color:"
            f"{page_html.KIND_COLORS[color]}'></i>{name}</span>"
            for kind, name, color in marks
        )
        + "</p>"
    )


def filters(
    boxes: Sequence[results.ShownBox],
    *,
    num_figures: int,
    min_score: float,
    groups: Sequence[str] = (),
) -> str:
    """Returns the controls that select figures and boxes, see page.js.

    Args:
      boxes: All boxes of the figures.
      num_figures: The number of figures.
      min_score: The lowest score of a drawn detection.
      groups: The names of groups of figures, from which one can be selected.
    """
    buttons = "".join(
        f"<button type='button' data-choose='{kind}' "
        f"aria-pressed='{str(not kind).lower()}'>{kind or 'all'}</button>"
        for kind in ("", *_KINDS)
        if not kind or any(box.kind == kind for box in boxes)
    )
    low = max(min(min_score, 1.0), 0.0)
    names = sorted({box.name for box in boxes})
    group = _choice("Change", "shot-group", groups) if groups else ""
    return (
        f"<div class='filters'>{group}<span>Kind: {buttons}</span>"
        f"{_choice('Class', 'shot-class', names)}"
        "<label>Score at least: <input type='range' id='shot-score' "
        f"min='{low:.2f}' max='1' step='0.01' value='{low:.2f}'> "
        f"<output id='shot-score-text'>{low:.2f}</output></label>"
        f"<span id='shot-count'>{num_figures} of {num_figures} images</span></div>"
    )


def _choice(label: str, key: str, names: Sequence[str]) -> str:
    options = "".join(
        f"<option value='{page_html.escape(name)}'>{page_html.escape(name)}</option>"
        for name in names
    )
    return (
        f"<label>{label}: <select id='{key}'><option value=''>all</option>{options}"
        "</select></label>"
    )


def with_size(
    image: results.ImageResult, pixels: np.ndarray | None
) -> results.ImageResult:
    """Returns an image whose size is known: annotated, or of its pixels or boxes.

    Args:
      image: The image, of which the size may be 0.
      pixels: uint8 [H, W, 3], or None.
    """
    if image.height > 0 and image.width > 0:
        return image
    if pixels is not None:
        return image._replace(height=pixels.shape[0], width=pixels.shape[1])
    ends = [box.box_yxyx[2:] for box in (*image.objects, *image.detections)]
    height, width = np.ceil(np.max([(1, 1), *ends], axis=0)).astype(int).tolist()
    return image._replace(height=height, width=width)


def background(
    image: results.ImageResult,
    frame_yxyx: Frame,
    pixels: np.ndarray | None,
    width: int,
    *,
    key: str = "",
) -> str:
    """Returns the pixels of a frame as an SVG element, or gray without them.

    Args:
      image: The image, with its size.
      frame_yxyx: The part of the image.
      pixels: uint8 [H, W, 3], or None. They may be read at another size.
      width: The highest width of the embedded pixels, px.
      key: An id, by which other drawings use the element; "" for none.
    """
    top, left, bottom, right = frame_yxyx
    name = f"id='{key}' " * bool(key)
    place = f"{name}x='{left}' y='{top}' width='{right - left}' height='{bottom - top}'"
    if pixels is None:
        return f"<rect {place} fill='#8886'/>"
    part = _part(pixels, frame_yxyx, image)
    return f"<image {place} preserveAspectRatio='none' href='{_jpeg(part, width)}'/>"


def drawing(
    image: results.ImageResult,
    frame_yxyx: Frame,
    boxes: Sequence[results.ShownBox],
    behind: str,
) -> str:
    """Returns an SVG in pixels of the original image, cut to a frame.

    Args:
      image: The image, with its size.
      frame_yxyx: The part of the image.
      boxes: The boxes.
      behind: The SVG element behind the boxes, see `background`.
    """
    top, left, bottom, right = frame_yxyx
    return (
        f"<svg viewBox='{left} {top} {right - left} {bottom - top}' role='img' "
        f"aria-label='{image_name(image)}'>{behind}"
        f"{''.join(_drawn(boxes, frame_yxyx))}</svg>"
    )


def error_counts(boxes: Sequence[results.ShownBox]) -> str:
    """Returns the number of errors of each kind, such as "2 class, 1 not detected".

    Args:
      boxes: The boxes of an image.
    """
    kinds = [box.kind for box in boxes]
    counts = [(kinds.count(kind), kind) for kind in _KINDS[1:]]
    return ", ".join(f"{n} {kind}" for n, kind in counts if n) or "no errors"


def image_name(image: results.ImageResult) -> str:
    """Returns the name of an image as HTML.

    Args:
      image: The image.
    """
    return page_html.escape(image.file_name or f"image {image.image_id}")


def iou(box_yxyx: Sequence[float], other_yxyx: Sequence[float]) -> float:
    """Returns the IoU of two boxes.

    Args:
      box_yxyx: float [4].
      other_yxyx: float [4].
    """
    top, left = max(box_yxyx[0], other_yxyx[0]), max(box_yxyx[1], other_yxyx[1])
    bottom, right = min(box_yxyx[2], other_yxyx[2]), min(box_yxyx[3], other_yxyx[3])
    shared = max(bottom - top, 0.0) * max(right - left, 0.0)
    return shared / max(_area(box_yxyx) + _area(other_yxyx) - shared, 1e-9)


def _drawn(boxes: Sequence[results.ShownBox], frame_yxyx: Frame) -> Iterator[str]:
    """Yields the boxes inside of a frame, small ones last, which are in front."""
    frame_top, frame_left, frame_bottom, frame_right = frame_yxyx
    for box in sorted(boxes, key=lambda box: -_area(box.box_yxyx)):
        top, left, bottom, right = box.box_yxyx
        if not (
            left < frame_right
            and right > frame_left
            and top < frame_bottom
            and bottom > frame_top
        ):
            continue
        place = (
            f"x='{left:.1f}' y='{top:.1f}' width='{max(right - left, 0):.1f}' "
            f"height='{max(bottom - top, 0):.1f}'"
        )
        score = "" if box.score is None else f" data-score='{box.score:.4f}'"
        name = page_html.escape(box.name)
        yield (
            f"<g class='box{' object' * (box.score is None)}' data-kind='{box.kind}' "
            f"data-name='{name}'{score} style='--color:"
            f"{page_html.KIND_COLORS.get(box.kind, '#9198a1')}'><title>{_title(box)}"
            f"</title><rect class='halo' {place}/><rect class='edge' {place}/></g>"
        )


def _title(box: results.ShownBox) -> str:
    name = page_html.escape(box.name)
    iou = f", IoU {box.iou:.2f}" if box.iou > 0 else ""
    if box.score is None:
        return f"annotated {name}: {box.kind}{iou}"
    return f"detected {name} {box.score:.2f}: {box.kind}{iou}"


def _area(box_yxyx: Sequence[float]) -> float:
    top, left, bottom, right = box_yxyx
    return (bottom - top) * (right - left)


def _part(
    pixels: np.ndarray,
    frame_yxyx: Frame,
    image: results.ImageResult,
) -> np.ndarray:
    """Returns a frame's pixels; the image may be read at another size."""
    height, width = pixels.shape[:2]
    scale = np.array([height / max(image.height, 1), width / max(image.width, 1)])
    top, left, bottom, right = np.round(np.array(frame_yxyx) * [*scale, *scale])
    top, left = min(int(top), height - 1), min(int(left), width - 1)
    return pixels[top : max(int(bottom), top + 1), left : max(int(right), left + 1)]


def _jpeg(pixels: np.ndarray, width: int) -> str:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    # A tall image may be twice as high as wide; a panorama is limited by its width.
    image.thumbnail((width, 2 * width))
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=_QUALITY)
    data = base64.b64encode(encoded.getvalue()).decode()
    return f"data:image/jpeg;base64,{data}"
