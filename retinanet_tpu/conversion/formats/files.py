"""Reads annotation files, and finds images in their folder by name."""

import codecs
import concurrent.futures
import csv
import io
import itertools
import math
import os
import posixpath
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.conversion.formats import folder_walk, name_matching
from retinanet_tpu.data import annotations

UNREADABLE = annotations.UNREADABLE
# Opening a remote file takes ~50 ms, whatever its size, so many are opened at once.
_NUM_READERS = 16
_UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # Excel writes them.
_NUM_EXAMPLES = 3  # Names that an error shows.
# Matches in the written folder have precedence over matches in other folders.
_ROUNDS = (
    (name_matching.EXACT, name_matching.OTHER_ENDING),
    (name_matching.OTHER_FOLDER, name_matching.OTHER_FOLDER_AND_ENDING),
)


_Parsed = TypeVar("_Parsed")
# Arguments: the bytes of a file, and its name. Raises ValueError for invalid content.
ParseFn = Callable[[bytes, str], _Parsed]


class Matches(NamedTuple):
    """The images of a folder that match annotations, by key of the annotation.

    Attributes:
      names: The file name of the image, for each key that exactly one image matches.
      renamed: The keys of `names` whose image has another path than annotated.
      several: The file names, for each key that several images match equally well.
    """

    names: dict[Any, str]
    renamed: frozenset[Any]
    several: dict[Any, list[str]]


class ImageFolder:
    """The images of a folder, and a search for the names that annotations contain."""

    def __init__(self, folder: str, names: Iterable[str]):
        """Initializes the folder.

        Args:
          folder: The path of the folder.
          names: The names of its images, as returned by `list_images`.
        """
        self.folder = folder
        self.names = sorted(names)
        self._all = set(self.names)
        self._index = name_matching.NameIndex(self.names)

    @property
    def example_names(self) -> str:
        """Returns the names of a few images, for error messages."""
        examples = ", ".join(self.names[:_NUM_EXAMPLES])
        if not examples:
            return "no image of a supported format"
        return examples + (", ..." if len(self.names) > _NUM_EXAMPLES else "")

    def has(self, name: str) -> bool:
        """Returns whether the folder has a file, with or without an extension."""
        if name in self._all:
            return True
        extension = os.path.splitext(name)[1].lower()
        if extension in name_matching.image_extensions() or not name:
            return False  # Files with these extensions are all in `names`.
        try:
            return tf.io.gfile.exists(os.path.join(self.folder, name))
        except (tf.errors.OpError, UnicodeError, ValueError):
            return False  # Not a valid file name.

    def match(self, candidates: Mapping[Any, Sequence[Sequence[str]]]) -> Matches:
        """Finds the image of each annotation, exact matches first.

        An image that one annotation names exactly is not assigned to another annotation
        that names it loosely: the image of that other annotation is missing.

        Args:
          candidates: The names that each image may have, best name first, by any key.
            Each name is a sequence of the paths that it may stand for: absolute, or
            relative to the folder.

        Returns:
          The matches, by the same keys.

        Raises:
          UserError: Two images of the folder differ only in their extension, and an
            annotation matches neither exactly.
        """
        unmatched = {
            key: [_spellings(paths) for paths in names]
            for key, names in candidates.items()
        }
        names: dict[Any, str] = {}
        several: dict[Any, list[str]] = {}
        renamed: set[Any] = set()
        num_ranks = max(map(len, unmatched.values()), default=0)
        for levels in _ROUNDS:
            for rank, level in itertools.product(range(num_ranks), levels):
                for key, hits in self._hits(unmatched, rank, level, names).items():
                    del unmatched[key]
                    if len(hits) == 1:
                        names[key] = hits[0]
                        if level:
                            renamed.add(key)
                    elif level < name_matching.OTHER_FOLDER:
                        message = self._ambiguous(candidates[key][0][0], hits)
                        raise errors.UserError(message)
                    else:
                        several[key] = hits
        return Matches(names, frozenset(renamed), several)

    def _hits(
        self,
        unmatched: Mapping[Any, Sequence[Sequence[str]]],
        rank: int,
        level: int,
        names: Mapping[Any, str],
    ) -> dict[Any, list[str]]:
        """Returns the images that match the names of one rank, at one level.

        Args:
          unmatched: The spellings of each name of each image, by key.
          rank: The index into the names of an image, best name first.
          level: The level of agreement, a constant of `name_matching`.
          names: The images that are assigned already. They are left out.
        """
        assigned = set(names.values())
        all_hits = {}
        for key, spellings in unmatched.items():
            for path in spellings[rank] if rank < len(spellings) else ():
                hits = [n for n in self._at(level, path) if n not in assigned]
                if hits:
                    all_hits[key] = hits
                    break
        return all_hits

    def _at(self, level: int, path: str) -> list[str]:
        """Returns the images that match a path relative to the folder, or absolute."""
        hits = self._index.at(level, path)
        if not hits and "/" in path and level < name_matching.OTHER_FOLDER:
            inside = below(path, self.folder)
            hits = self._index.at(level, inside) if inside else []
        return hits

    def _ambiguous(self, written: str, hits: list[str]) -> str:
        return (
            f"{self.folder} has {' and '.join(hits)}; annotations of {written} "
            "may refer to either. Keep one, or rename it and annotate both."
        )


