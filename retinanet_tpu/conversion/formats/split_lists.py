"""Reads lists of a split's images: texts with a name on each line, and data.yaml."""

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
_MAX_UNKNOWN = 0.5  # With more unknown names the list belongs to other images.
_NAMED = 3  # Examples that an error shows.
# VOC's list of a class: 1 has it, -1 has not, 0 has difficult ones only.
_CLASS_LIST_LINE = re.compile(r"(.*\S)\s+(-1|0|1)")
_NOTHING = ("~", "null", "None")  # As YAML and people write it.
_ALIASES = {"val": ("valid", "validation"), "valid": ("val", "validation")}


class Selection(NamedTuple):
    """The images of a split."""

    names: set[str]
    findings: list[annotations.ConversionEvent]  # lines that are no image


def read(
    split_file: str, *, word: str, names: Iterable[str], images_dir: str
) -> Selection:
    """Reads which images a split has.

    Args:
      split_file: A text with an image on each line: a path of any machine, a file name
        or a stem. Or YOLO's data.yaml, with such texts or folders.
      word: The key of the split in a data.yaml.
      names: File names of the images that there are, relative to `images_dir`.
      images_dir: The folder of images.

    Raises:
      UserError: The file names no image, most of its names are not among `names`, or
        one fits several of them.
      MissingFileError: There is no such file.
    """
    index = name_matching.NameIndex(names)
    if not is_yaml(split_file):
        return _from_text(split_file, index)
    content, selection = data_yaml.read(split_file), Selection(set(), [])
    for entry in _entries(content, word, split_file):
        places = _places(entry, content.get("path"), split_file, images_dir)
        if entry.endswith(".txt"):
            found = _from_text(_list_path(entry, places, split_file), index)
            selection.findings.extend(found.findings)
            selection.names.update(found.names)
        else:
            inside = [files.below(place, images_dir) for place in places]
            is_there = any(map(tf.io.gfile.isdir, places))
            selection.names.update(
                _in_folder(entry, inside, split_file, index, is_there=is_there)
            )
    return selection


def is_yaml(split_file: str) -> bool:
    """Returns whether a split file is a data.yaml, which has all splits."""
    return split_file.lower().endswith((".yaml", ".yml"))


def _from_text(path: str, index: name_matching.NameIndex) -> Selection:
    names, findings, num_lines = set(), [], 0
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
                f"{path}, line {number}: {text} may be {' or '.join(hits[:_NAMED])}; "
                "write its path."
            )
        names.update(hits)
        if not hits:
            where = f"{os.path.basename(path)}, line {number}"
            findings.append(annotations.ConversionEvent(_NOT_ANNOTATED, where, text))
    if len(findings) > _MAX_UNKNOWN * num_lines:
        raise errors.UserError(
            f"{len(findings)} of {num_lines} names in {path}, such as "
            f"{findings[0].detail}, are no annotated images; there are "
            f"{_some(index.names)}. Check --split_file, --images and --annotations."
        )
    if not names:
        raise errors.UserError(f"{path} names no image.")
    return Selection(names, findings)


def _entries(content: dict[str, Any], word: str, path: str) -> list[str]:
    """Returns the lists and folders that a data.yaml has for a split."""
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
        f"{word} out of --split, write --split={word}=KEY for another key, or let "
        "--val_fraction divide the images in place of --split and --split_file."
    )


def _places(entry: str, root: Any, yaml_path: str, images_dir: str) -> list[str]:
    """Returns where an entry of a data.yaml may be, the likeliest first.

    YOLO takes entries from `path:`, which may be a folder of another machine. Roboflow
    writes ../train/images for a folder that lies beside the file.
    """
    folder, entry = os.path.dirname(yaml_path), name_matching.plain_path(entry)
    root = name_matching.plain_path(root) if isinstance(root, str) else ""
    inside = re.sub(r"^(\.\./)+", "", entry)
    return [
        posixpath.join(folder, root, entry),
        posixpath.join(folder, entry),
        posixpath.join(folder, inside),
        posixpath.join(images_dir, inside),
    ]


def _list_path(entry: str, places: Sequence[str], yaml_path: str) -> str:
    for place in places:
        if tf.io.gfile.exists(place):
            return place
    raise errors.MissingFileError(
        f"{yaml_path} names the list {entry}, which is not beside it; give the list "
        "itself with --split_file."
    )


def _in_folder(
    entry: str,
    places: Iterable[str | None],
    yaml_path: str,
    index: name_matching.NameIndex,
    *,
    is_there: bool,
) -> list[str]:
    """Returns the images below a folder that a data.yaml names.

    Args:
      entry: The folder, as the file has it.
      places: Where it may be, relative to the folder of images; None if outside.
      yaml_path: The file.
      index: The names of the images.
      is_there: Whether there is such a folder.
    """
    for place in places:
        if place is not None and (found := _below(place, index.names)):
            return found
    folders = name_matching.NameIndex(_folders(index.names))
    path = name_matching.plain_path(entry)
    hits = folders.at(name_matching.OTHER_FOLDER, path)
    if len(hits) == 1:
        return _below(hits[0], index.names)
    if not is_there:
        raise errors.UserError(
            f"{yaml_path} names the folder {entry}, which is neither beside it nor "
            "below --images. Correct it there, or leave its split out of --split."
        )
    raise errors.UserError(
        f"{yaml_path} names the folder {entry}, which has no annotated image below "
        f"--images; there are {_some(index.names)}. Set --images to a folder above it."
    )


def _below(folder: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if not folder or name.startswith(f"{folder}/")]


def _folders(names: Iterable[str]) -> set[str]:
    """Returns all folders that files are in, and the folders above them."""
    folders = set()
    for name in names:
        folder = posixpath.dirname(name)
        while folder and folder not in folders:
            folders.add(folder)
            folder = posixpath.dirname(folder)
    return folders


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
