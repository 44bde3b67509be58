"""Writes the sections of the page of an analysis that contain images."""

import base64
import heapq
import io
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from retinanet_tpu.analysis import page_html, results

ImageFn = Callable[[int], np.ndarray | None]

_WIDTH = 480  # px; wide enough for a column of the page, and about 40 kB.
_CROP_WIDTH = 240  # px
_QUALITY = 80
_MARGIN = 0.6  # The part of the box's longer side that a crop shows around it.
_LEAST_CROP = 64  # px; a smaller part of an image is not recognizable.
_KINDS = ("correct", *results.ERROR_KINDS)


class _Crop(NamedTuple):
    """A part of an image with its boxes.

    Attributes:
      image: The image.
      around: The boxes that the crop must contain.
      boxes: The boxes to draw.
      caption: HTML.
    """

    image: results.ImageResult
    around: Sequence[results.ShownBox]
    boxes: Sequence[results.ShownBox]
    caption: str


def worst(analysis: results.Analysis, image_fn: ImageFn | None, count: int) -> str:
    """Returns the images of the lowest F1, with filters.

    Args:
      analysis: The analysis.
      image_fn: Returns uint8 [H, W, 3] for the id of an image, or None.
      count: The highest number of images.
    """
    shown = [image for image in analysis.images if image.f1 < 1][:count]
    title, text = "Images", "The images of the lowest F1 first. "
    if not shown:
        has_images = bool(analysis.images)
        empty = "No image has errors." if has_images else "There are no images."
        return page_html.section("images", title, "", page_html.nothing(empty))
    with_errors = sum(image.f1 < 1 for image in analysis.images)
    text += (
        f"{len(shown):,} of {with_errors:,} images with errors are shown. Solid boxes "
        "are detections, dashed ones annotated objects. Point at a box to see its "
        "class, score and IoU."
    )
    figures = "".join(_shot(image, image_fn) for image in shown)
    return page_html.section(
        "images",
        title,
        text,
        f"{_legend()}{_filters(shown, analysis.confusion.threshold)}"
        f"<div class='shots' id='shots'>{figures}</div>",
    )


def confident_errors(
    analysis: results.Analysis, image_fn: ImageFn | None, count: int
) -> str:
    """Returns crops around the wrong detections of the highest scores.

    Args:
      analysis: The analysis.
      image_fn: Returns uint8 [H, W, 3] for the id of an image, or None.
      count: The highest number of crops.
    """
    wrong = (
        (image, box)
        for image in analysis.images
        for box in image.detections
        if box.kind != "correct"
    )
    found = heapq.nlargest(count, wrong, key=lambda pair: pair[1].score or 0.0)
    crops = [
        _Crop(image, [box], [*image.objects, box], _caption(box, image))
        for image, box in found
    ]
    content = _crops(crops, image_fn) or page_html.nothing("There are no errors.")
    return page_html.section(
        "confident",
        "Most confident errors",
        "Wrong detections of the highest scores, with the annotated objects near "
        "them, dashed.",
        content,
    )


def label_issues(
    analysis: results.Analysis, image_fn: ImageFn | None, count: int
) -> str:
    """Returns crops around the annotations that may be wrong.

    Args:
      analysis: The analysis.
      image_fn: Returns uint8 [H, W, 3] for the id of an image, or None.
      count: The highest number of crops.
    """
    images = {image.image_id: image for image in analysis.images}
    crops = []
    for issue in analysis.label_issues[:count]:
        image = images.get(issue.image_id)
        if image is None:
            continue
        around = [issue.detection]
        if issue.annotated is not None:
            around.append(issue.annotated)
        caption = (
            f"<b>{page_html.escape(issue.reason)}</b>: "
            f"{_caption(issue.detection, image)}"
        )
        crops.append(_Crop(image, around, [*image.objects, issue.detection], caption))
    content = _crops(crops, image_fn) or page_html.nothing("There are none.")
    shown = f"{len(crops):,} of {len(analysis.label_issues):,} are shown. "
    return page_html.section(
        "labels",
        "Suspected label errors",
        f"Annotations that a confident detection contradicts. {shown * bool(crops)}"
        "Check them before you change the training.",
        content,
    )