def list_images(folder: str) -> list[str]:
    """Returns the files of a folder that have the extension of an image.

    Args:
      folder: The path of the folder.

    Returns:
      The names relative to the folder, including those in subfolders, sorted.

    Raises:
      MissingFileError: The folder does not exist.
    """
    extensions = name_matching.image_extensions()
    return sorted(folder_walk.walk(folder, lambda extension: extension in extensions))


def list_files(folder: str, extension: str) -> list[str]:
    """Returns the files of a folder that have an extension, as `list_images` does.

    Args:
      folder: The path of the folder.
      extension: The extension in lower case, with its dot.

    Raises:
      MissingFileError: The folder does not exist.
      UserError: The folder contains no such file.
    """
    names = sorted(folder_walk.walk(folder, lambda candidate: candidate == extension))
    if not names:
        raise errors.UserError(
            f"{folder} contains no {extension} file; check --annotations."
        )
    return names


def parse_each(
    folder: str, names: list[str], parse_fn: ParseFn[_Parsed]
) -> tuple[dict[str, _Parsed], list[annotations.ConversionEvent]]:
    """Reads and parses many annotation files concurrently.

    Args:
      folder: The folder of the files.
      names: The names of the files, relative to the folder.
      parse_fn: The function that parses one file.

    Returns:
      The parsed contents by name, and an event for each file that cannot be read.

    Raises:
      UserError: None of the files can be read.
    """

    def parse(name: str) -> _Parsed | annotations.ConversionEvent:
        try:
            with tf.io.gfile.GFile(os.path.join(folder, name), "rb") as file:
                return parse_fn(file.read(), name)
        # LookupError: an unknown encoding. RecursionError: brackets nested too deeply.
        except (ValueError, LookupError, RecursionError) as error:
            detail = str(error).removesuffix(".")
            return annotations.ConversionEvent(UNREADABLE, name, detail, name)

    parsed: dict[str, _Parsed] = {}
    unreadable: list[annotations.ConversionEvent] = []
    with concurrent.futures.ThreadPoolExecutor(_NUM_READERS) as readers:
        for name, result in zip(names, readers.map(parse, names), strict=True):
            if isinstance(result, annotations.ConversionEvent):
                unreadable.append(result)
            else:
                parsed[name] = result
    if not parsed:
        first = unreadable[0]
        raise errors.UserError(
            f"None of the {len(names)} annotation files in {folder} could be read; "
            f"{first.location}: {first.detail}. Check --format and --annotations."
        )
    return parsed, unreadable


