"""Divides annotated images into splits."""

import hashlib
import re
import shlex
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence

import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.conversion.formats import split_lists
from retinanet_tpu.data import annotations, category_map

PLACEHOLDER = "{split}"
_RESERVED = category_map.FILE_NAME.removesuffix(".json")
_SHARED = "images that another split has too"
# Findings about images that another split may have.
_OF_NO_SPLIT = (annotations.UNANNOTATED, annotations.BACKGROUND)
_RECORDS = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}\.tfrecord.*")


def parse(texts: Sequence[str]) -> dict[str, str]:
    """Returns the splits to write: their name -> what they are called in paths.

    Args:
      texts: NAME, or NAME=WORD where paths have another word for the split; one or
        several with commas between.

    Raises:
      UserError: A name is no part of a file name, or occurs twice.
    """
    splits = {}
    for text in ",".join(texts).split(","):
        name, equals, word = text.strip().partition("=")
        if not re.fullmatch(r"\w[\w.-]*", name) or (equals and not word):
            raise errors.UserError(
                f"--split has {text!r}; expected NAME or NAME=WORD, with commas "
                "between: --split=train,val=valid."
            )
        if name == _RESERVED:
            raise errors.UserError(
                f"--split={name} would write {name}.json, which has the classes; "
                "choose another name."
            )
        if name in splits:
            raise errors.UserError(f"--split has {name} twice; write each split once.")
        splits[name] = word or name
    return splits


def by_fraction(
    annotated: annotations.AnnotatedSet,
    *,
    val_fraction: float,
    seed: int,
    group_fn: Callable[[str], str] = annotations.source_name,
) -> dict[str, annotations.AnnotatedSet]:
    """Returns the images to train on and those to validate on, as train and val.

    The name of an image's group and the seed alone decide, so that images which come
    later move none of those that are there. The share is therefore kept on average
    only.

    Args:
      annotated: all images.
      val_fraction: share to validate on, in (0, 1).
      seed: another seed makes another split.
      group_fn: File name -> name of its group, all images of which go to one split.
    """

    def is_val(file_name: str) -> bool:
        # Systems differ in how they compose an accented letter of a file's name.
        name = unicodedata.normalize("NFC", group_fn(file_name))
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < val_fraction * 2**64

    return {
        "train": part(annotated, lambda name: not is_val(name), is_first=True),
        "val": part(annotated, is_val, is_first=False),
    }


def by_list(
    annotated: annotations.AnnotatedSet,
    split_file: str,
    *,
    word: str,
    images_dir: str,
    is_first: bool,
) -> annotations.AnnotatedSet:
    """Returns the images that a file lists, and the findings about them.

    Args:
      annotated: All images.
      split_file: As `split_lists.read` takes it.
      word: The key of the split in a data.yaml.
      images_dir: The folder of images.
      is_first: Findings about no image in particular are of this split.
    """
    names = {image.file_name for image in annotated.images}
    names |= {finding.image for finding in annotated.events if finding.image}
    chosen = split_lists.read(split_file, word=word, names=names, images_dir=images_dir)
    found = part(annotated, chosen.names.__contains__, is_first=is_first)
    return found._replace(events=(*found.events, *chosen.findings))


def part(
    annotated: annotations.AnnotatedSet,
    is_in: Callable[[str], bool],
    *,
    is_first: bool,
) -> annotations.AnnotatedSet:
    """Returns the images of a split, and the findings about them.

    Args:
      annotated: All images.
      is_in: File name -> whether the image is in the split.
      is_first: Findings about no image in particular are of this split.
    """
    findings = tuple(
        finding
        for finding in annotated.events
        if (is_in(finding.image) if finding.image else is_first)
    )
    images = [image for image in annotated.images if is_in(image.file_name)]
    return annotated._replace(images=images, events=findings)


