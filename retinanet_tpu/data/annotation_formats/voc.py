"""Pascal VOC: an XML file for each picture, boxes in pixels, classes by name."""

import posixpath
import xml.etree.ElementTree
from typing import Any

from retinanet_tpu import errors
from retinanet_tpu.data import annotations
from retinanet_tpu.data.annotation_formats import assembly, files


def read(
    directory: str,
    *,
    pictures: files.Pictures,
    split_file: str | None = None,
    categories: list[dict[str, Any]] | None = None,
) -> annotations.AnnotatedSet:
    """Reads a folder of Pascal VOC XML files.

    Coordinates are taken as they stand; `difficult` is ignored.

    Args:
      directory: the XML files.
      pictures: the folder of images.
      split_file: text file, a stem on each line, as in ImageSets/Main; None for all.
      categories: the classes; None for all that occur in the folder, sorted, whatever
        the split.

    Raises:
      UserError: no XML file that can be read, or a class that is not known.
      MissingFileError: the split names a stem without an XML file.
    """
    names = files.list_files(directory, ".xml")
    parsed, findings = files.parse_each(directory, names, _parse)
    if categories is None:
        categories = assembly.found_classes(parsed.values())
    if split_file:
        stems = _split_stems(split_file)
        _check_stems(stems, names, directory, split_file)
        parsed = {n: p for n, p in parsed.items() if annotations.stem(n) in stems}
        findings = [f for f in findings if annotations.stem(f.where) in stems]
    found = [
        picture._replace(file_name=_file_name(name, picture.file_name, pictures))
        for name, picture in parsed.items()
    ]
    if not split_file:
        spoken_of = {annotations.stem(name) for name in names}
        spoken_of |= {picture.file_name for picture in found}
        findings += annotations.pictures_without_annotation(pictures.names, spoken_of)
    return assembly.assemble(found, categories, unit="object", findings=findings)


def _file_name(name: str, written: str, pictures: files.Pictures) -> str:
    """Returns the picture of an XML file; tools that rename leave <filename> behind."""
    stem = annotations.stem(name)
    return (
        pictures.by_stem(stem)
        or pictures.by_stem(posixpath.basename(stem))
        or pictures.by_stem(annotations.stem(posixpath.basename(written)))
        or written
        or f"{stem}.jpg"
    )


def _parse(content: bytes, name: str) -> assembly.Picture:
    try:
        root = xml.etree.ElementTree.fromstring(content)
    except xml.etree.ElementTree.ParseError as error:
        raise errors.UserError(f"not XML, or cut off: {error}") from error
    objects = []
    for number, element in enumerate(root.iter("object"), start=1):
        where = f"object {number}"
        label = element.findtext("name")
        if not label:
            raise errors.UserError(f"{where} has no <name>")
        sides = ("xmin", "ymin", "xmax", "ymax")
        corners = [element.findtext(f"bndbox/{side}") for side in sides]
        if None in corners:
            raise errors.UserError(f"{where} has no full <bndbox>")
        box_xywh = assembly.corners_to_xywh(*files.numbers(corners, where))
        objects.append(assembly.Labelled(label, box_xywh, number))
    size = files.sides(
        root.findtext("size/height"), root.findtext("size/width"), "<size>"
    )
    file_name = files.from_windows(root.findtext("filename") or "")
    return assembly.Picture(file_name, *size, objects, name)


def _split_stems(split_file: str) -> set[str]:
    """Returns the stems of a split; in VOC's lists of a class -1 marks absence."""
    rows = [line.split() for line in files.read_text(split_file).splitlines()]
    stems = {row[0] for row in rows if row and row[1:] != ["-1"]}
    if not stems:
        raise errors.UserError(f"{split_file} names no image.")
    return stems


def _check_stems(
    stems: set[str], names: list[str], directory: str, split_file: str
) -> None:
    absent = sorted(stems - set(map(annotations.stem, names)))
    if absent:
        raise errors.MissingFileError(
            f"{split_file} names {absent[0]}; {directory} has no {absent[0]}.xml."
        )
