"""Reads the lists of a split's images: text files, one name per line, and data.yaml."""

import os
import posixpath
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.conversion.formats import data_yaml, files, name_matching
from retinanet_tpu.data import annotations

_NOT_ANNOTATED = "names in a split file without an annotated image, passed over"
# A list with a larger share of unknown names belongs to other images.
_MAX_UNKNOWN = 0.5
_MAX_NAMED = 3  # Examples in an error.
# Lines of VOC's list of a class. 1: the image contains the class. -1: it does not.
# 0: it contains difficult objects only.
_CLASS_LIST_LINE = re.compile(r"(.*\S)\s+(-1|0|1)")
_NOTHING = ("~", "null", "None")  # Empty values in YAML, and Python's None.
_ALIASES = {"val": ("valid", "validation"), "valid": ("val", "validation")}


class Selection(NamedTuple):
    """The images of a split.

    Attributes:
      names: The file names of the images.
      events: The lines that match no image.
    """

    names: set[str]
    events: list[annotations.ConversionEvent]


def read(
    split_file: str, *, word: str, names: Iterable[str], images_dir: str
) -> Selection:
    """Reads the images of a split.

    Args:
      split_file: A text file with one image per line (a path of any machine, a file
        name, or a stem), or YOLO's data.yaml, which lists such files or folders.
      word: The key of the split in a data.yaml.
      names: The file names of the existing images, relative to `images_dir`.
      images_dir: The folder of images.

    Raises:
      UserError: The file contains no image, most of its names are not among `names`,
        or a name matches several images.
      MissingFileError: The file does not exist.
    """
    index = name_matching.NameIndex(names)
    if not is_yaml(split_file):
        return _read_list(split_file, index)
    content = data_yaml.read(split_file)
    selection = Selection(set(), [])
    for entry in _entries(content, word, split_file):
        paths = _candidate_paths(entry, content.get("path"), split_file, images_dir)
        if entry.endswith(".txt"):
            listed = _read_list(_list_path(entry, paths, split_file), index)
            selection.events.extend(listed.events)
            selection.names.update(listed.names)
        else:
            folders = [files.below(path, images_dir) for path in paths]
            exists = any(map(tf.io.gfile.isdir, paths))
            selection.names.update(
                _images_in_folder(entry, folders, split_file, index, exists=exists)
            )
    return selection


def is_yaml(split_file: str) -> bool:
    """Returns True for a data.yaml, which contains all splits."""
    return split_file.lower().endswith((".yaml", ".yml"))


def _read_list(path: str, index: name_matching.NameIndex) -> Selection:
    names: set[str] = set()
    events: list[annotations.ConversionEvent] = []
    num_lines = 0
    for number, line in enumerate(files.read_text(path).splitlines(), start=1):
        if not (text := line.strip()):
            continue
        num_lines += 1
        hits = index.find(text) or index.find(text.strip("\"' ,"))
        if not hits and (parts := _CLASS_LIST_LINE.fullmatch(text)):
            text = parts[1]
            hits = index.find(text)
            if hits and parts[2] == "-1":
                continue
        if len(hits) > 1:
            raise errors.UserError(
                f"{path}, line {number}: {text} may be "
                f"{' or '.join(hits[:_MAX_NAMED])}; write its path."
            )
        names.update(hits)
        if not hits:
            where = f"{os.path.basename(path)}, line {number}"
            events.append(annotations.ConversionEvent(_NOT_ANNOTATED, where, text))
    if len(events) > _MAX_UNKNOWN * num_lines:
        raise errors.UserError(
            f"{len(events)} of {num_lines} names in {path}, such as "
            f"{events[0].detail}, are no annotated images; the annotated images are "
            f"{_examples(index.names)}. Check --split_file, --images and --annotations."
        )
    if not names:
        raise errors.UserError(
            f"{path} contains no image; expected one per line. Check --split_file."
        )
    return Selection(names, events)


def _entries(content: dict[str, Any], word: str, path: str) -> list[str]:
    """Returns the lists and folders of a split in a data.yaml."""
    for key in (word, *_ALIASES.get(word, ())):
        if (value := content.get(key)) and value not in _NOTHING:
            entries = [value] if isinstance(value, str) else value
            if isinstance(entries, list) and all(isinstance(e, str) for e in entries):
                return entries
            raise errors.UserError(
                f"{path} has {key}: {value}; expected a folder, a .txt list, or a list "
                "of these."
            )
    keys = ("train", "val", "valid", "test")
    others = [key for key in keys if content.get(key, "") not in ("", *_NOTHING)]
    raise errors.UserError(
        f"{path} has no {word!r}; it has {', '.join(others) or 'no split'}. Leave "
        f"{word} out of --split, write --split={word}=KEY for another key, or use "
        "--val_fraction instead of --split and --split_file."
    )


def _candidate_paths(
    entry: str, root: Any, yaml_path: str, images_dir: str
) -> list[str]:
    """Returns the possible paths of a data.yaml's entry, the most likely first.

    In YOLO, entries are relative to `path:`, which may be a folder of another machine.
    Roboflow writes ../train/images for a folder beside the file.
    """
    folder = os.path.dirname(yaml_path)
    entry = name_matching.plain_path(entry)
    root = name_matching.plain_path(root) if isinstance(root, str) else ""
    inside = re.sub(r"^(\.\./)+", "", entry)
    return [
        posixpath.join(folder, root, entry),
        posixpath.join(folder, entry),
        posixpath.join(folder, inside),
        posixpath.join(images_dir, inside),
    ]


def _list_path(entry: str, paths: Sequence[str], yaml_path: str) -> str:
    for path in paths:
        if tf.io.gfile.exists(path):
            return path
    raise errors.MissingFileError(
        f"{yaml_path} names the list {entry}, which is not beside it; pass the list "
        "itself with --split_file."
    )


def _images_in_folder(
    entry: str,
    candidates: Iterable[str | None],
    yaml_path: str,
    index: name_matching.NameIndex,
    *,
    exists: bool,
) -> list[str]:
    """Returns the images below a folder of a data.yaml.

    Args:
      entry: The folder, as written in the file.
      candidates: The possible folders, relative to the folder of images; None for one
        outside.
      yaml_path: The path of the data.yaml.
      index: The names of the images.
      exists: True if one of the possible folders exists on disk.
    """
    for folder in candidates:
        if folder is not None and (names := _below(folder, index.names)):
            return names
    folders = name_matching.NameIndex(_folders(index.names))
    path = name_matching.plain_path(entry)
    hits = folders.at(name_matching.OTHER_FOLDER, path)
    if len(hits) == 1:
        return _below(hits[0], index.names)
    if not exists:
        raise errors.UserError(
            f"{yaml_path} names the folder {entry}, which is neither beside it nor "
            "below --images. Correct the file, or leave the split out of --split."
        )
    raise errors.UserError(
        f"{yaml_path} names the folder {entry}, which has no annotated image below "
        f"--images; the annotated images are {_examples(index.names)}. Set --images to "
        "a folder above it."
    )


def _below(folder: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if not folder or name.startswith(f"{folder}/")]


def _folders(names: Iterable[str]) -> set[str]:
    """Returns the folders of files, and all folders above them."""
    folders: set[str] = set()
    for name in names:
        folder = posixpath.dirname(name)
        while folder and folder not in folders:
            folders.add(folder)
            folder = posixpath.dirname(folder)
    return folders


def _examples(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
