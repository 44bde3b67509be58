"""What the readers of annotations share: their files, and the folder of images."""

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
from typing import Any, NamedTuple

import tensorflow as tf

from retinanet_tpu import errors, json_files
from retinanet_tpu.conversion.formats import name_matching
from retinanet_tpu.data import annotations

UNREADABLE = annotations.UNREADABLE
# Opening a remote file takes ~50 ms, whatever its size: many at once.
_NUM_READERS = 16
_UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # As Excel writes.
# What macOS puts beside files and into archives.
_OF_SYSTEMS = ("._", "__MACOSX")
_NAMED = 3  # Examples that an error shows.
# All names in their own folder come before any name in another folder.
_ROUNDS = (
    (name_matching.EXACT, name_matching.OTHER_ENDING),
    (name_matching.OTHER_FOLDER, name_matching.OTHER_FOLDER_AND_ENDING),
)


class Matches(NamedTuple):
    """The images of a folder that annotations are about, by key of the annotation."""

    names: dict[Any, str]  # where exactly one image fits
    renamed: frozenset[Any]  # those of them that have another path than is written
    several: dict[Any, list[str]]  # where more than one fits equally well


class ImageFolder:
    """The images of a folder, found by what annotations call them."""

    def __init__(self, folder: str, names: Iterable[str]):
        """Takes the folder and its images' names, as `list_pictures` returns them."""
        self.folder = folder
        self.names = sorted(names)
        self._all = set(self.names)
        self._index = name_matching.NameIndex(self.names)

    @property
    def some(self) -> str:
        """Returns names of a few images, for errors."""
        named = ", ".join(self.names[:_NAMED]) or "no image of a format that is read"
        return named + (", ..." if len(self.names) > _NAMED else "")

    def has(self, name: str) -> bool:
        """Returns whether a file is in the folder, whatever its extension."""
        if name in self._all:
            return True
        extension = os.path.splitext(name)[1].lower()
        if extension in name_matching.image_extensions() or not name:
            return False  # It would be among the names.
        try:
            return tf.io.gfile.exists(os.path.join(self.folder, name))
        except (tf.errors.OpError, UnicodeError, ValueError):
            return False  # No name of a file.

    def match(self, wanted: Mapping[Any, Sequence[Sequence[str]]]) -> Matches:
        """Finds the image of each annotation, the certain ones first.

        An image that one annotation names exactly is not given to another one that
        names it loosely: that one's own image is missing.

        Args:
          wanted: By any key, the names of an image, best name first. Each is given as
            the paths that it may stand for: absolute, or relative to the folder.

        Raises:
          UserError: Two images of the folder differ in their ending only, and an
            annotation names neither exactly.
        """
        open_keys = {
            key: [_spellings(paths) for paths in names] for key, names in wanted.items()
        }
        names, several, renamed = {}, {}, set()
        depth = max(map(len, open_keys.values()), default=0)
        for levels in _ROUNDS:
            for place, level in itertools.product(range(depth), levels):
                taken, found = set(names.values()), {}
                for key, spellings in open_keys.items():
                    for path in spellings[place] if place < len(spellings) else ():
                        hits = self._at(level, path)
                        if hits := [name for name in hits if name not in taken]:
                            found[key] = hits
                            break
                for key, hits in found.items():
                    del open_keys[key]
                    if len(hits) == 1:
                        names[key] = hits[0]
                        renamed |= {key} if level else set()
                    elif level < name_matching.OTHER_FOLDER:
                        raise errors.UserError(self._either(wanted[key][0][0], hits))
                    else:
                        several[key] = hits
        return Matches(names, frozenset(renamed), several)

    def _at(self, level: int, path: str) -> list[str]:
        hits = self._index.at(level, path)
        if not hits and "/" in path and level < name_matching.OTHER_FOLDER:
            inside = below(path, self.folder)
            hits = self._index.at(level, inside) if inside else []
        return hits

    def _either(self, written: str, hits: list[str]) -> str:
        return (
            f"{self.folder} has {' and '.join(hits)}; annotations of {written} "
            "could be of either. Keep one, or rename it and annotate both."
        )


def list_images(folder: str) -> list[str]:
    """Returns the files of a folder that are images by their extension.

    Returns:
      Names relative to the folder, those in its subfolders included, sorted.

    Raises:
      MissingFileError: there is no such folder.
    """
    extensions = name_matching.image_extensions()
    return sorted(_walk(folder, "", lambda extension: extension in extensions))


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
) -> tuple[dict[str, Any], list[annotations.ConversionEvent]]:
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
            detail = str(error).removesuffix(".")
            return annotations.ConversionEvent(UNREADABLE, name, detail, name)

    with concurrent.futures.ThreadPoolExecutor(_NUM_READERS) as readers:
        results = dict(zip(names, readers.map(parse, names), strict=True))
    broken = [r for r in results.values() if isinstance(r, annotations.ConversionEvent)]
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
    except tf.errors.NotFoundError as error:
        raise errors.MissingFileError(f"No file {path}; check the flags.") from error
    except tf.errors.FailedPreconditionError as error:
        raise errors.MissingFileError(
            f"{path} is a folder; a file was expected. Check the flags."
        ) from error


