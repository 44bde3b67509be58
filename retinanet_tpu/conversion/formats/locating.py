"""Gives annotated images the names of their files, and counts those without one."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from retinanet_tpu import errors
from retinanet_tpu.conversion.formats import files
from retinanet_tpu.data import annotations

RENAMED = "images taken under another path than annotated"
SEVERAL = "images of which several files may be meant, left out"
_MAX_MISSING = 0.5  # More are no slip of a person, but of the flags.
_NAMED = 3  # Examples that an error shows.


class Located(NamedTuple):
    """Annotated images with the names of their files."""

    images: list[Any]
    findings: list[annotations.ConversionEvent]
    used: set[str]  # images of the folder that an annotation is or may be about


def locate(
    images: Sequence[Any],
    names: Sequence[Sequence[Sequence[str]]],
    pictures: files.ImageFolder,
    *,
    counts_renamed: bool,
) -> Located:
    """Gives images the file names that they have in the folder.

    An image that is not in the folder keeps its name; the converter reports it. One
    that may be any of several files is left out.

    Args:
      images: Images as annotated: records with `file_name` and `source`.
      names: For each image its names, as `Pictures.match` takes them.
      images: The folder of images.
      counts_renamed: Whether an image found elsewhere or with another ending is a
        finding; False where annotations need not name the file.
    """
    matches = pictures.match(dict(enumerate(names)))
    located, findings = [], []
    used = {*matches.names.values()}.union(*matches.several.values())
    for number, image in enumerate(images):
        if several := matches.several.get(number):
            findings.append(several_meant(image.file_name, several, image.source))
            continue
        name = matches.names.get(number, image.file_name)
        if counts_renamed and number in matches.renamed:
            detail = f"annotated as {image.file_name} in {image.source}"
            findings.append(annotations.ConversionEvent(RENAMED, name, detail, name))
        located.append(image._replace(file_name=name))
    return Located(located, findings, used)


def several_meant(
    written: str, several: Sequence[str], source: str
) -> annotations.ConversionEvent:
    """Returns a finding about an image name that fits several files equally well."""
    detail = f"{' or '.join(several)}; annotated in {source}"
    return annotations.ConversionEvent(SEVERAL, written, detail, written)


def check_exist(
    annotated: annotations.AnnotatedSet, pictures: files.ImageFolder
) -> None:
    """Checks that most images are in the folder, before any is read.

    Raises:
      UserError: More than half are not; contains names of both sides.
    """
    missing = [i for i in annotated.images if not pictures.has(i.file_name)]
    several = [f for f in annotated.events if f.kind == SEVERAL]
    total, num_lost = len(annotated.images) + len(several), len(missing) + len(several)
    if num_lost <= _MAX_MISSING * total:
        return
    if len(several) > len(missing):
        first = several[0]
        raise errors.UserError(
            f"{num_lost} of {total} images are not found: names such as {first.location} "
            f"fit several files below {pictures.folder}: {first.detail}. Set --images "
            "to the one folder that is meant."
        )
    named = ", ".join(image.file_name for image in missing[:_NAMED])
    raise errors.UserError(
        f"{num_lost} of {total} images are missing on disk, such as {named} (annotated "
        f"in {missing[0].source}); {pictures.folder} has {pictures.some}. Check "
        "--images."
    )
