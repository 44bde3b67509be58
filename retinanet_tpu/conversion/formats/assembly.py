"""Makes an AnnotatedSet of parsed annotation files: ids, classes and areas."""

import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from retinanet_tpu import errors
from retinanet_tpu.conversion.formats import files, locating, shapes
from retinanet_tpu.data import annotations

FROM_OUTLINE = "boxes taken from the outline of the object"
# labelme's names for regions to ignore and for the background. Other tools write the
# third.
NO_CLASSES = ("__ignore__", "_background_", "__background__")
_NO_CLASS = "objects of no class (__ignore__, _background_), dropped"
_MAX_DIGITS = 18  # Any number of 18 digits fits the int64 of image/source_id.
_MAX_NAMES = 10  # Classes that an error shows.


class LabeledBox(NamedTuple):
    """A box as annotated.

    Attributes:
      label: The class as the file names it.
      box_xywh: The left, top, width and height in px, or in fractions of the image's
        sides.
      source_line: The number of the line or record in the file.
      is_crowd: Whether the box encloses a crowd.
    """

    label: str
    box_xywh: shapes.Box
    source_line: int
    is_crowd: bool = False


class ReadImage(NamedTuple):
    """An image as annotated.

    Attributes:
      file_name: The file name as the file contains it.
      height: The height, px; 0 if absent.
      width: The width, px; 0 if absent.
      objects: The boxes.
      source: The file, or the record in it.
    """

    file_name: str
    height: int
    width: int
    objects: Sequence[LabeledBox]
    source: str


class Content(NamedTuple):
    """The annotations of one image, and the events of reading them."""

    image: ReadImage
    events: list[annotations.ConversionEvent]


def number_classes(labels: Iterable[str], *, first_id: int = 1) -> list[dict[str, Any]]:
    """Returns COCO categories of the class names, numbered in order."""
    return [{"id": i, "name": name} for i, name in enumerate(labels, start=first_id)]


def classes_of(images: Iterable[ReadImage]) -> list[dict[str, Any]]:
    """Returns COCO categories of all classes that occur, sorted by name."""
    labels = {item.label for image in images for item in image.objects}
    # NO_CLASSES are last, so that the ids have no gap after they are removed.
    return number_classes(sorted(labels, key=lambda name: (name in NO_CLASSES, name)))