def read_text(path: str) -> str:
    """Reads a text file as UTF-8, with or without a byte order mark.

    Raises:
      MissingFileError: there is none.
      UserError: it is in another encoding.
    """
    return decode(read_bytes(path), path)


def decode(content: bytes, path: str) -> str:
    """Returns the text of a file in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
      UserError: It is in another encoding, or no text.
    """
    try:
        return content.decode(encoding(content))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise errors.UserError(
            f"{path} is not UTF-8 text (line {line}: {error.reason}); save it as UTF-8."
        ) from error


def encoding(content: bytes) -> str:
    """Returns the encoding of a text by its byte order mark, UTF-8 without one."""
    return "utf-16" if content.startswith(_UTF_16_MARKS) else "utf-8-sig"


def parse_json(
    content: bytes,
    path: str,
    *,
    without: str,
    visit_fn: Callable[[dict[str, Any]], None] = lambda entry: None,
) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Args:
      content: the file.
      path: to name it in errors.
      without: a key that is left out wherever it stands, as it is large and unused.
      visit_fn: Called on each object of the file before the key is left out.

    Raises:
      UserError: the file is cut off, or not a JSON object.
    """

    def shorten(entry: dict[str, Any]) -> dict[str, Any]:
        visit_fn(entry)
        entry.pop(without, None)
        return entry

    found = load_json(content, path, object_hook=shorten)
    return found if isinstance(found, dict) else {}


def load_json(
    content: bytes | str,
    path: str,
    *,
    object_hook: Callable[[dict[str, Any]], Any] | None = None,
) -> Any:
    """Returns the content of a JSON file.

    Args:
      content: The file, or its text.
      path: Its name, for errors.
      object_hook: As in `json.loads`.

    Raises:
      UserError: The file is no JSON, is cut off or is nested too deeply.
    """
    text = content if isinstance(content, str) else decode(content, path)
    return json_files.parse(text, path, object_hook=object_hook)


def csv_rows(path: str) -> Iterator[tuple[int, list[str]]]:
    """Yields line number and fields of each line of a CSV file that has any."""
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
    """Returns what stands between the fields of a table's first line.

    Where numbers have decimal commas, spreadsheets write semicolons.
    """
    return next((sign for sign in ",;\t" if sign in line), ",")


def sides(height: Any, width: Any, where: str) -> tuple[int, int]:
    """Returns an image's size as annotated, 0 if absent; ValueError if no number."""
    values = numbers((height or 0, width or 0), where)
    if not all(math.isfinite(value) and value >= 0 for value in values):
        raise errors.UserError(f"{where}: an image of {width} x {height} px")
    return int(values[0]), int(values[1])


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


def _spellings(paths: Iterable[str]) -> list[str]:
    """Returns paths with slashes, in all spellings, each once."""
    spelled = [name_matching.spellings(path) for path in paths]
    return [path for path in dict.fromkeys(itertools.chain(*spelled)) if path]


def _walk(
    folder: str,
    below: str,
    is_wanted: Callable[[str], bool],
    above: frozenset[str] = frozenset(),
) -> Iterator[str]:
    """Yields the wanted files; `above` has the real paths of the folders above."""
    here = os.path.join(folder, below)
    try:
        names = tf.io.gfile.listdir(here)
    except tf.errors.NotFoundError as error:
        raise errors.MissingFileError(_no_folder(folder)) from error
    above |= {os.path.realpath(here)}
    for name in names:
        if name.startswith(_OF_SYSTEMS):
            continue
        # Cloud storage marks folders so, local ones are asked for.
        path = posixpath.join(below, name.rstrip("/"))
        extension = os.path.splitext(path)[1].lower()
        if is_wanted(extension):
            yield path
        # Asking takes a request: not for what is a file by all appearance.
        elif name.endswith("/") or tf.io.gfile.isdir(os.path.join(folder, path)):
            # Hidden folders have copies, and a link to a folder above has no end.
            is_again = os.path.realpath(os.path.join(folder, path)) in above
            if not name.startswith(".") and not is_again:
                yield from _walk(folder, path, is_wanted, above)


def _no_folder(folder: str) -> str:
    """Returns an error about a folder that is missing, with those beside it."""
    if tf.io.gfile.exists(folder):
        return f"{folder} is a file; a folder was expected."
    parent = posixpath.dirname(folder.rstrip("/")) or "."
    if not tf.io.gfile.isdir(parent):
        return f"No folder {folder}."
    paths = [posixpath.join(parent, name) for name in tf.io.gfile.listdir(parent)]
    folders = [posixpath.basename(p.rstrip("/")) for p in paths if tf.io.gfile.isdir(p)]
    more = ", ..." if len(folders) > _NAMED else ""
    named = ", ".join(sorted(folders)[:_NAMED]) or "no folder"
    return f"No folder {folder}; {parent} has {named}{more}."


def below(path: str, folder: str) -> str | None:
    """Returns a path relative to a folder, "" for the folder, None if it is outside."""
    path, folder = map(absolute, (path, folder))
    if path == folder:
        return ""
    return path[len(folder) + 1 :] if path.startswith(folder + "/") else None


def absolute(path: str) -> str:
    """Returns an absolute path without `..`; a URL keeps its scheme."""
    scheme, colon, rest = path.rpartition("://")
    return (
        scheme + colon + (posixpath.normpath(rest) if colon else os.path.abspath(rest))
    )
