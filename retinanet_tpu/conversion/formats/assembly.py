"""From what the files of a format say to an AnnotatedSet: ids, classes, areas."""

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from retinanet_tpu import errors
from retinanet_tpu.conversion.formats import files, locating
from retinanet_tpu.data import annotations

FROM_OUTLINE = "boxes taken from the outline of the object"
# labelme's names for regions to leave out and for the rest; others write the third.
NO_CLASSES = ("__ignore__", "_background_", "__background__")
_NO_CLASS = "objects of no class (__ignore__, _background_), dropped"
# What image/source_id may hold, and fits an int64.
_MAX_DIGITS = 18


class LabeledBox(NamedTuple):
    """One box as a file has it."""

    label: str  # what the file calls the class
    box_xywh: tuple[float, float, float, float]
    place: int  # which line or record of the file
    is_crowd: bool = False


class Content(NamedTuple):
    """The content of an annotation file that is about one image."""

    picture: "ReadImage"
    findings: list[annotations.ConversionEvent]


class ReadImage(NamedTuple):
    """One image as a file has it."""

    file_name: str
    height: int  # 0 where the file does not say
    width: int
    objects: Sequence[LabeledBox]
    source: str


def number_classes(labels: Iterable[str], *, first_id: int = 1) -> list[dict[str, Any]]:
    """Returns COCO's categories of class names, numbered in their order."""
    return [{"id": i, "name": name} for i, name in enumerate(labels, start=first_id)]


def classes_of(pictures: Iterable[ReadImage]) -> list[dict[str, Any]]:
    """Returns COCO's categories of all classes that occur, sorted by name."""
    labels = {o.label for p in pictures for o in p.objects}
    # Last, so that the numbers have no gap when they are taken out.
    return number_classes(sorted(labels, key=lambda name: (name in NO_CLASSES, name)))


def without_no_classes(annotated: annotations.AnnotatedSet) -> annotations.AnnotatedSet:
    """Returns a set without the names that labelme and others use for no class.

    `__ignore__` marks a region to be left out for all classes. A crowd is of one class,
    so it cannot stand for that; the objects are dropped and counted.
    """
    names = {c["id"]: c["name"] for c in annotated.categories}
    dropped = {i for i, name in names.items() if name in NO_CLASSES}
    if not dropped or len(dropped) == len(names):
        return annotated
    images, findings = [], list(annotated.events)
    for image in annotated.images:
        kept = tuple(o for o in image.objects if o.category_id not in dropped)
        findings += [
            annotations.ConversionEvent(
                _NO_CLASS,
                annotations.source_line_of(image, item),
                names[item.category_id],
                image.file_name,
            )
            for item in image.objects
            if item.category_id in dropped
        ]
        images.append(image._replace(objects=kept))
    categories = [c for c in annotated.categories if c["id"] not in dropped]
    return annotations.AnnotatedSet(images, categories, tuple(findings))


def assemble(
    pictures: Iterable[ReadImage],
    categories: list[dict[str, Any]],
    *,
    unit: str,
    findings: Sequence[annotations.ConversionEvent] = (),
    ids: Mapping[str, int] | None = None,
    is_norm: bool = False,
) -> annotations.AnnotatedSet:
    """Makes the record of what the files of a format say.

    Images are sorted by name. Their ids are the names where all are numbers, else 1,
    2, ...; annotation ids run on.

    Args:
      images: each once.
      categories: COCO's dicts of id and name.
      unit: what the places count, for reports.
      findings: of the reading.
      ids: what the files call a class -> category id; None if it is the name.
      is_norm: boxes are shares of the image's sides.

    Raises:
      UserError: an object is of none of the classes.
    """
    if ids is None:
        ids = {category["name"]: category["id"] for category in categories}
    pictures = sorted(pictures, key=lambda p: (annotations.stem(p.file_name), p))
    images, next_id = [], 1
    for image_id, picture in zip(_image_ids(pictures), pictures, strict=True):
        objects = []
        for item in picture.objects:
            if item.label not in ids:
                raise errors.UserError(_unknown(item, picture, unit, ids))
            area = item.box_xywh[2] * item.box_xywh[3]
            objects.append(
                annotations.AnnotatedObject(
                    annotation_id=next_id + len(objects),
                    category_id=ids[item.label],
                    box_xywh=item.box_xywh,
                    area=area,
                    is_crowd=item.is_crowd,
                    source_line=item.place,
                )
            )
        next_id += len(objects)
        images.append(
            annotations.AnnotatedImage(
                image_id=image_id,
                file_name=picture.file_name,
                height=picture.height,
                width=picture.width,
                objects=tuple(objects),
                source=picture.source,
                unit=unit,
                is_norm=is_norm,
            )
        )
    return annotations.AnnotatedSet(images, categories, tuple(findings))