def _legend() -> str:
    marks = [
        ("object", "detected object", "found"),
        ("object", "missed object", "missed"),
    ]
    marks += [("object", "crowd", "crowd")]
    marks += [("", f"{kind}", kind) for kind in _KINDS if kind != "missed"]
    return (
        "<p class='legend wide'>"
        + "".join(
            f"<span><i class='swatch {kind}' style='--color:"
            f"{page_html.KIND_COLORS[color]}'></i>{name}</span>"
            for kind, name, color in marks
        )
        + "</p>"
    )


def _filters(shown: Sequence[results.ImageResult], threshold: float) -> str:
    boxes = [box for image in shown for box in (*image.objects, *image.detections)]
    buttons = "".join(
        f"<button type='button' data-choose='{kind}' "
        f"aria-pressed='{str(not kind).lower()}'>{kind or 'all'}</button>"
        for kind in ("", *_KINDS)
        if not kind or any(box.kind == kind for box in boxes)
    )
    options = "".join(
        f"<option value='{page_html.escape(name)}'>{page_html.escape(name)}</option>"
        for name in sorted({box.name for box in boxes})
    )
    low = max(min(threshold, 1.0), 0.0)
    return (
        f"<div class='filters'><span>Kind: {buttons}</span>"
        f"<label>Class: <select id='shot-class'><option value=''>all</option>{options}"
        "</select></label><label>Score at least: <input type='range' id='shot-score' "
        f"min='{low:.2f}' max='1' step='0.01' value='{low:.2f}'> "
        f"<output id='shot-score-text'>{low:.2f}</output></label>"
        f"<span id='shot-count'>{len(shown)} of {len(shown)} images</span></div>"
    )


def _shot(image: results.ImageResult, image_fn: ImageFn | None) -> str:
    pixels = image_fn(image.image_id) if image_fn else None
    image = _with_size(image, pixels)
    frame = (0, 0, image.height, image.width)
    boxes = [*image.objects, *image.detections]
    kinds = [box.kind for box in boxes if box.kind in results.ERROR_KINDS]
    counts = ", ".join(
        f"{kinds.count(kind)} {kind}" for kind in results.ERROR_KINDS if kind in kinds
    )
    return (
        f"<figure>{_drawing(image, frame, boxes, pixels, _WIDTH)}<figcaption>"
        f"<b>F1 {image.f1:.2f}</b> · {counts or 'no errors'}<br>{_name(image)}"
        "</figcaption></figure>"
    )


def _crops(crops: Sequence[_Crop], image_fn: ImageFn | None) -> str:
    """Returns the crops in order; each image is read once."""
    by_image: dict[int, list[int]] = {}
    for number, crop in enumerate(crops):
        by_image.setdefault(crop.image.image_id, []).append(number)
    figures = [""] * len(crops)
    for image_id, numbers in by_image.items():
        pixels = image_fn(image_id) if image_fn else None
        for number in numbers:
            crop = crops[number]
            crop = crop._replace(image=_with_size(crop.image, pixels))
            drawing = _drawing(
                crop.image,
                _frame([box.box_yxyx for box in crop.around], crop.image),
                crop.boxes,
                pixels,
                _CROP_WIDTH,
            )
            figures[number] = (
                f"<figure>{drawing}<figcaption>{crop.caption}</figcaption></figure>"
            )
    return f"<div class='shots crops'>{''.join(figures)}</div>" if crops else ""