def read_bytes(path: str) -> bytes:
    """Returns the content of a file that a flag names.

    Raises:
      MissingFileError: The file does not exist, or is a folder.
    """
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return file.read()
    except tf.errors.NotFoundError as error:
        raise errors.MissingFileError(f"No file {path}; check the flags.") from error
    except tf.errors.FailedPreconditionError as error:
        raise errors.MissingFileError(
            f"{path} is a folder; a file was expected. Check the flags."
        ) from error


def read_text(path: str) -> str:
    """Returns the text of a file in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
      MissingFileError: The file does not exist, or is a folder.
      UserError: The file has another encoding.
    """
    return decode(read_bytes(path), path)


def decode(content: bytes, path: str) -> str:
    """Decodes text in UTF-8, or in UTF-16 with a byte order mark.

    Args:
      content: The bytes of the file.
      path: The name of the file, for error messages.

    Raises:
      UserError: The content has another encoding, or is not text.
    """
    try:
        return content.decode(encoding(content))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise errors.UserError(
            f"{path} is not UTF-8 text (line {line}: {error.reason}); save it as UTF-8."
        ) from error


def encoding(content: bytes) -> str:
    """Returns the encoding that a byte order mark indicates; UTF-8 without one."""
    return "utf-16" if content.startswith(_UTF_16_MARKS) else "utf-8-sig"


def csv_rows(path: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the line number and the fields of each line that is not empty.

    Args:
      path: The CSV file.

    Raises:
      MissingFileError: The file does not exist, or is a folder.
      UserError: The file has another encoding, or is not CSV.
    """
    text = read_text(path)
    rows = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=csv_delimiter(text.partition("\n")[0]),
        skipinitialspace=True,
    )
    try:
        for row in rows:
            if any(row):
                yield rows.line_num, row
    except csv.Error as error:
        raise errors.UserError(f"{path}, line {rows.line_num}: {error}.") from error


def csv_delimiter(line: str) -> str:
    """Returns the delimiter of a table: a comma, a semicolon or a tab.

    In locales with decimal commas, spreadsheets write semicolons.

    Args:
      line: The first line of the table.
    """
    return next((sign for sign in ",;\t" if sign in line), ",")


def image_size(height: Any, width: Any, where: str) -> tuple[int, int]:
    """Returns the height and width of an image as annotated, in px; 0 if absent.

    Args:
      height: The height, a number or its text; None or "" if absent.
      width: The width, likewise.
      where: The location in the file, for error messages.

    Raises:
      UserError: A value is not a number, is not finite or is negative.
    """
    values = numbers((height or 0, width or 0), where)
    if not all(math.isfinite(value) and value >= 0 for value in values):
        raise errors.UserError(f"{where}: an image of {width} x {height} px")
    return int(values[0]), int(values[1])


def numbers(texts: Iterable[Any], where: str) -> list[float]:
    """Returns values as numbers.

    Args:
      texts: The numbers or their texts.
      where: The location in the file, for error messages.

    Raises:
      UserError: A value is not a number.
    """
    values = []
    for text in texts:
        try:
            values.append(float(text))
        except (TypeError, ValueError, OverflowError) as error:
            raise errors.UserError(
                f"{where}: expected a number, got {reprlib.repr(text)}"
            ) from error
    return values


def _spellings(paths: Iterable[str]) -> list[str]:
    """Returns all distinct spellings of some paths, with forward slashes."""
    spellings = [name_matching.spellings(path) for path in paths]
    return [path for path in dict.fromkeys(itertools.chain(*spellings)) if path]


def below(path: str, folder: str) -> str | None:
    """Returns a path relative to a folder; "" for the folder, None if outside it."""
    path, folder = map(absolute, (path, folder))
    if path == folder:
        return ""
    return path[len(folder) + 1 :] if path.startswith(folder + "/") else None


def absolute(path: str) -> str:
    """Returns a path as absolute and without `..`; a URL keeps its scheme."""
    scheme, colon, rest = path.rpartition("://")
    return (
        scheme + colon + (posixpath.normpath(rest) if colon else os.path.abspath(rest))
    )
