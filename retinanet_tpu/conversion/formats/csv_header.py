"""Finds out which column of a CSV table is what, from its first line."""

import posixpath
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from retinanet_tpu import errors
from retinanet_tpu.conversion.formats import files, name_matching

CORNERS = ("xmin", "ymin", "xmax", "ymax")
SIZES = ("xmin", "ymin", "box_width", "box_height")
# What headers call a column, the most telling name first.
_NAMES = {
    "image": (
        "image", "filename", "file_name", "image_name", "imagename", "image_path",
        "imagepath", "path", "filepath", "file_path", "file", "img", "frame",
        "image_filename", "image_file", "img_name", "img_path",
        "image_id", "imageid", "img_id",
    ),
    "class": (
        "class", "label", "class_name", "classname", "label_name", "labelname",
        "category", "category_name", "object_class", "name",
    ),
    "class_id": (
        "class_id", "classid", "label_id", "labelid", "category_id", "categoryid",
    ),
    "xmin": ("xmin", "x_min", "x1", "left", "bbox_xmin", "xtl", "bbox_x1"),
    "ymin": ("ymin", "y_min", "y1", "top", "bbox_ymin", "ytl", "bbox_y1"),
    "xmax": ("xmax", "x_max", "x2", "right", "bbox_xmax", "xbr", "bbox_x2"),
    "ymax": ("ymax", "y_max", "y2", "bottom", "bbox_ymax", "ybr", "bbox_y2"),
    "x": ("x", "bbox_x", "x_left"),
    "y": ("y", "bbox_y", "y_top"),
    "box_width": ("w", "bbox_width", "box_width", "bbox_w"),
    "box_height": ("h", "bbox_height", "box_height", "bbox_h"),
    "width": ("width",),
    "height": ("height",),
    "image_width": ("image_width", "img_width", "imagewidth", "image_w", "img_w"),
    "image_height": ("image_height", "img_height", "imageheight", "image_h", "img_h"),
}  # fmt: skip
# Any column that names the image leads to it; of the others one must be meant.
_MAY_REPEAT = ("image", "width", "height")
_KERAS_RETINANET = ("image", *CORNERS, "class")
_MAKESENSE = ("class", *SIZES, "image", "width", "height")
_MAX_COLUMNS = 1000
# Columns that hold four numbers, whose meaning differs from table to table.
_BOXES = (
    "bbox",
    "box",
    "bounding_box",
    "boundingbox",
    "bboxes",
    "boxes",
    "boxesstring",
)
_CENTERS = ("cx", "cy", "x_center", "y_center", "xcenter", "ycenter", "xc", "yc")


class Header(NamedTuple):
    """Which field of a line is what."""

    columns: dict[str, int]  # image, class, CORNERS or SIZES; the image's width, height
    num_fields: int
    is_line: bool  # the first line is a header, not an image

    @property
    def has_class(self) -> bool:
        """Returns whether there is a column of classes."""
        return "class" in self.columns

    @property
    def sides(self) -> Sequence[str]:
        """Returns the columns of the box: CORNERS or SIZES."""
        return CORNERS if "xmax" in self.columns else SIZES


