"""Reads VIA (VGG Image Annotator 1 and 2): one CSV or JSON file, shapes in pixels.

Supported files are the annotations as CSV or JSON and the project file. The `coco`
module reads VIA's COCO export.
"""

import csv
import io
import math
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from retinanet_tpu import errors
from retinanet_tpu.conversion.formats import assembly, documents, files, listing, shapes
from retinanet_tpu.data import annotations

_COLUMNS = ("filename", "region_count", "region_shape_attributes", "region_attributes")
_MAX_NAMED = 10  # Attributes in an error.
_NOT_ENCLOSING = ("polyline", "point")


class _Region(NamedTuple):
    """A region of an image, as written in the file."""

    shape: dict[str, Any]
    attributes: dict[str, Any]
    number: int  # the line of a CSV file, or the position in the image's list, from 1
    where: str  # the file and line or region, for errors and events


class _Image(NamedTuple):
    """An image, as written in the file."""

    file_name: str
    regions: list[_Region]
    source: str


def read(
    path: str,
    *,
    image_folder: files.ImageFolder,
    categories: list[dict[str, Any]] | None = None,
    class_attribute: str | None = None,
) -> annotations.AnnotatedSet:
    """Reads an export of VIA. Polygons, circles and ellipses become boxes.

    Args:
      path: The CSV or JSON file.
      image_folder: The folder of images.
      categories: The classes. None selects the options of the project, or else all
        classes that occur in the file, sorted. If regions have no attributes and
        there is a single class, all boxes get that class.
      class_attribute: The region attribute that contains the class. None selects the
        only attribute.

    Raises:
      UserError: The structure of the file is invalid, the class attribute is missing
        or ambiguous, or a class is unknown.
      MissingFileError: The file does not exist.
    """
    text = files.read_text(path)
    project: dict[str, Any] = {}
    unit = "line"
    if text.lstrip()[:1] in ("{", "["):
        project = documents.expect(documents.load_json(text, path), dict, path)
        unit = "region"
        images = list(_read_json(project, path))
    else:
        images = list(_read_csv(text, path))
    only_class = categories[0]["name"] if categories and len(categories) == 1 else None
    attribute = _class_attribute(images, class_attribute, only_class, path)
    if only_class and not attribute:
        images = [_with_attributes(image, {attribute: only_class}) for image in images]
    options = _options(project, attribute)
    return listing.assemble(
        [_content(image, attribute, options) for image in images],
        path=path,
        image_folder=image_folder,
        categories=categories,
        unit=unit,
        declared=options.values(),
    )


def _content(
    image: _Image, attribute: str, options: dict[str, str]
) -> assembly.Content:
    """Returns the boxes of an image, and the events about its regions."""
    objects: list[assembly.LabeledBox] = []
    events: list[annotations.ConversionEvent] = []
    for region in image.regions:
        box_xywh, event = _box(region)
        if event:
            events.append(event)
        labels = _labels(region.attributes.get(attribute), region.where)
        if box_xywh is None:
            continue
        if not labels:
            events.append(annotations.ConversionEvent(listing.NO_CLASS, region.where))
        objects += [
            assembly.LabeledBox(options.get(label, label), box_xywh, region.number)
            for label in labels
        ]
    read_image = assembly.ReadImage(image.file_name, 0, 0, objects, image.source)
    return assembly.Content(read_image, events)


def _read_json(content: dict[str, Any], path: str) -> Iterator[_Image]:
    entries = content.get("_via_img_metadata", content)
    entries = documents.expect(entries, dict, f"{path}: _via_img_metadata")
    for key, entry in entries.items():
        where = f"{path}: {key}"
        documents.expect(entry, dict, where)
        name = documents.get(entry, ["filename"], str, where)
        source = f"{os.path.basename(path)}, {name}"
        regions = entry.get("regions", [])
        if isinstance(regions, dict):  # VIA 1 numbers them by keys.
            regions = list(regions.values())
        documents.expect(regions, list, f"{where}: regions")
        numbered = [
            _json_region(region, number, f"{source}, region {number}")
            for number, region in enumerate(regions, start=1)
        ]
        yield _Image(name, numbered, source)


def _json_region(region: Any, number: int, where: str) -> _Region:
    documents.expect(region, dict, where)
    shape = documents.get(region, ["shape_attributes"], dict, where)
    attributes = documents.get(region, ["region_attributes"], dict, where)
    return _Region(shape, attributes, number, where)


