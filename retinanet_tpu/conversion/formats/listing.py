"""Makes an AnnotatedSet of a file that lists many images with their boxes."""

import posixpath
from collections.abc import Iterable, Sequence
from typing import Any

from retinanet_tpu import errors
from retinanet_tpu.conversion.formats import assembly, files, locating
from retinanet_tpu.data import annotations

NO_CLASS = "boxes without a class, dropped"
_MAX_WITHOUT_CLASS = 0.5  # A larger fraction is not an accident.


def assemble(
    contents: Iterable[assembly.Content],
    *,
    path: str,
    image_folder: files.ImageFolder,
    categories: list[dict[str, Any]] | None,
    unit: str,
    events: Sequence[annotations.ConversionEvent] = (),
    declared: Iterable[str] = (),
    names: Sequence[Sequence[str]] | None = None,
) -> annotations.AnnotatedSet:
    """Finds the image files of a file's entries, and numbers its classes.

    Args:
      contents: The annotations of each image, with file names as the file contains
        them.
      path: The annotation file.
      image_folder: The folder of images.
      categories: The classes; None for the declared ones, then all others that occur,
        sorted.
      unit: The unit that `source_line` counts, such as "region"; for reports.
      events: The events that concern the file or an omitted entry.
      declared: The names of the classes that the file declares, in its order.
      names: The names that each image may have, best name first; None if each entry
        contains the file name.

    Raises:
      UserError: Most boxes have no class, or a class is not in `categories`.
    """
    contents = list(contents)
    _check_classes(contents)
    images = [content.image for content in contents]
    if categories is None:
        labels = {item.label for image in images for item in image.objects}
        declared = list(dict.fromkeys(declared))
        others = sorted(labels.difference(declared))
        categories = assembly.number_classes([*declared, *others])
    beside = posixpath.dirname(path)
    candidates = [
        [(name, posixpath.join(beside, name)) for name in of_image]
        for of_image in names or [[image.file_name] for image in images]
    ]
    located, of_names, matched = locating.locate(
        images, candidates, image_folder, counts_renamed=names is None
    )
    ambiguous = {e.image for e in of_names if e.kind == locating.SEVERAL}
    kept = [c for c in contents if c.image.file_name not in ambiguous]
    of_images = [
        event._replace(image=image.file_name)
        for content, image in zip(kept, located, strict=True)
        for event in content.events
    ]
    unannotated = annotations.images_without_annotation(image_folder.names, matched)
    return assembly.assemble(
        located,
        categories,
        unit=unit,
        events=[*events, *of_images, *of_names, *unannotated],
    )


def _check_classes(contents: list[assembly.Content]) -> None:
    """Raises UserError if most boxes have no class."""
    without = [e for c in contents for e in c.events if e.kind == NO_CLASS]
    total = len(without) + sum(len(content.image.objects) for content in contents)
    if len(without) > _MAX_WITHOUT_CLASS * total:
        raise errors.UserError(
            f"{len(without)} of {total} boxes have no class, first "
            f"{without[0].location}; give them one in the annotation tool."
        )