def _with_size(
    image: results.ImageResult, pixels: np.ndarray | None
) -> results.ImageResult:
    """Returns an image whose size is known: annotated, or of its pixels or boxes."""
    if image.height > 0 and image.width > 0:
        return image
    if pixels is not None:
        return image._replace(height=pixels.shape[0], width=pixels.shape[1])
    ends = [box.box_yxyx[2:] for box in (*image.objects, *image.detections)]
    height, width = np.ceil(np.max([(1, 1), *ends], axis=0)).astype(int).tolist()
    return image._replace(height=height, width=width)


def _drawing(
    image: results.ImageResult,
    frame_yxyx: tuple[int, int, int, int],
    boxes: Sequence[results.ShownBox],
    pixels: np.ndarray | None,
    width: int,
) -> str:
    """Returns an SVG in pixels of the original image, cut to a frame."""
    top, left, bottom, right = frame_yxyx
    place = f"x='{left}' y='{top}' width='{right - left}' height='{bottom - top}'"
    content = f"<rect {place} fill='#8886'/>"
    if pixels is not None:
        part = _part(pixels, frame_yxyx, image)
        content = (
            f"<image {place} preserveAspectRatio='none' href='{_jpeg(part, width)}'/>"
        )
    return (
        f"<svg viewBox='{left} {top} {right - left} {bottom - top}' role='img' "
        f"aria-label='{_name(image)}'>{content}"
        f"{''.join(_drawn(boxes, frame_yxyx))}</svg>"
    )


def _drawn(
    boxes: Sequence[results.ShownBox], frame_yxyx: tuple[int, int, int, int]
) -> Iterator[str]:
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


def _caption(box: results.ShownBox, image: results.ImageResult) -> str:
    """Returns the caption of a detection, with the name of the object that it is on."""
    other = ""
    if box.iou > 0 and image.objects:
        nearest = max(image.objects, key=lambda each: _iou(each.box_yxyx, box.box_yxyx))
        if nearest.name != box.name:
            other = f", annotated as {page_html.escape(nearest.name)}"
    iou = f" · IoU {box.iou:.2f}" if box.iou > 0 else ""
    name = _name(image)
    return (
        f"<b>{page_html.escape(box.name)} {box.score or 0:.2f}</b> · {box.kind}{other}"
        f"{iou}<br><span title='{name}'>{name.rpartition('/')[2]}</span>"
    )


def _iou(box_yxyx: Sequence[float], other_yxyx: Sequence[float]) -> float:
    top, left = max(box_yxyx[0], other_yxyx[0]), max(box_yxyx[1], other_yxyx[1])
    bottom, right = min(box_yxyx[2], other_yxyx[2]), min(box_yxyx[3], other_yxyx[3])
    shared = max(bottom - top, 0.0) * max(right - left, 0.0)
    return shared / max(_area(box_yxyx) + _area(other_yxyx) - shared, 1e-9)


def _name(image: results.ImageResult) -> str:
    return page_html.escape(image.file_name or f"image {image.image_id}")


def _area(box_yxyx: Sequence[float]) -> float:
    top, left, bottom, right = box_yxyx
    return (bottom - top) * (right - left)


def _frame(
    boxes_yxyx: Sequence[Sequence[float]], image: results.ImageResult
) -> tuple[int, int, int, int]:
    """Returns a square around boxes, cut at the edges of the image."""
    boxes = np.asarray(boxes_yxyx, np.float64)
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    side = max(float((high - low).max()) * (1 + _MARGIN), _LEAST_CROP)
    center = (low + high) / 2
    ends = (image.height, image.width)
    # Moved inside before it is cut, so that a box at an edge keeps its surroundings.
    starts = [
        min(max(middle - side / 2, 0), max(end - side, 0))
        for middle, end in zip(center, ends, strict=True)
    ]
    top, left = (int(start) for start in starts)
    bottom, right = (
        max(min(round(start + side), end), int(start) + 1)
        for start, end in zip(starts, ends, strict=True)
    )
    return top, left, bottom, right


def _part(
    pixels: np.ndarray,
    frame_yxyx: tuple[int, int, int, int],
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
