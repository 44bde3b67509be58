"""Makes the record of a file that lists many images with their boxes."""

import posixpath
from collections.abc import Iterable, Sequence
from typing import Any

from retinanet_tpu import errors
from retinanet_tpu.data import annotations
from retinanet_tpu.data.annotation_formats import assembly, files

NO_CLASS = "boxes without a class, dropped"
_MAX_WITHOUT_CLASS = 0.5  # More is no slip of a person.


def assemble(
    found: Iterable[assembly.Picture],
    *,
    path: str,
    pictures: files.Pictures,
    categories: list[dict[str, Any]] | None,
    unit: str,
    findings: Sequence[annotations.Finding] = (),
    declared: Iterable[str] = (),
) -> annotations.AnnotatedSet:
    """Finds the images of a file's entries and numbers its classes.

    Args:
      found: The images, with names as the file has them.
      path: The file.
      pictures: The folder of images.
      categories: The classes; None for those that the file declares or, if it declares
        none, for all that occur, sorted.
      unit: What the objects' places count.
      findings: Those of the reading.
      declared: Names of the classes that the file lists, in its order.

    Raises:
      UserError: Most boxes have no class, or a class is not one of `categories`.
    """
    found = [
        picture._replace(
            file_name=find(picture.file_name, path, pictures)
            or files.from_windows(picture.file_name)
        )
        for picture in found
    ]
    _check_classes(found, findings)
    if categories is None:
        occurring = {item.label for picture in found for item in picture.objects}
        declared = list(dict.fromkeys(declared))
        others = sorted(occurring.difference(declared))
        categories = assembly.number_classes([*declared, *others])
    absent = annotations.pictures_without_annotation(
        pictures.names, {picture.file_name for picture in found}
    )
    return assembly.assemble(
        found, categories, unit=unit, findings=[*findings, *absent]
    )


def find(written: str, path: str, pictures: files.Pictures) -> str | None:
    """Returns the name of an image in the folder, or None if it is not there.

    Args:
      written: A name or path, as the file has it.
      path: The file.
      pictures: The folder of images.
    """
    name, beside = files.from_windows(written), posixpath.dirname(path)
    return (
        pictures.by_path(name, beside=beside)
        or pictures.by_path(posixpath.basename(name), beside=beside)
        or pictures.by_stem(annotations.stem(posixpath.basename(name)))
    )


def _check_classes(
    found: list[assembly.Picture], findings: Sequence[annotations.Finding]
) -> None:
    without = [finding for finding in findings if finding.what == NO_CLASS]
    total = len(without) + sum(len(picture.objects) for picture in found)
    if len(without) > _MAX_WITHOUT_CLASS * total:
        raise errors.UserError(
            f"{len(without)} of {total} boxes have no class, first "
            f"{without[0].where}; give them one in the annotation tool."
        )