def assemble_files(
    contents: Mapping[str, Content],
    categories: list[dict[str, Any]] | None,
    *,
    directory: str,
    pictures: files.ImageFolder,
    unit: str,
    findings: Sequence[annotations.ConversionEvent],
) -> annotations.AnnotatedSet:
    """Makes the record of a folder with one annotation file for each image.

    The image is that of the file's own name, else the one that the file names: programs
    that copy or rename leave the latter behind.

    Args:
      contents: The files that were read, by name relative to the directory.
      categories: The classes; None for all that occur, sorted.
      directory: The folder of annotation files.
      images: The folder of images.
      unit: what the places count, for reports.
      findings: Findings about files that could not be read.
    """
    candidates, images = [], []
    for name, (image, _) in contents.items():
        stem, written = annotations.stem(name), image.file_name
        beside = posixpath.join(directory, posixpath.dirname(name), written)
        candidates.append([[stem], [written, beside]])
        missing = stem + (posixpath.splitext(written)[1] or ".jpg")
        images.append(image._replace(file_name=missing))
    images, several, used = locating.locate(
        images, candidates, pictures, counts_renamed=False
    )
    file_names = {image.source: image.file_name for image in images}
    in_files = [
        finding._replace(image=file_names.get(name, name))
        for name, content in contents.items()
        for finding in content.findings
    ]
    used |= {annotations.stem(name) for name in contents}
    used |= {annotations.stem(finding.location) for finding in findings}
    unannotated = annotations.images_without_annotation(pictures.names, used)
    return assemble(
        images,
        classes_of(images) if categories is None else categories,
        unit=unit,
        findings=[*findings, *in_files, *several, *unannotated],
    )


def corners_to_xywh(
    xmin: float, ymin: float, xmax: float, ymax: float
) -> tuple[float, float, float, float]:
    """Returns left, top, width and height; sizes are negative for swapped corners."""
    return xmin, ymin, xmax - xmin, ymax - ymin


def _image_ids(pictures: list[ReadImage]) -> Iterable[int]:
    stems = [annotations.stem(picture.file_name) for picture in pictures]
    if all(s.isdecimal() and len(s) <= _MAX_DIGITS for s in stems):
        ids = [int(s) for s in stems]
        if len(set(ids)) == len(ids):
            return ids
    return range(1, len(pictures) + 1)


def _unknown(
    item: LabeledBox, picture: ReadImage, unit: str, ids: Mapping[str, int]
) -> str:
    same = [name for name in ids if _plain(name) == _plain(item.label)]
    hint = f" {same[0]!r} differs in case or blanks only." if same else ""
    known = ", ".join(list(ids)[:10]) + (", ..." if len(ids) > 10 else "")
    return (
        f"{picture.source}, {unit} {item.place} has class {item.label!r}; known are "
        f"{known}.{hint} They come from --names, --classes or categories.json."
    )


def _plain(name: str) -> str:
    return "".join(name.split()).casefold()
