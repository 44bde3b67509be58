"""What the readers of annotations share: their files, and the folder of pictures."""

import concurrent.futures
import csv
import functools
import io
import json
import math
import os
import posixpath
import reprlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import PIL.Image
import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.data import annotations

UNREADABLE = "annotation files unreadable, their images left out"
# Opening a remote file takes ~50 ms, whatever its size: many at once.
_NUM_READERS = 16


class Pictures:
    """The pictures of a folder, found by what annotations call them."""

    def __init__(self, folder: str, names: Iterable[str]):
        """Takes the folder and its pictures' names, as `list_pictures` returns them."""
        self.names = sorted(names)
        self._folder = folder
        self._all = set(self.names)
        self._by_stem = {}
        for name in self.names:
            self._by_stem.setdefault(annotations.stem(name), []).append(name)

    def by_stem(self, stem: str) -> str | None:
        """Returns the picture of a stem, whatever its extension, or None.

        Raises:
          UserError: there are several.
        """
        found = self._by_stem.get(stem, [])
        if len(found) > 1:
            raise errors.UserError(
                f"{self._folder} has {' and '.join(found)}; annotations of {stem} "
                "could be of either. Keep one, or rename it and annotate both."
            )
        return found[0] if found else None

    def by_path(self, path: str, *, beside: str) -> str | None:
        """Returns the name in the folder of a picture that a file points to, or None.

        Args:
          path: relative to the folder, or to `beside`, or absolute.
          beside: folder of the file that points.
        """
        for candidate in (path, posixpath.join(beside, path)):
            name = posixpath.normpath(candidate)
            for found in (name, _below(candidate, self._folder)):
                if found in self._all:
                    return found
        return None


def list_pictures(folder: str) -> list[str]:
    """Returns the files of a folder that are pictures by their extension.

    Returns:
      Names relative to the folder, those in its subfolders included, sorted.

    Raises:
      MissingFileError: there is no such folder.
    """
    extensions = image_extensions()
    return sorted(_walk(folder, "", lambda extension: extension in extensions))


@functools.cache
def image_extensions() -> frozenset[str]:
    """Returns the extensions of images, such as .jpg."""
    PIL.Image.init()  # Else it knows the commonest formats only.
    return frozenset(PIL.Image.registered_extensions())


def list_files(folder: str, extension: str) -> list[str]:
    """Returns the files of an extension, as `list_pictures` does.

    Raises:
      MissingFileError: there is no such folder.
      UserError: it holds none.
    """
    names = sorted(_walk(folder, "", lambda found: found == extension))
    if not names:
        raise errors.UserError(
            f"{folder} holds no {extension} file; check --annotations."
        )
    return names


def parse_each(
    folder: str, names: list[str], parse_fn: Callable[[bytes, str], Any]
) -> tuple[dict[str, Any], list[annotations.Finding]]:
    """Reads many annotation files at once.

    Args:
      folder: holds them.
      names: relative to the folder.
      parse_fn: content and name -> what is in the file, or ValueError.

    Returns:
      What is in the files, by name, and a finding for each that could not be read.

    Raises:
      UserError: none could be read.
    """

    def parse(name: str) -> Any:
        try:
            with tf.io.gfile.GFile(os.path.join(folder, name), "rb") as file:
                return parse_fn(file.read(), name)
        # The latter two: an encoding that nobody knows, brackets without end.
        except (ValueError, LookupError, RecursionError) as error:
            return annotations.Finding(UNREADABLE, name, str(error))

    with concurrent.futures.ThreadPoolExecutor(_NUM_READERS) as readers:
        results = dict(zip(names, readers.map(parse, names), strict=True))
    broken = [r for r in results.values() if isinstance(r, annotations.Finding)]
    if len(broken) == len(names):
        raise errors.UserError(
            f"None of the {len(names)} annotation files in {folder} could be read; "
            f"{broken[0].where}: {broken[0].detail}. Check --format and --annotations."
        )
    for finding in broken:
        del results[finding.where]
    return results, broken


