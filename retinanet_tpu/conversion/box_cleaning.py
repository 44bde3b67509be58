"""Boxes as annotated: what is wrong with one, and what can be mended."""

import math
from collections.abc import Iterator

from retinanet_tpu.data import annotations, image_decoding, transforms

# COCO's own boxes exceed the image by rounding; clipping those would change its AP.
EDGE_TOLERANCE = 0.5
# Shares beyond this are pixels; a little beyond 1 is the rounding of a tool.
_MAX_SHARE = 2.0
NOT_FINITE = "boxes that are not finite, dropped"
WRONG_ORDER = "boxes of negative size (xmin > xmax or ymin > ymax), dropped"
NO_AREA = "boxes without area, dropped"
NOT_PIXELS = "boxes in 0..1 where pixels were expected, dropped"
NOT_SHARES = "boxes beyond 0..1 where shares were expected, dropped"
OUTSIDE = "boxes outside the image, dropped"
FAR_BEYOND = "boxes far beyond the edge, clipped"
_CLIPPED = "boxes beyond the edge, clipped"
# Shares of a side. Rounding reaches less far; corners that are read as sizes, farther.
_FAR = 0.05
_THIN = "boxes narrower than a pixel, which training passes over"


def box_issue(
    box_xywh: tuple[float, float, float, float], *, is_norm: bool
) -> str | None:
    """Returns what is wrong with a box, whatever its image, or None.

    Args:
      box_xywh: as annotated.
      is_norm: the format gives shares of the image's sides, not pixels.
    """
    left, top, width, height = box_xywh
    corners = (left, top, left + width, top + height)
    if not all(map(math.isfinite, corners)):
        return NOT_FINITE
    if width < 0 or height < 0:
        return WRONG_ORDER
    if width == 0 or height == 0:
        return NO_AREA
    if is_norm and not all(-_MAX_SHARE <= value <= _MAX_SHARE for value in corners):
        return NOT_SHARES
    # A pixel in the corner is (0, 0, 1, 1) too; training passes over its like anyway.
    if not is_norm and all(0 <= value <= 1 for value in corners):
        return NOT_PIXELS
    return None


def is_learnable(item: annotations.AnnotatedObject) -> bool:
    """Returns whether training looks at an object; its box must be in pixels."""
    return not item.is_crowd and min(item.box_xywh[2:]) >= transforms.MIN_SIDE


def clip_and_filter_boxes(
    image: annotations.AnnotatedImage,
    picture: image_decoding.StoredImage,
    findings: list[annotations.ConversionEvent],
) -> Iterator[annotations.AnnotatedObject]:
    """Yields the objects in px of the image, clipped to it, less those of no use."""
    width, height = picture.width, picture.height
    for annotated in image.objects:
        item, fault = annotated, box_issue(annotated.box_xywh, is_norm=image.is_norm)
        left, top, box_width, box_height = item.box_xywh
        if image.is_norm:
            left, box_width = left * width, box_width * width
            top, box_height = top * height, box_height * height
            item = item._replace(
                box_xywh=(left, top, box_width, box_height), area=box_width * box_height
            )
        right, bottom = left + box_width, top + box_height
        is_seen = left < width and top < height and right > 0 and bottom > 0
        fault = fault or (None if is_seen else OUTSIDE)
        if fault:
            findings.append(describe(fault, image, annotated))
            continue
        if max(-left, -top, right - width, bottom - height) > EDGE_TOLERANCE:
            over_x, over_y = max(-left, right - width), max(-top, bottom - height)
            is_far = over_x > _FAR * width or over_y > _FAR * height
            kind = FAR_BEYOND if is_far else _CLIPPED
            findings.append(describe(kind, image, annotated))
            left, right = (min(max(x, 0.0), float(width)) for x in (left, right))
            top, bottom = (min(max(y, 0.0), float(height)) for y in (top, bottom))
            box = (left, top, right - left, bottom - top)
            item = item._replace(box_xywh=box, area=min(item.area, box[2] * box[3]))
        if min(item.box_xywh[2:]) < transforms.MIN_SIDE:
            findings.append(describe(_THIN, image, annotated))
        yield item


def rotate_boxes_for_exif(
    objects: tuple[annotations.AnnotatedObject, ...],
    picture: image_decoding.StoredImage,
) -> tuple[annotations.AnnotatedObject, ...]:
    """Returns objects of sound boxes moved with the image, others as they are."""
    return tuple(
        item
        if box_issue(item.box_xywh, is_norm=False)
        else item._replace(box_xywh=image_decoding.rotate_box(item.box_xywh, picture))
        for item in objects
    )


def describe(
    fault: str, image: annotations.AnnotatedImage, item: annotations.AnnotatedObject
) -> annotations.ConversionEvent:
    """Returns a finding about a box, as annotated."""
    left, top, width, height = item.box_xywh
    box = ", ".join(f"{v:g}" for v in (left, top, left + width, top + height))
    detail = f"{image.file_name}, ({box})"
    return annotations.ConversionEvent(
        fault, annotations.source_line_of(image, item), detail
    )
