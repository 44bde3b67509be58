"""Finds files by the names that annotation tools write for them.

Tools write paths of another machine, with backslashes, in another folder, with another
extension, or with none.
"""

import collections
import functools
import posixpath
import re
import unicodedata
import urllib.parse
from collections.abc import Callable, Iterable

import PIL.Image

_OF_ANNOTATIONS = {".json", ".txt", ".xml"}
# Phones write them, and people convert them before they train.
_OF_PHONES = {".avif", ".heic", ".heif"}
_LOCAL_FILE = "?d="  # Label Studio: /data/local-files/?d=folder/a.jpg

# How a written path and the path of a file may agree, from certain to loose.
EXACT, OTHER_ENDING, OTHER_FOLDER, OTHER_FOLDER_AND_ENDING = range(4)


@functools.cache
def image_extensions() -> frozenset[str]:
    """Returns the extensions of images that Pillow reads, in lower case."""
    PIL.Image.init()  # Without it only the most common formats are registered.
    return frozenset(PIL.Image.registered_extensions())


def plain_path(written: str) -> str:
    """Returns a path as text with slashes, without host, query and surrounding blanks.

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
    """Returns a path as `plain_path` does, then as a decoded and an encoded URL.

    >>> spellings("a%20b.jpg"), spellings("a b.jpg")
    (['a%20b.jpg', 'a b.jpg'], ['a b.jpg', 'a%20b.jpg'])
    """
    path = plain_path(written)
    decoded = urllib.parse.unquote(path)
    # A name of half a surrogate pair has no UTF-8.
    encoded = urllib.parse.quote(decoded, errors="replace")
    return list(dict.fromkeys((path, decoded, encoded)))


def stem(path: str) -> str:
    """Returns a path without the extension of an image or annotation file, if any."""
    root, extension = posixpath.splitext(path)
    known = extension.lower() in image_extensions() | _OF_ANNOTATIONS | _OF_PHONES
    return root if known else path


class NameIndex:
    """Paths of files, to be found by what other programs call them."""

    def __init__(self, names: Iterable[str]):
        """Takes the paths, relative to one folder."""
        self.names = sorted(names)
        self._tables = {}

    def at(self, level: int, written: str) -> list[str]:
        """Returns the names that agree with a written path, at one level.

        Args:
          level: EXACT: the same path. OTHER_ENDING: another extension, none, or other
            capitals. OTHER_FOLDER: the same file name. OTHER_FOLDER_AND_ENDING: both.
          written: The path, as `plain_path` returns it.

        Returns:
          The names, sorted. In other folders only those that share the most folders
          with the written path, counted from the end.
        """
        hits = self._table(level).get(_KEYS[level](_composed(written)), [])
        if len(hits) < 2 or level < OTHER_FOLDER:
            return list(hits)
        shared = [_num_shared(written, name) for name in hits]
        return [n for n, num in zip(hits, shared, strict=True) if num == max(shared)]

    def find(self, written: str) -> list[str]:
        """Returns the names that agree best with a path, at the first level with any.

        A name is also looked up as a URL, decoded and encoded.
        """
        for spelling in spellings(written):
            for level in range(len(_KEYS)):
                if hits := self.at(level, spelling):
                    return hits
        return []

    def _table(self, level: int) -> dict[str, list[str]]:
        """Returns names by key; a level is built when first needed, as it is large."""
        if level not in self._tables:
            table = collections.defaultdict(list)
            for name in self.names:
                table[_KEYS[level](_composed(name))].append(name)
            table.pop("", None)
            self._tables[level] = table
        return self._tables[level]


def _composed(path: str) -> str:
    """Returns a path with accents in one spelling, as systems differ in it."""
    return path if path.isascii() else unicodedata.normalize("NFC", path)


def _num_shared(path: str, other: str) -> int:
    """Returns how many trailing parts of two paths agree, the file name left out."""
    folders, others = (p.casefold().split("/")[-2::-1] for p in (path, other))
    num = 0
    for ours, theirs in zip(folders, others, strict=False):
        if ours != theirs:
            break
        num += 1
    return num


_KEYS: tuple[Callable[[str], str], ...] = (
    lambda path: path,
    lambda path: stem(path).casefold(),
    posixpath.basename,
    lambda path: stem(posixpath.basename(path)).casefold(),
)
