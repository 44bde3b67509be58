"""Checks annotated boxes; clips the ones that can be used and drops the others."""

import enum
import math

from retinanet_tpu.data import annotations, image_decoding, transforms

# px. COCO's own boxes exceed the image by rounding; clipping them would change its AP.
EDGE_TOLERANCE = 0.5
# Larger values are px, not fractions. A little beyond 1 is the rounding of a tool.
_MAX_FRACTION = 2.0
# Fraction of a side. Rounding reaches less far; corners read as sizes reach farther.
_FAR = 0.05
_CHECK_SOURCE = "Check the program that wrote the annotations."
_CHECK_ORDER = "Check that the order of the numbers is that of --format."
_CHECK_SIZES = "Were the images resized after they were annotated?"


class BoxIssue(enum.Enum):
    """The kinds of issues of a box.

    Attributes:
      message: The boxes, as a plural noun phrase.
      action: The treatment of the box, or "" if it is kept.
      remedy: The advice if most boxes of a data set have the issue, or "" for an issue
        that does not count as a fault.
    """

    NOT_FINITE = ("boxes that are not finite", "dropped", _CHECK_SOURCE)
    WRONG_ORDER = (
        "boxes of negative size (xmin > xmax or ymin > ymax)",
        "dropped",
        _CHECK_ORDER,
    )
    NO_AREA = ("boxes without area", "dropped", _CHECK_SOURCE)
    NOT_PIXELS = (
        "boxes in 0..1 where pixels were expected",
        "dropped",
        "Write pixels, or choose a --format of fractions.",
    )
    NOT_FRACTIONS = (
        "boxes beyond 0..1 where fractions were expected",
        "dropped",
        "Write fractions of the sides, or choose a --format of pixels.",
    )
    OUTSIDE = ("boxes outside the image", "dropped", _CHECK_SIZES)
    FAR_BEYOND = (
        "boxes far beyond the edge",
        "clipped",
        f"{_CHECK_ORDER} {_CHECK_SIZES}",
    )
    BEYOND = ("boxes beyond the edge", "clipped", "")
    THIN = ("boxes narrower than a pixel", "ignored by training", "")

    def __init__(self, message: str, action: str, remedy: str) -> None:
        self.message = message
        self.action = action
        self.remedy = remedy

    @property
    def kind(self) -> str:
        """Returns the kind of the ConversionEvents of this issue."""
        return f"{self.message}, {self.action}"


def box_issue(
    box_xywh: tuple[float, float, float, float], *, is_norm: bool
) -> BoxIssue | None:
    """Returns the issue of a box that is independent of its image, or None.

    Args:
      box_xywh: Left, top, width and height, as annotated.
      is_norm: Whether the numbers are fractions of the image's sides instead of px.
    """
    left, top, width, height = box_xywh
    corners = (left, top, left + width, top + height)
    if not all(map(math.isfinite, corners)):
        return BoxIssue.NOT_FINITE
    if width < 0 or height < 0:
        return BoxIssue.WRONG_ORDER
    if width == 0 or height == 0:
        return BoxIssue.NO_AREA
    if is_norm and any(abs(value) > _MAX_FRACTION for value in corners):
        return BoxIssue.NOT_FRACTIONS
    # The box (0, 0, 1, 1) in px has it too, but training would ignore it anyway.
    if not is_norm and all(0 <= value <= 1 for value in corners):
        return BoxIssue.NOT_PIXELS
    return None


def is_learnable(item: annotations.AnnotatedObject) -> bool:
    """Returns whether training uses an object.

    Args:
      item: The object, its box in px.
    """
    return not item.is_crowd and min(item.box_xywh[2:]) >= transforms.MIN_SIDE


def clip_and_filter_boxes(
    image: annotations.AnnotatedImage, stored: image_decoding.StoredImage
) -> tuple[tuple[annotations.AnnotatedObject, ...], list[annotations.ConversionEvent]]:
    """Clips boxes to the image and drops the unusable ones.

    Args:
      image: The annotated image.
      stored: The stored image, with the size in px.

    Returns:
      The remaining objects, their boxes in px of the image, and the events.
    """
    kept = []
    events = []
    for item in image.objects:
        usable, issue = _clip(item, stored, is_norm=image.is_norm)
        if issue is not None:
            events.append(describe(issue, image, item))
        if usable is None:
            continue
        kept.append(usable)
        if min(usable.box_xywh[2:]) < transforms.MIN_SIDE:
            events.append(describe(BoxIssue.THIN, image, item))
    return tuple(kept), events


def rotate_boxes_for_exif(
    objects: tuple[annotations.AnnotatedObject, ...],
    stored: image_decoding.StoredImage,
) -> tuple[annotations.AnnotatedObject, ...]:
    """Returns the objects with their boxes rotated as the image was.

    Boxes with an issue are returned unchanged, so that events show the annotated
    numbers.

    Args:
      objects: The objects, boxes in px of the image before its EXIF rotation.
      stored: The stored image, whose sides were swapped.
    """
    return tuple(
        item
        if box_issue(item.box_xywh, is_norm=False)
        else item._replace(box_xywh=image_decoding.rotate_box(item.box_xywh, stored))
        for item in objects
    )


def describe(
    issue: BoxIssue,
    image: annotations.AnnotatedImage,
    item: annotations.AnnotatedObject,
) -> annotations.ConversionEvent:
    """Returns the event of a box issue, with the corners as annotated."""
    left, top, width, height = item.box_xywh
    box = ", ".join(f"{v:g}" for v in (left, top, left + width, top + height))
    location = annotations.source_line_of(image, item)
    return annotations.ConversionEvent(
        issue.kind, location, f"{image.file_name}, ({box})"
    )


def _clip(
    item: annotations.AnnotatedObject,
    stored: image_decoding.StoredImage,
    *,
    is_norm: bool,
) -> tuple[annotations.AnnotatedObject | None, BoxIssue | None]:
    """Returns the object in px and clipped, or None; and the issue of its box."""
    width, height = stored.width, stored.height
    issue = box_issue(item.box_xywh, is_norm=is_norm)
    left, top, box_width, box_height = item.box_xywh
    if is_norm:
        left, box_width = left * width, box_width * width
        top, box_height = top * height, box_height * height
        item = item._replace(
            box_xywh=(left, top, box_width, box_height), area=box_width * box_height
        )
    right = left + box_width
    bottom = top + box_height
    is_inside = left < width and top < height and right > 0 and bottom > 0
    if issue is None and not is_inside:
        issue = BoxIssue.OUTSIDE
    if issue is not None:
        return None, issue
    over_x = max(-left, right - width)
    over_y = max(-top, bottom - height)
    if max(over_x, over_y) > EDGE_TOLERANCE:
        is_far = over_x > _FAR * width or over_y > _FAR * height
        issue = BoxIssue.FAR_BEYOND if is_far else BoxIssue.BEYOND
        left, right = (min(max(x, 0.0), float(width)) for x in (left, right))
        top, bottom = (min(max(y, 0.0), float(height)) for y in (top, bottom))
        box = (left, top, right - left, bottom - top)
        item = item._replace(box_xywh=box, area=min(item.area, box[2] * box[3]))
    return item, issue