def _read_csv(text: str, path: str) -> Iterator[_Image]:
    """Yields each image once. Each region has a line of its own."""
    rows = csv.reader(io.StringIO(text, newline=""))
    source = os.path.basename(path)
    images: dict[str, _Image] = {}
    columns: dict[str, int] | None = None
    try:
        for row in rows:
            where = f"{source}, line {rows.line_num}"
            if columns is None:
                columns = _columns(row, path)
                continue
            if not row:
                continue
            if len(row) <= max(columns.values()):
                raise errors.UserError(
                    f"{where} has {len(row)} fields; expected those of line 1."
                )
            name, count, shape_text, attributes_text = (
                row[columns[key]] for key in _COLUMNS
            )
            image = images.setdefault(name, _Image(name, [], source))
            shape = _object(shape_text, where)
            if shape or count.strip() not in ("", "0"):
                attributes = _object(attributes_text, where)
                region = _Region(shape, attributes, rows.line_num, where)
                image.regions.append(region)
    except csv.Error as error:
        raise errors.UserError(f"{path}, line {rows.line_num}: {error}.") from error
    if columns is None:
        raise errors.UserError(f"{path} is empty; expected an export of VIA.")
    yield from images.values()


def _columns(row: list[str], path: str) -> dict[str, int]:
    header = [name.strip().lstrip("#") for name in row]  # VIA 1 writes #filename.
    absent = [name for name in _COLUMNS if name not in header]
    if absent:
        raise errors.UserError(
            f"{path}, line 1 lacks {', '.join(absent)}; expected the header of VIA's "
            "CSV export, or a JSON file."
        )
    return {name: header.index(name) for name in _COLUMNS}


def _object(text: str, where: str) -> dict[str, Any]:
    content = documents.load_json(text, where)
    return documents.expect(content, dict, where)


def _with_attributes(image: _Image, attributes: dict[str, Any]) -> _Image:
    regions = [region._replace(attributes=attributes) for region in image.regions]
    return image._replace(regions=regions)


def _class_attribute(
    images: list[_Image], selected: str | None, only_class: str | None, path: str
) -> str:
    """Returns the region attribute that contains the class, or "".

    Args:
      images: The images of the file.
      selected: The value of --class_attribute, or None.
      only_class: The class of all boxes where regions have no attributes, or None.
      path: The file, for errors.
    """
    used = list(
        dict.fromkeys(
            name
            for image in images
            for region in image.regions
            for name, value in region.attributes.items()
            if value not in ("", None, {})
        )
    )
    named = ", ".join(used[:_MAX_NAMED])
    if selected is not None:
        if selected not in used and used:
            raise errors.UserError(
                f"--class_attribute={selected} is no region attribute of {path}; its "
                f"attributes are {named}."
            )
        return selected
    if len(used) > 1:
        raise errors.UserError(
            f"{path} has the region attributes {named}; select the class with "
            f"--class_attribute={used[0]} or another."
        )
    if not used and not only_class and any(image.regions for image in images):
        raise errors.UserError(
            f"{path} has no region attribute, so its boxes have no class; set one "
            "class for all with --names=NAME, or set the class of each region in VIA."
        )
    return used[0] if used else ""


def _options(project: dict[str, Any], attribute: str) -> dict[str, str]:
    """Returns the classes that a project declares: value in regions -> name."""
    options = project.get("_via_attributes", {})
    for key in ("region", attribute, "options"):
        options = options.get(key, {}) if isinstance(options, dict) else {}
    if not isinstance(options, dict):
        return {}
    # The key of an option is its value in regions. Where VIA numbers the options, the
    # description is the name; elsewhere the key is the name.
    return {
        key: text.strip() if key.isdecimal() and _is_text(text) else key
        for key, text in options.items()
    }


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _labels(value: Any, where: str) -> list[str]:
    """Returns the classes of a region; a checkbox may have several."""
    if isinstance(value, dict):
        return [key for key, is_set in value.items() if is_set is True]
    label = documents.label(value, where)
    return [label] if label else []


def _box(
    region: _Region,
) -> tuple[shapes.Box | None, annotations.ConversionEvent | None]:
    """Returns the box around a region, or None, and an event if it is no rectangle."""
    shape, where = region.shape, region.where
    kind = shape.get("name")
    if kind == "rect":
        x, y, width, height = documents.numbers(
            shape, ("x", "y", "width", "height"), where
        )
        return (x, y, width, height), None
    if kind in _NOT_ENCLOSING:
        return None, annotations.ConversionEvent(shapes.NO_BOX, where, kind)
    if kind == "polygon":
        xs, ys = (
            documents.number_list(shape.get(key), f"{where}: {key}")
            for key in ("all_points_x", "all_points_y")
        )
        box_xywh = shapes.polygon(xs, ys, where)
    elif kind == "circle":
        x, y, radius = documents.numbers(shape, ("cx", "cy", "r"), where)
        box_xywh = shapes.ellipse(x, y, radius, radius)
    elif kind == "ellipse":
        x, y, rx, ry = documents.numbers(shape, ("cx", "cy", "rx", "ry"), where)
        (radians,) = documents.number_list([shape.get("theta", 0)], where)
        box_xywh = shapes.ellipse(x, y, rx, ry, math.degrees(radians))
    else:
        raise errors.UserError(
            f"{where} has the shape {str(kind)[:50]!r}; expected rect, polygon, circle "
            "or ellipse."
        )
    return box_xywh, annotations.ConversionEvent(shapes.FRAMED, where, kind)
