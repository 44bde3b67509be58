"""Finds files by the names that annotation tools write for them.

A written name may be a path of another machine or contain backslashes. Its folder may
differ, and its extension may differ or be absent.
"""

import collections
import functools
import posixpath
import re
import unicodedata
import urllib.parse
from collections.abc import Callable, Iterable

import PIL.Image

_ANNOTATION_EXTENSIONS = {".json", ".txt", ".xml"}
# Formats of phones. The images are converted before training, the names remain.
_PHONE_EXTENSIONS = {".avif", ".heic", ".heif"}
_LOCAL_FILE = "?d="  # Label Studio: /data/local-files/?d=folder/a.jpg

# The levels of agreement between a written path and a file's path, strictest first.
EXACT, OTHER_ENDING, OTHER_FOLDER, OTHER_FOLDER_AND_ENDING = range(4)


@functools.cache
def image_extensions() -> frozenset[str]:
    """Returns the extensions of images that Pillow reads, in lower case."""
    PIL.Image.init()  # Without it only the most common formats are registered.
    return frozenset(PIL.Image.registered_extensions())


def plain_path(written: str) -> str:
    """Normalizes a written path: slashes, no host, no query, no outer blanks.

    >>> plain_path(" C:\\\\data\\\\a.jpg"), plain_path("https://x.org/b/a.jpg?key=1")
    ('C:/data/a.jpg', '/b/a.jpg')
    """
    path = written.strip()
    if _LOCAL_FILE in path:
        path = urllib.parse.unquote(path.partition(_LOCAL_FILE)[2])
    if path.startswith(("http://", "https://", "file://")):
        without_host = path.partition("://")[2].partition("/")[2]
        path = "/" + urllib.parse.unquote(re.split("[?#]", without_host)[0])
    path = path.replace("\\", "/")
    return posixpath.normpath(path) if path and "://" not in path else path


def spellings(written: str) -> list[str]:
    """Returns the plain path, then its URL-decoded and URL-encoded variants.

    >>> spellings("a%20b.jpg"), spellings("a b.jpg")
    (['a%20b.jpg', 'a b.jpg'], ['a b.jpg', 'a%20b.jpg'])
    """
    path = plain_path(written)
    decoded = urllib.parse.unquote(path)
    # A lone surrogate in a name cannot be encoded as UTF-8.
    encoded = urllib.parse.quote(decoded, errors="replace")
    return list(dict.fromkeys((path, decoded, encoded)))


def stem(path: str) -> str:
    """Removes the extension of an image or annotation file, if there is one."""
    root, extension = posixpath.splitext(path)
    known = image_extensions() | _ANNOTATION_EXTENSIONS | _PHONE_EXTENSIONS
    return root if extension.lower() in known else path


class NameIndex:
    """An index of file paths that is searched by the names in annotations."""

    def __init__(self, names: Iterable[str]):
        """Initializes the index.

        Args:
          names: The paths of the files, relative to one folder.
        """
        self.names = sorted(names)
        self._tables: dict[int, dict[str, list[str]]] = {}

    def at(self, level: int, written: str) -> list[str]:
        """Returns the names that agree with a written path at one level.

        Args:
          level: EXACT: the same path. OTHER_ENDING: the extension or the case may
            differ. OTHER_FOLDER: only the file name must be the same.
            OTHER_FOLDER_AND_ENDING: both may differ.
          written: The path, as returned by `plain_path`.

        Returns:
          The names, sorted. Where the folder may differ, only the names with the
          largest number of common folders are returned. Folders are compared from the
          end of the path.
        """
        hits = self._table(level).get(_KEYS[level](_composed(written)), [])
        if len(hits) < 2 or level < OTHER_FOLDER:
            return list(hits)
        shared = [_num_shared(written, name) for name in hits]
        return [n for n, num in zip(hits, shared, strict=True) if num == max(shared)]

    def find(self, written: str) -> list[str]:
        """Returns the names that agree at the first level that has any.

        Each spelling of the path is searched, including its URL-decoded and its
        URL-encoded variant.
        """
        for spelling in spellings(written):
            for level in range(len(_KEYS)):
                if hits := self.at(level, spelling):
                    return hits
        return []

    def _table(self, level: int) -> dict[str, list[str]]:
        """Returns names by key. A level is built on first use, because it is large."""
        if level not in self._tables:
            table: dict[str, list[str]] = collections.defaultdict(list)
            for name in self.names:
                table[_KEYS[level](_composed(name))].append(name)
            table.pop("", None)
            self._tables[level] = table
        return self._tables[level]


def _composed(path: str) -> str:
    """Composes accented letters; file systems differ in how they store them."""
    return path if path.isascii() else unicodedata.normalize("NFC", path)


def _num_shared(path: str, other: str) -> int:
    """Returns the number of equal trailing folders, ignoring the file name."""
    folders, others = (p.casefold().split("/")[-2::-1] for p in (path, other))
    num_shared = 0
    for folder, other_folder in zip(folders, others, strict=False):
        if folder != other_folder:
            break
        num_shared += 1
    return num_shared


_KEYS: tuple[Callable[[str], str], ...] = (
    lambda path: path,
    lambda path: stem(path).casefold(),
    posixpath.basename,
    lambda path: stem(posixpath.basename(path)).casefold(),
)