def drop_no_classes(annotated: annotations.AnnotatedSet) -> annotations.AnnotatedSet:
    """Returns a set without NO_CLASSES and their objects; counts these objects.

    `__ignore__` marks a region to ignore for all classes. A crowd has one class, so it
    cannot represent such a region.
    """
    names = {c["id"]: c["name"] for c in annotated.categories}
    dropped = {i for i, name in names.items() if name in NO_CLASSES}
    if not dropped or len(dropped) == len(names):
        return annotated
    images: list[annotations.AnnotatedImage] = []
    events = list(annotated.events)
    for image in annotated.images:
        kept = tuple(o for o in image.objects if o.category_id not in dropped)
        events += [
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
    return annotations.AnnotatedSet(images, categories, tuple(events))


def assemble(
    images: Iterable[ReadImage],
    categories: list[dict[str, Any]],
    *,
    unit: str,
    events: Sequence[annotations.ConversionEvent] = (),
    ids: Mapping[str, int] | None = None,
    is_norm: bool = False,
) -> annotations.AnnotatedSet:
    """Makes an AnnotatedSet of parsed images, sorted by name.

    The id of an image is its name if the names of all images are numbers, else its
    rank, from 1. Annotation ids are 1, 2, ... across images.

    Args:
      images: The images, each once.
      categories: COCO's dicts of id and name.
      unit: The unit that `source_line` counts, such as "line"; for reports.
      events: The events of reading the files.
      ids: The category id of each label; None if labels are the categories' names.
      is_norm: Whether boxes are fractions of the image's sides.

    Raises:
      UserError: The class of an object is not in `ids`.
    """
    if ids is None:
        ids = {category["name"]: category["id"] for category in categories}
    read_images = sorted(images, key=lambda i: (annotations.stem(i.file_name), i))
    annotated_images: list[annotations.AnnotatedImage] = []
    next_id = 1
    for image_id, image in zip(_image_ids(read_images), read_images, strict=True):
        objects: list[annotations.AnnotatedObject] = []
        for item in image.objects:
            if item.label not in ids:
                raise errors.UserError(_unknown_class(item, image, unit, ids))
            area = item.box_xywh[2] * item.box_xywh[3]
            objects.append(
                annotations.AnnotatedObject(
                    annotation_id=next_id + len(objects),
                    category_id=ids[item.label],
                    box_xywh=item.box_xywh,
                    area=area,
                    is_crowd=item.is_crowd,
                    source_line=item.source_line,
                )
            )
        next_id += len(objects)
        annotated_images.append(
            annotations.AnnotatedImage(
                image_id=image_id,
                file_name=image.file_name,
                height=image.height,
                width=image.width,
                objects=tuple(objects),
                source=image.source,
                unit=unit,
                is_norm=is_norm,
            )
        )
    return annotations.AnnotatedSet(annotated_images, categories, tuple(events))


def read_folder(
    directory: str,
    extension: str,
    parse_fn: Callable[[bytes, str], Content],
    categories: list[dict[str, Any]] | None,
    *,
    image_folder: files.ImageFolder,
    unit: str,
) -> annotations.AnnotatedSet:
    """Reads a folder with one annotation file per image.

    The image has the name of the annotation file, or else the name that the file
    contains. The latter is often outdated, as tools that copy or rename files keep it.

    Args:
      directory: The folder of annotation files.
      extension: The extension of the annotation files, such as ".xml".
      parse_fn: Returns the content of a file from its bytes and its name.
      categories: The classes; None for all that occur, sorted.
      image_folder: The folder of images.
      unit: The unit that `source_line` counts, such as "object"; for reports.

    Raises:
      MissingFileError: The folder does not exist.
      UserError: The folder contains no such file, none can be read, or the class of an
        object is not in `categories`.
    """
    names = files.list_files(directory, extension)
    contents, events = files.parse_each(directory, names, parse_fn)
    candidates: list[list[list[str]]] = []
    images: list[ReadImage] = []
    for name, (image, _) in contents.items():
        stem = annotations.stem(name)
        written = image.file_name
        beside = posixpath.join(directory, posixpath.dirname(name), written)
        candidates.append([[stem], [written, beside]])
        missing = stem + (posixpath.splitext(written)[1] or ".jpg")
        images.append(image._replace(file_name=missing))
    images, of_names, matched = locating.locate(
        images, candidates, image_folder, counts_renamed=False
    )
    file_names = {image.source: image.file_name for image in images}
    of_images = [
        event._replace(image=file_names.get(name, name))
        for name, content in contents.items()
        for event in content.events
    ]
    # The images of files that cannot be read are reported already.
    matched |= {annotations.stem(name) for name in contents}
    matched |= {annotations.stem(event.location) for event in events}
    unannotated = annotations.images_without_annotation(image_folder.names, matched)
    return assemble(
        images,
        classes_of(images) if categories is None else categories,
        unit=unit,
        events=[*events, *of_images, *of_names, *unannotated],
    )


def corners_to_xywh(xmin: float, ymin: float, xmax: float, ymax: float) -> shapes.Box:
    """Returns left, top, width and height; sizes are negative for swapped corners."""
    return xmin, ymin, xmax - xmin, ymax - ymin


def _image_ids(images: list[ReadImage]) -> Iterable[int]:
    """Returns the names as numbers if all are distinct numbers, else 1, 2, ..."""
    stems = [annotations.stem(image.file_name) for image in images]
    if all(s.isdecimal() and len(s) <= _MAX_DIGITS for s in stems):
        ids = [int(s) for s in stems]
        if len(set(ids)) == len(ids):
            return ids
    return range(1, len(images) + 1)


def _unknown_class(
    item: LabeledBox, image: ReadImage, unit: str, ids: Mapping[str, int]
) -> str:
    """Returns the error message for an object whose class is not in `ids`."""
    similar = [name for name in ids if _normalized(name) == _normalized(item.label)]
    hint = f" {similar[0]!r} differs only in case or whitespace." if similar else ""
    known = ", ".join(list(ids)[:_MAX_NAMES])
    more = ", ..." if len(ids) > _MAX_NAMES else ""
    return (
        f"{image.source}, {unit} {item.source_line} has class {item.label!r}; known "
        f"are {known}{more}.{hint} Classes are set by --names, --classes or "
        "categories.json."
    )


def _normalized(name: str) -> str:
    """Returns a name without whitespace and in one case."""
    return "".join(name.split()).casefold()
