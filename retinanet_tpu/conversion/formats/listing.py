"""Makes the record of a file that lists many images with their boxes."""

import posixpath
from collections.abc import Iterable, Sequence
from typing import Any

from retinanet_tpu import errors
from retinanet_tpu.conversion.formats import assembly, files, locating
from retinanet_tpu.data import annotations

NO_CLASS = "boxes without a class, dropped"
_MAX_WITHOUT_CLASS = 0.5  # More is no slip of a person.


def assemble(
    contents: Iterable[assembly.Content],
    *,
    path: str,
    pictures: files.ImageFolder,
    categories: list[dict[str, Any]] | None,
    unit: str,
    findings: Sequence[annotations.ConversionEvent] = (),
    declared: Iterable[str] = (),
    names: Sequence[Sequence[str]] | None = None,
) -> annotations.AnnotatedSet:
    """Finds the images of a file's entries and numbers its classes.

    Args:
      contents: The images and what was found in each, with names as the file has them.
      path: The file.
      images: The folder of images.
      categories: The classes; None for those that the file declares or, if it declares
        none, for all that occur, sorted.
      unit: What the objects' places count.
      findings: Findings that are about no image in particular.
      declared: Names of the classes that the file lists, in its order.
      names: What each image may be called, best name first, for files that do not have
        the images' own names.

    Raises:
      UserError: Most boxes have no class, or a class is not one of `categories`.
    """
    contents = list(contents)
    _check_classes(contents)
    if categories is None:
        labels = {o.label for content in contents for o in content.picture.objects}
        declared = list(dict.fromkeys(declared))
        others = sorted(labels.difference(declared))
        categories = assembly.number_classes([*declared, *others])
    beside, images = posixpath.dirname(path), [content.picture for content in contents]
    candidates = [
        [(name, posixpath.join(beside, name)) for name in of_image]
        for of_image in names or [[image.file_name] for image in images]
    ]
    located, unclear, used = locating.locate(
        images, candidates, pictures, counts_renamed=names is None
    )
    doubtful = {f.image for f in unclear if f.kind == locating.SEVERAL}
    kept = [c for c in contents if c.picture.file_name not in doubtful]
    in_images = [
        finding._replace(image=image.file_name)
        for content, image in zip(kept, located, strict=True)
        for finding in content.findings
    ]
    absent = annotations.images_without_annotation(pictures.names, used)
    return assembly.assemble(
        located,
        categories,
        unit=unit,
        findings=[*findings, *in_images, *unclear, *absent],
    )


def _check_classes(contents: list[assembly.Content]) -> None:
    without = [f for c in contents for f in c.findings if f.kind == NO_CLASS]
    total = len(without) + sum(len(content.picture.objects) for content in contents)
    if len(without) > _MAX_WITHOUT_CLASS * total:
        raise errors.UserError(
            f"{len(without)} of {total} boxes have no class, first "
            f"{without[0].location}; give them one in the annotation tool."
        )
