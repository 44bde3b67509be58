"""Reads VIA (VGG Image Annotator 1 and 2): one CSV or JSON file, shapes in pixels.

The annotations as CSV or JSON, and the project file, are read. VIA's COCO export is
read by `coco`.
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
_MAX_NAMED = 10  # Attributes that an error names.
_NOT_ENCLOSING = ("polyline", "point")


class _Region(NamedTuple):
    """A region as the file has it."""

    shape: dict[str, Any]
    attributes: dict[str, Any]
    place: int
    where: str


class _Image(NamedTuple):
    """An image as the file has it."""

    file_name: str
    regions: list[_Region]
    source: str


def read(
    path: str,
    *,
    pictures: files.ImageFolder,
    categories: list[dict[str, Any]] | None = None,
    class_attribute: str | None = None,
) -> annotations.AnnotatedSet:
    """Reads an export of VIA; polygons, circles and ellipses become boxes.

    Args:
      path: The CSV or JSON file.
      images: The folder of images.
      categories: The classes; None for the options of the project, or for all that
        occur in the file, sorted. One class is that of all boxes if regions have no
        attributes.
      class_attribute: The region attribute that names the class; None if there is one.

    Raises:
      UserError: The file has another structure, no or several region attributes could
        be the class, or a class is not known.
      MissingFileError: There is no such file.
    """
    text = files.read_text(path)
    project, unit = {}, "line"
    if text.lstrip()[:1] in ("{", "["):
        project = documents.is_a(documents.load_json(text, path), dict, path)
        unit, images = "region", list(_from_json(project, path))
    else:
        images = list(_from_csv(text, path))
    only_class = categories[0]["name"] if categories and len(categories) == 1 else None
    attribute = _class_attribute(images, class_attribute, only_class, path)
    if only_class and not attribute:
        images = [_with_attributes(image, {attribute: only_class}) for image in images]
    options = _options(project, attribute)
    return listing.assemble(
        [_content(image, attribute, options) for image in images],
        path=path,
        pictures=pictures,
        categories=categories,
        unit=unit,
        declared=options.values(),
    )


def _content(
    image: _Image, attribute: str, options: dict[str, str]
) -> assembly.Content:
    objects, findings = [], []
    for region in image.regions:
        box_xywh = _box(region, findings)
        labels = _labels(region.attributes.get(attribute), region.where)
        if box_xywh is None:
            continue
        if not labels:
            findings.append(annotations.ConversionEvent(listing.NO_CLASS, region.where))
        objects += [
            assembly.LabeledBox(options.get(label, label), box_xywh, region.place)
            for label in labels
        ]
    picture = assembly.ReadImage(image.file_name, 0, 0, objects, image.source)
    return assembly.Content(picture, findings)


def _from_json(content: dict[str, Any], path: str) -> Iterator[_Image]:
    entries = content.get("_via_img_metadata", content)
    entries = documents.is_a(entries, dict, f"{path}: _via_img_metadata")
    for key, entry in entries.items():
        where = f"{path}: {key}"
        documents.is_a(entry, dict, where)
        name = documents.get(entry, ["filename"], str, where)
        source = f"{os.path.basename(path)}, {name}"
        regions = entry.get("regions", [])
        if isinstance(regions, dict):  # VIA 1 numbers them by keys.
            regions = list(regions.values())
        found = []
        for place, region in enumerate(
            documents.is_a(regions, list, f"{where}: regions"), start=1
        ):
            here = f"{source}, region {place}"
            documents.is_a(region, dict, here)
            shape = documents.get(region, ["shape_attributes"], dict, here)
            attributes = documents.get(region, ["region_attributes"], dict, here)
            found.append(_Region(shape, attributes, place, here))
        yield _Image(name, found, source)


def _from_csv(text: str, path: str) -> Iterator[_Image]:
    """Yields each image once; its regions have a line each."""
    rows = csv.reader(io.StringIO(text, newline=""))
    source, images, columns = os.path.basename(path), {}, None
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
            name, count, shape, attributes = (row[columns[key]] for key in _COLUMNS)
            image = images.setdefault(name, _Image(name, [], source))
            shape = _object(shape, where)
            if shape or count.strip() not in ("", "0"):
                attributes = _object(attributes, where)
                region = _Region(shape, attributes, rows.line_num, where)
                image.regions.append(region)
    except csv.Error as error:
        raise errors.UserError(f"{path}, line {rows.line_num}: {error}.") from error
    if columns is None:
        raise errors.UserError(f"{path} is empty.")
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
    return documents.is_a(content, dict, where)


def _with_attributes(image: _Image, attributes: dict[str, Any]) -> _Image:
    regions = [region._replace(attributes=attributes) for region in image.regions]
    return image._replace(regions=regions)


def _class_attribute(
    images: list[_Image], wanted: str | None, only_class: str | None, path: str
) -> str:
    """Returns the region attribute that names the class, "" if there is none."""
    used = {}
    for image in images:
        for region in image.regions:
            for name, value in region.attributes.items():
                if value not in ("", None, {}):
                    used.setdefault(name)
    named = ", ".join(list(used)[:_MAX_NAMED])
    if wanted is not None:
        if wanted not in used and used:
            raise errors.UserError(
                f"--class_attribute={wanted} is no region attribute of {path}; there "
                f"are {named}."
            )
        return wanted
    if len(used) > 1:
        raise errors.UserError(
            f"{path} has the region attributes {named}; say which is the class "
            f"with --class_attribute={next(iter(used))} or another."
        )
    if not used and not only_class and any(image.regions for image in images):
        raise errors.UserError(
            f"{path} has no region attribute, so its boxes have no class; name the one "
            "class of all boxes with --names=NAME, or give each region its class in "
            "VIA."
        )
    return next(iter(used), "")


def _options(project: dict[str, Any], attribute: str) -> dict[str, str]:
    """Returns the classes that a project declares: as regions have them -> name."""
    found = project.get("_via_attributes", {})
    for key in ("region", attribute, "options"):
        found = found.get(key, {}) if isinstance(found, dict) else {}
    if not isinstance(found, dict):
        return {}
    # VIA's own numbers have their names as descriptions; the description of a name is
    # a remark.
    return {
        key: text.strip() if key.isdecimal() and _is_text(text) else key
        for key, text in found.items()
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
    region: _Region, findings: list[annotations.ConversionEvent]
) -> shapes.Box | None:
    """Returns the box around a region; None if it encloses nothing."""
    shape, where = region.shape, region.where
    kind = shape.get("name")
    if kind == "rect":
        return tuple(documents.numbers(shape, ("x", "y", "width", "height"), where))
    if kind in _NOT_ENCLOSING:
        findings.append(annotations.ConversionEvent(shapes.NO_BOX, where, kind))
        return None
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
        sizes = documents.numbers(shape, ("cx", "cy", "rx", "ry"), where)
        (radians,) = documents.number_list([shape.get("theta", 0)], where)
        box_xywh = shapes.ellipse(*sizes, math.degrees(radians))
    else:
        raise errors.UserError(
            f"{where} has the shape {str(kind)[:50]!r}; expected rect, polygon, circle "
            "or ellipse."
        )
    findings.append(annotations.ConversionEvent(shapes.FRAMED, where, kind))
    return box_xywh
