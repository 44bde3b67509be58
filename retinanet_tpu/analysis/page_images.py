"""Writes the sections of the page of an analysis that contain images."""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from retinanet_tpu.analysis import page_drawing, page_html, results

ImageFn = page_drawing.ImageFn

_WIDTH = 480  # px; wide enough for a column of the page, and about 40 kB.
_CROP_WIDTH = 240  # px
_MARGIN = 0.6  # The part of the box's longer side that a crop shows around it.
_LEAST_CROP = 64  # px; a smaller part of an image is not recognizable.


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
        return page_html.section("images", title, "", page_html.note(empty))
    with_errors = sum(image.f1 < 1 for image in analysis.images)
    text += (
        f"{len(shown):,} of {with_errors:,} images with errors are shown. Solid boxes "
        "are detections, dashed ones annotated objects. Point at a box to see its "
        "class, score and IoU."
    )
    controls = page_drawing.filters(
        [box for image in shown for box in (*image.objects, *image.detections)],
        num_figures=len(shown),
        min_score=analysis.confusion.threshold,
    )
    figures = "".join(_shot(image, image_fn) for image in shown)
    return page_html.section(
        "images",
        title,
        text,
        f"{page_drawing.legend()}{controls}"
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
    content = _crops(crops, image_fn) or page_html.note("There are no errors.")
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
    content = _crops(crops, image_fn) or page_html.note("There are none.")
    shown = f"{len(crops):,} of {len(analysis.label_issues):,} are shown. "
    return page_html.section(
        "labels",
        "Suspected label errors",
        f"Annotations that a confident detection contradicts. {shown * bool(crops)}"
        "Check them before you change the training.",
        content,
    )


def _shot(image: results.ImageResult, image_fn: ImageFn | None) -> str:
    pixels = image_fn(image.image_id) if image_fn else None
    image = page_drawing.with_size(image, pixels)
    frame = (0, 0, image.height, image.width)
    boxes = [*image.objects, *image.detections]
    behind = page_drawing.background(image, frame, pixels, _WIDTH)
    return (
        f"<figure>{page_drawing.drawing(image, frame, boxes, behind)}<figcaption>"
        f"<b>F1 {image.f1:.2f}</b> · {page_drawing.error_counts(boxes)}<br>"
        f"{page_drawing.image_name(image)}</figcaption></figure>"
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
            image = page_drawing.with_size(crop.image, pixels)
            frame = _frame([box.box_yxyx for box in crop.around], image)
            behind = page_drawing.background(image, frame, pixels, _CROP_WIDTH)
            drawing = page_drawing.drawing(image, frame, crop.boxes, behind)
            figures[number] = (
                f"<figure>{drawing}<figcaption>{crop.caption}</figcaption></figure>"
            )
    return f"<div class='shots crops'>{''.join(figures)}</div>" if crops else ""


def _caption(box: results.ShownBox, image: results.ImageResult) -> str:
    """Returns the caption of a detection, with the name of the object that it is on."""
    other = ""
    if box.iou > 0 and image.objects:
        nearest = max(
            image.objects,
            key=lambda each: page_drawing.iou(each.box_yxyx, box.box_yxyx),
        )
        if nearest.name != box.name:
            other = f", annotated as {page_html.escape(nearest.name)}"
    iou = f" · IoU {box.iou:.2f}" if box.iou > 0 else ""
    name = page_drawing.image_name(image)
    return (
        f"<b>{page_html.escape(box.name)} {box.score or 0:.2f}</b> · {box.kind}{other}"
        f"{iou}<br><span title='{name}'>{name.rpartition('/')[2]}</span>"
    )


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
