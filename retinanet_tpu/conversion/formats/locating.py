"""Finds the files of annotated images, and counts images without one."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from retinanet_tpu import errors
from retinanet_tpu.conversion.formats import files
from retinanet_tpu.data import annotations

RENAMED = "images found under another path than annotated"
SEVERAL = "images that match several files, left out"
_MAX_MISSING = 0.5  # A larger fraction means that a flag is wrong.
_NUM_EXAMPLES = 3  # Names that an error shows.


class NamedImage(Protocol):
    """An image record of a reader, such as `annotations.AnnotatedImage`."""

    @property
    def file_name(self) -> str:
        """Returns the file name."""

    @property
    def source(self) -> str:
        """Returns the annotation file, or the record in it."""

    def _replace(self: "_Image", *, file_name: str = ...) -> "_Image": ...


_Image = TypeVar("_Image", bound=NamedImage)


def locate(
    images: Sequence[_Image],
    names: Sequence[Sequence[Sequence[str]]],
    image_folder: files.ImageFolder,
    *,
    counts_renamed: bool,
) -> tuple[list[_Image], list[annotations.ConversionEvent], set[str]]:
    """Replaces the annotated file names of images by those in the folder.

    An image that is not in the folder keeps its name; the converter reports it. An
    image that matches several files is left out.

    Args:
      images: The images as annotated.
      names: The names that each image may have, as in `ImageFolder.match`.
      image_folder: The folder of images.
      counts_renamed: Whether a file in another folder or with another extension is an
        event; False for formats that do not contain the file name.

    Returns:
      The images, without those that match several files; the events about images that
      are renamed or left out; and the files that match an annotated image.
    """
    matches = image_folder.match(dict(enumerate(names)))
    located: list[_Image] = []
    events: list[annotations.ConversionEvent] = []
    matched = {*matches.names.values()}.union(*matches.several.values())
    for number, image in enumerate(images):
        if several := matches.several.get(number):
            events.append(ambiguous_name(image.file_name, several, image.source))
            continue
        name = matches.names.get(number, image.file_name)
        if counts_renamed and number in matches.renamed:
            detail = f"annotated as {image.file_name} in {image.source}"
            events.append(annotations.ConversionEvent(RENAMED, name, detail, name))
        located.append(image._replace(file_name=name))
    return located, events, matched


def ambiguous_name(
    written: str, several: Sequence[str], source: str
) -> annotations.ConversionEvent:
    """Returns the event for an image name that matches several files equally well.

    Args:
      written: The name as annotated.
      several: The names of the files.
      source: The annotation file, or the record in it.
    """
    detail = f"{' or '.join(several)}; annotated in {source}"
    return annotations.ConversionEvent(SEVERAL, written, detail, written)


def check_exist(
    annotated: annotations.AnnotatedSet, image_folder: files.ImageFolder
) -> None:
    """Checks that most annotated images are in the folder, before any is read.

    Args:
      annotated: The annotations.
      image_folder: The folder of images.

    Raises:
      UserError: More than half are missing. The message contains annotated names and
        names in the folder.
    """
    missing = [i for i in annotated.images if not image_folder.has(i.file_name)]
    several = [event for event in annotated.events if event.kind == SEVERAL]
    total = len(annotated.images) + len(several)
    num_lost = len(missing) + len(several)
    if num_lost <= _MAX_MISSING * total:
        return
    if len(several) > len(missing):
        first = several[0]
        raise errors.UserError(
            f"{num_lost} of {total} images are not found: names such as "
            f"{first.location} match several files below {image_folder.folder}: "
            f"{first.detail}. Set --images to the one folder that is meant."
        )
    examples = ", ".join(image.file_name for image in missing[:_NUM_EXAMPLES])
    raise errors.UserError(
        f"{num_lost} of {total} images are missing on disk, such as {examples} "
        f"(annotated in {missing[0].source}); {image_folder.folder} has "
        f"{image_folder.example_names}. Check --images."
    )