def group_fn(pattern: str | None) -> Callable[[str], str]:
    """Returns what names the group of an image by its file name.

    Args:
      pattern: A regular expression, whose first group, or match, is the name; None for
        that of Roboflow's versions. Names that do not match stand alone.

    Raises:
      UserError: The pattern is no regular expression.
    """
    if pattern is None:
        return annotations.source_name
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise errors.UserError(
            f"--group_by={pattern!r} is no regular expression: {error}."
        ) from error

    def group(file_name: str) -> str:
        found = compiled.search(file_name)
        return found[min(1, compiled.groups)] or file_name if found else file_name

    return group


def template(path: str, word: str, others: Iterable[str]) -> str:
    """Returns a path with {split} for a word, if the other splits have such paths."""
    found = re.finditer(rf"(?<![^\W\d_]){re.escape(word)}(?![^\W\d_])", path)
    starts = [match.start() for match in found]
    # Of the data set's name the word may be a part too, so the last one is tried alone.
    for places in (starts, starts[-1:]):
        changed = path
        for start in reversed(places):
            end = start + len(word)
            changed = changed[:start] + PLACEHOLDER + changed[end:]
        paths = [changed.replace(PLACEHOLDER, other) for other in others]
        if all(map(tf.io.gfile.exists, paths)):
            return changed
    return path


def record_names(data_dir: str) -> list[str]:
    """Returns the names of record files in a data directory, unfinished ones too."""
    if not tf.io.gfile.isdir(data_dir):
        return []
    return sorted(filter(_RECORDS.fullmatch, tf.io.gfile.listdir(data_dir)))


def converted(data_dir: str) -> list[str]:
    """Returns the splits that a data directory has records of."""
    found = (_RECORDS.fullmatch(name)["split"] for name in record_names(data_dir))
    return list(dict.fromkeys(found))


def apart(
    sets: Mapping[str, annotations.AnnotatedSet], folders: Mapping[str, str]
) -> dict[str, annotations.AnnotatedSet]:
    """Returns splits less what is about images of other splits.

    Splits may share a folder of images. There an image without a label file is of the
    split that has labels for it, else of the first one. An image that several splits
    have labels for is a finding.

    Args:
      sets: The splits, by name.
      folders: The folder of images of each split.
    """
    owners, found = {}, {}
    for has_file in (True, False):
        for split, annotated in sets.items():
            for image in annotated.images:
                if bool(image.source) == has_file:
                    owners.setdefault((folders[split], image.file_name), split)
    for split, annotated in sets.items():

        def owner(file_name: str, split: str = split) -> str:
            return owners.get((folders[split], file_name), split)

        images = [
            i for i in annotated.images if i.source or owner(i.file_name) == split
        ]
        findings = [
            finding
            for finding in annotated.events
            if finding.kind not in _OF_NO_SPLIT or owner(finding.image) == split
        ]
        shared = [i.file_name for i in images if owner(i.file_name) != split]
        findings += [
            annotations.ConversionEvent(_SHARED, name, f"also in {owner(name)}", name)
            for name in shared
        ]
        found[split] = annotated._replace(images=images, events=tuple(findings))
    return found


def in_one_call(
    words: Mapping[str, str], paths: Mapping[str, str], *, earlier: Sequence[str]
) -> str:
    """Returns the options that convert splits together with earlier ones.

    Args:
      words: The splits, as `parse` returns them.
      paths: Flag -> path, of the flags that may have a {split}.
      earlier: The splits that were converted before.
    """
    listed = [n if n == word else f"{n}={word}" for n, word in words.items()]
    others = [name for name in earlier if name not in words]
    for word in words.values():
        paths = {flag: template(path, word, others) for flag, path in paths.items()}
    told_apart = [
        shlex.quote(f"--{flag}={path}")
        for flag, path in paths.items()
        if PLACEHOLDER in path
    ]
    instead = f"with {PLACEHOLDER} in {', '.join(f'--{flag}' for flag in paths)}"
    return f"--split={','.join([*others, *listed])} {' '.join(told_apart) or instead}"
