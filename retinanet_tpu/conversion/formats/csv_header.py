"""Identifies the columns of a CSV table of boxes from its first line."""

import posixpath
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from retinanet_tpu import errors
from retinanet_tpu.conversion.formats import files, name_matching

CORNERS = ("xmin", "ymin", "xmax", "ymax")
SIZES = ("xmin", "ymin", "box_width", "box_height")
# The names of each column in the headers of other tools, the most specific first.
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
# Columns that a header may contain under several names; the first name is used.
_MAY_REPEAT = ("image", "width", "height")
_KERAS_RETINANET = ("image", *CORNERS, "class")
_MAKESENSE = ("class", *SIZES, "image", "width", "height")
_MAX_COLUMNS = 1000  # Wider tables, hostile ones included, do not contain boxes.
_MAX_SHOWN = 200  # Characters of the first line that an error shows.
# Columns of four numbers, whose meaning differs between tables.
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
    """The columns of a table.

    Attributes:
      columns: The index of each column: image, class, CORNERS or SIZES, and the width
        and height of the image.
      num_fields: The number of fields of a line.
      has_header_line: Whether the first line of the table is a header, not a box.
    """

    columns: dict[str, int]
    num_fields: int
    has_header_line: bool

    @property
    def has_class(self) -> bool:
        """Returns whether the table has a column of classes."""
        return "class" in self.columns

    @property
    def sides(self) -> Sequence[str]:
        """Returns the columns of the box: CORNERS or SIZES."""
        return CORNERS if "xmax" in self.columns else SIZES


def read(row: list[str], path: str, *, has_class: bool = True) -> Header:
    """Returns the columns of a table.

    Args:
      row: The fields of the first line.
      path: The file, for error messages.
      has_class: Whether a column of classes is required.

    Raises:
      UserError: A column is missing or ambiguous.
    """
    if len(row) > _MAX_COLUMNS:
        raise errors.UserError(
            f"{path}, line 1 has {len(row)} fields; a table of boxes has fewer than "
            f"{_MAX_COLUMNS}."
        )
    for names, matches in (
        (_KERAS_RETINANET, _is_keras_retinanet),
        (_MAKESENSE, _is_makesense),
    ):
        if matches(row):
            return Header({name: i for i, name in enumerate(names)}, len(names), False)
    header = [_normalized(name) for name in row]
    where = f"{path}, line 1 is {','.join(row)[:_MAX_SHOWN]!r}"
    present = {
        meaning: [name for name in names if name in header]
        for meaning, names in _NAMES.items()
    }
    _check_points(header, where)
    chosen = {
        "image": present["image"],
        "class": present["class"] or present["class_id"],
        **_box(present, header, where),
    }
    if "xmax" in chosen or present["box_width"] or present["image_width"]:
        # Otherwise width and height are those of the box.
        chosen["width"] = present["image_width"] or present["width"]
        chosen["height"] = present["image_height"] or present["height"]
    columns = _indices(chosen, header, where)
    required = ("image", "class") if has_class else ("image",)
    absent = [name for name in required if name not in columns]
    if absent == ["class"]:
        raise errors.UserError(
            f"{where}, which lacks class; add a column of class names, or name the one "
            "class of all boxes with --names=NAME."
        )
    if absent:
        raise errors.UserError(_missing_columns(absent, where))
    return Header(columns, len(row), True)


def _indices(
    chosen: dict[str, list[str]], header: list[str], where: str
) -> dict[str, int]:
    """Returns the index of each column, or raises UserError if it is ambiguous."""
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
    return columns


def _box(
    present: dict[str, list[str]], header: list[str], where: str
) -> dict[str, list[str]]:
    """Returns the names that the four columns of the box have in the header."""
    corners = {side: present[side] for side in CORNERS}
    if all(corners.values()):
        return corners
    left = present["xmin"] + present["x"]
    top = present["ymin"] + present["y"]
    width = present["box_width"] or present["width"]
    height = present["box_height"] or present["height"]
    is_partial = present["xmax"] or present["ymax"]
    if left and top and width and height and not is_partial:
        return dict(zip(SIZES, (left, top, width, height), strict=True))
    if combined := [name for name in header if name in _BOXES]:
        raise errors.UserError(
            f"{where}, where {combined[0]} has all numbers of a box; write them to "
            "separate columns: x,y,width,height or xmin,ymin,xmax,ymax."
        )
    required = {"image": present["image"], **corners}
    required["class"] = present["class"] or present["class_id"]
    absent = [meaning for meaning, names in required.items() if not names]
    raise errors.UserError(_missing_columns(absent, where))


def _check_points(header: Iterable[str], where: str) -> None:
    """Raises UserError for columns of polygons, or of the centers of boxes."""
    for names, content in (
        (("x3", "y3"), "points of a polygon"),
        (_CENTERS, "centers of boxes"),
    ):
        present = [name for name in header if name in names]
        if present:
            raise errors.UserError(
                f"{where}; {' and '.join(present[:2])} are {content}, which are not "
                "supported. Write the corners xmin,ymin,xmax,ymax."
            )


def _missing_columns(absent: list[str], where: str) -> str:
    """Returns the error message for missing columns."""
    return (
        f"{where}, which lacks {', '.join(absent)}; expected a header with image,xmin,"
        "ymin,xmax,ymax,class or image,x,y,width,height,class, or lines of "
        "path,x1,y1,x2,y2,class, separated by commas."
    )


def _normalized(name: str) -> str:
    """Returns a name in lower case, its words joined by underscores."""
    return "_".join(name.strip().lower().replace("-", " ").replace(".", " ").split())


def _is_keras_retinanet(row: list[str]) -> bool:
    """Returns whether a line is keras-retinanet's, of a box or an empty image."""
    is_empty = not any(row[1:])
    return len(row) == len(_KERAS_RETINANET) and (is_empty or _are_numbers(row[1:5]))


def _is_makesense(row: list[str]) -> bool:
    """Returns whether a line is makesense's."""
    if len(row) != len(_MAKESENSE) or not _are_numbers(row[1:5] + row[6:]):
        return False
    return posixpath.splitext(row[5])[1].lower() in name_matching.image_extensions()


def _are_numbers(texts: list[str]) -> bool:
    try:
        files.numbers(texts, "")
    except ValueError:
        return False
    return True
