"""Lists the files below a folder, local or on cloud storage."""

import os
import posixpath
from collections.abc import Callable, Iterator

import tensorflow as tf

from retinanet_tpu import errors

# Prefixes of files and folders that macOS adds beside files and in archives.
_SYSTEM_PREFIXES = ("._", "__MACOSX")
_NUM_EXAMPLES = 3  # Names that an error shows.
# Returns whether to list the files of an extension, in lower case and with its dot.
ExtensionFn = Callable[[str], bool]


def walk(folder: str, has_extension: ExtensionFn) -> Iterator[str]:
    """Yields the names of files below a folder, relative to it.

    Hidden folders, links to a folder above, and what macOS adds are left out.

    Args:
      folder: The path of the folder.
      has_extension: The function that returns whether to yield files of an extension.

    Raises:
      MissingFileError: The folder does not exist, or is a file.
    """
    yield from _walk(folder, "", has_extension, frozenset())


def _walk(
    folder: str,
    subfolder: str,
    has_extension: ExtensionFn,
    ancestors: frozenset[str],
) -> Iterator[str]:
    """Walks a subfolder. `ancestors` contains the real paths of the folders above."""
    current = os.path.join(folder, subfolder)
    try:
        names = tf.io.gfile.listdir(current)
    except tf.errors.NotFoundError as error:
        raise errors.MissingFileError(_no_folder(folder)) from error
    ancestors |= {os.path.realpath(current)}
    for name in names:
        if name.startswith(_SYSTEM_PREFIXES):
            continue
        # Listings of cloud storage mark folders by a slash; isdir tests local ones.
        path = posixpath.join(subfolder, name.rstrip("/"))
        extension = os.path.splitext(path)[1].lower()
        if has_extension(extension):
            yield path
        # isdir is a request on cloud storage, so it is last.
        elif name.endswith("/") or tf.io.gfile.isdir(os.path.join(folder, path)):
            # Hidden folders contain copies; a link to an ancestor is an endless loop.
            is_loop = os.path.realpath(os.path.join(folder, path)) in ancestors
            if not name.startswith(".") and not is_loop:
                yield from _walk(folder, path, has_extension, ancestors)


def _no_folder(folder: str) -> str:
    """Returns the error message for a missing folder, with the folders beside it."""
    if tf.io.gfile.exists(folder):
        return f"{folder} is a file; a folder was expected."
    parent = posixpath.dirname(folder.rstrip("/")) or "."
    if not tf.io.gfile.isdir(parent):
        return f"No folder {folder}."
    paths = [posixpath.join(parent, name) for name in tf.io.gfile.listdir(parent)]
    folders = [posixpath.basename(p.rstrip("/")) for p in paths if tf.io.gfile.isdir(p)]
    more = ", ..." if len(folders) > _NUM_EXAMPLES else ""
    examples = ", ".join(sorted(folders)[:_NUM_EXAMPLES]) or "no folder"
    return f"No folder {folder}; {parent} has {examples}{more}."