def read_bytes(path: str) -> bytes:
    """Reads a file that a person named; FileNotFoundError where there is none."""
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return file.read()
    except (tf.errors.NotFoundError, tf.errors.FailedPreconditionError) as error:
        raise errors.MissingFileError(f"No file {path}; check the flags.") from error


def read_text(path: str) -> str:
    """Reads a text file as UTF-8, with or without a byte order mark.

    Raises:
      MissingFileError: there is none.
      UserError: it is in another encoding.
    """
    return decode(read_bytes(path), path)


def decode(content: bytes, path: str) -> str:
    """Returns the text of a file; ValueError where it is not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise errors.UserError(
            f"{path} is not UTF-8 text (line {line}: {error.reason}); save it as UTF-8."
        ) from error


def parse_json(content: bytes, path: str, *, without: str) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Args:
      content: the file.
      path: to name it in errors.
      without: a key that is left out wherever it stands, as it is large and unused.

    Raises:
      UserError: the file is cut off, or not a JSON object.
    """

    def shorten(entry: dict[str, Any]) -> dict[str, Any]:
        entry.pop(without, None)
        return entry

    try:
        found = json.loads(decode(content, path), object_hook=shorten)
    except json.JSONDecodeError as error:
        raise errors.UserError(f"{path} is not JSON, or cut off: {error}.") from error
    return found if isinstance(found, dict) else {}


def csv_rows(path: str) -> Iterator[tuple[int, list[str]]]:
    """Yields line number and fields of each line of a CSV file that has any."""
    rows = csv.reader(io.StringIO(read_text(path), newline=""), skipinitialspace=True)
    try:
        for row in rows:
            if any(row):
                yield rows.line_num, row
    except csv.Error as error:
        raise errors.UserError(f"{path}, line {rows.line_num}: {error}.") from error


def sides(height: Any, width: Any, where: str) -> tuple[int, int]:
    """Returns a picture's size as annotated, 0 if absent; ValueError if no number."""
    values = numbers((height or 0, width or 0), where)
    if not all(math.isfinite(value) and value >= 0 for value in values):
        raise errors.UserError(f"{where}: a picture of {width} x {height} px")
    return int(values[0]), int(values[1])


def from_windows(path: str) -> str:
    """Returns a path as it may have been written on Windows, with slashes."""
    return path.strip().replace("\\", "/")


def numbers(texts: Iterable[Any], where: str) -> list[float]:
    """Returns numbers; ValueError, with where it stands, if one is none."""
    values = []
    for text in texts:
        try:
            values.append(float(text))
        except (TypeError, ValueError, OverflowError) as error:
            raise errors.UserError(
                f"{where}: expected a number, got {reprlib.repr(text)}"
            ) from error
    return values


def _walk(folder: str, below: str, is_wanted: Callable[[str], bool]) -> Iterator[str]:
    try:
        names = tf.io.gfile.listdir(os.path.join(folder, below))
    except tf.errors.NotFoundError as error:
        raise errors.MissingFileError(f"No folder {folder}.") from error
    for name in names:
        # Cloud storage marks folders so, local ones are asked for.
        path = posixpath.join(below, name.rstrip("/"))
        extension = os.path.splitext(path)[1].lower()
        if is_wanted(extension):
            yield path
        # Asking takes a request: not for what is a file by all appearance.
        elif name.endswith("/") or tf.io.gfile.isdir(os.path.join(folder, path)):
            yield from _walk(folder, path, is_wanted)


def _below(path: str, folder: str) -> str | None:
    """Returns a path relative to a folder that it is in, else None."""
    path, folder = map(_absolute, (path, folder))
    return path[len(folder) + 1 :] if path.startswith(folder + "/") else None


def _absolute(path: str) -> str:
    scheme, colon, rest = path.rpartition("://")
    return (
        scheme + colon + (posixpath.normpath(rest) if colon else os.path.abspath(rest))
    )