def read(row: list[str], path: str, *, has_class: bool = True) -> Header:
    """Returns the columns of a table.

    Args:
      row: The fields of the first line.
      path: The file, for errors.
      has_class: Whether there must be a column of classes.

    Raises:
      UserError: A column is missing, or two could be meant.
    """
    if len(row) > _MAX_COLUMNS:
        raise errors.UserError(
            f"{path}, line 1 has {len(row)} fields; a table of boxes has fewer than "
            f"{_MAX_COLUMNS}."
        )
    for names, is_first in (
        (_KERAS_RETINANET, _is_keras_retinanet),
        (_MAKESENSE, _is_makesense),
    ):
        if is_first(row):
            return Header({name: i for i, name in enumerate(names)}, len(names), False)
    header = [_plain(name) for name in row]
    where = f"{path}, line 1 is {','.join(row)[:200]!r}"
    found = {
        meaning: [name for name in names if name in header]
        for meaning, names in _NAMES.items()
    }
    _check_points(header, where)
    chosen = {
        "image": found["image"],
        "class": found["class"] or found["class_id"],
        **_box(found, header, where),
    }
    if "xmax" in chosen or found["box_width"] or found["image_width"]:
        # Else width and height are those of the box.
        chosen["width"] = found["image_width"] or found["width"]
        chosen["height"] = found["image_height"] or found["height"]
    columns = {}
    for meaning, names in chosen.items():
        if len(names) > 1 and meaning not in _MAY_REPEAT:
            raise errors.UserError(
                f"{where}, where {' and '.join(names)} could each be the {meaning}; "
                "remove or rename all but one."
            )
        if names and header.count(names[0]) > 1:
            raise errors.UserError(f"{where}, which has {names[0]} twice.")
        if names:
            columns[meaning] = header.index(names[0])
    needed = ("image", "class") if has_class else ("image",)
    absent = [name for name in needed if name not in columns]
    if absent == ["class"]:
        raise errors.UserError(
            f"{where}, which lacks class; add a column of class names, or name the one "
            "class of all boxes with --names=NAME."
        )
    if absent:
        raise errors.UserError(_lacks(absent, where))
    return Header(columns, len(row), True)


def _box(
    found: dict[str, list[str]], header: list[str], where: str
) -> dict[str, list[str]]:
    """Returns the names of the four columns of the box."""
    corners = {side: found[side] for side in CORNERS}
    if all(corners.values()):
        return corners
    left, top = found["xmin"] + found["x"], found["ymin"] + found["y"]
    width = found["box_width"] or found["width"]
    height = found["box_height"] or found["height"]
    is_partial = found["xmax"] or found["ymax"]
    if left and top and width and height and not is_partial:
        return dict(zip(SIZES, (left, top, width, height), strict=True))
    if in_one := [name for name in header if name in _BOXES]:
        raise errors.UserError(
            f"{where}, where {in_one[0]} has all numbers of a box; write them to "
            "columns of their own: x,y,width,height or xmin,ymin,xmax,ymax."
        )
    needed = {"image": found["image"], **corners}
    needed["class"] = found["class"] or found["class_id"]
    absent = [meaning for meaning, names in needed.items() if not names]
    raise errors.UserError(_lacks(absent, where))


def _check_points(header: Iterable[str], where: str) -> None:
    """Raises UserError for polygons, and for boxes given by their centers."""
    for names, what in (
        (("x3", "y3"), "points of a polygon"),
        (_CENTERS, "centers of boxes"),
    ):
        present = [name for name in header if name in names]
        if present:
            raise errors.UserError(
                f"{where}; {' and '.join(present[:2])} are {what}, which are not read. "
                "Write the corners xmin,ymin,xmax,ymax."
            )


def _lacks(absent: list[str], where: str) -> str:
    return (
        f"{where}, which lacks {', '.join(absent)}; expected a header with image,xmin,"
        "ymin,xmax,ymax,class or image,x,y,width,height,class, or lines of "
        "path,x1,y1,x2,y2,class, with commas between."
    )


def _plain(name: str) -> str:
    return "_".join(name.strip().lower().replace("-", " ").replace(".", " ").split())


def _is_keras_retinanet(row: list[str]) -> bool:
    """Returns whether a line without header is a box, or an image without any."""
    is_empty = not any(row[1:])
    return len(row) == len(_KERAS_RETINANET) and (is_empty or _are_numbers(row[1:5]))


def _is_makesense(row: list[str]) -> bool:
    if len(row) != len(_MAKESENSE) or not _are_numbers(row[1:5] + row[6:]):
        return False
    return posixpath.splitext(row[5])[1].lower() in name_matching.image_extensions()


def _are_numbers(texts: list[str]) -> bool:
    try:
        files.numbers(texts, "")
    except ValueError:
        return False
    return True
