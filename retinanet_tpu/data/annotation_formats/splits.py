"""Divides annotated images into splits, and gives all splits the same classes."""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.data import annotations, categories as categories_lib
from retinanet_tpu.data.annotation_formats import split_lists

PLACEHOLDER = "{split}"
_RECORDS = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}\.tfrecord.*")
_OTHER_IDS = "files whose category ids were changed to those of all splits, by name"


def parse(texts: Sequence[str]) -> dict[str, str]:
    """Returns the splits to write: their name -> what they are called in paths.

    Args:
      texts: NAME, or NAME=WORD where paths have another word for the split.

    Raises:
      UserError: A name is no part of a file name, or occurs twice.
    """
    splits = {}
    for text in texts:
        name, equals, word = text.partition("=")
        if not re.fullmatch(r"\w[\w.-]*", name) or (equals and not word):
            raise errors.UserError(
                f"--split has {text!r}; expected NAME or NAME=WORD, with commas "
                "between: --split=train,val=valid."
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
    names |= {finding.image for finding in annotated.findings if finding.image}
    chosen = split_lists.read(split_file, word=word, names=names, images_dir=images_dir)
    found = part(annotated, chosen.names.__contains__, is_first=is_first)
    return found._replace(findings=(*found.findings, *chosen.findings))


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
        for finding in annotated.findings
        if (is_in(finding.image) if finding.image else is_first)
    )
    images = [image for image in annotated.images if is_in(image.file_name)]
    return annotated._replace(images=images, findings=findings)


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
    changed = re.sub(rf"(?<![^\W\d_]){re.escape(word)}(?![^\W\d_])", PLACEHOLDER, path)
    paths = [changed.replace(PLACEHOLDER, other) for other in others]
    return changed if all(map(tf.io.gfile.exists, paths)) else path


def record_names(data_dir: str) -> list[str]:
    """Returns the names of record files in a data directory, unfinished ones too."""
    if not tf.io.gfile.isdir(data_dir):
        return []
    return sorted(filter(_RECORDS.fullmatch, tf.io.gfile.listdir(data_dir)))


def converted(data_dir: str) -> list[str]:
    """Returns the splits that a data directory has records of."""
    found = (_RECORDS.fullmatch(name)["split"] for name in record_names(data_dir))
    return list(dict.fromkeys(found))


def common_classes(
    sets: Iterable[annotations.AnnotatedSet],
    known: categories_lib.Categories | None,
) -> list[dict[str, Any]]:
    """Returns COCO's categories for all splits of a data directory.

    Ids are those of the annotations where these agree with one another; otherwise
    classes are numbered by name.

    Args:
      sets: The splits.
      known: Classes of earlier splits, which keep their ids, or None.
    """
    pairs = {(c["id"], c["name"]) for annotated in sets for c in annotated.categories}
    if known is not None:
        ids = {category.name: category.id for category in known.categories}
        new = sorted({name for _, name in pairs} - ids.keys())
        ids |= {name: i for i, name in enumerate(new, start=max(ids.values()) + 1)}
    elif all(len({pair[i] for pair in pairs}) == len(pairs) for i in (0, 1)):
        ids = {name: i for i, name in pairs}
    else:
        ids = {n: i for i, n in enumerate(sorted({n for _, n in pairs}), start=1)}
    return [{"id": i, "name": n} for n, i in sorted(ids.items(), key=lambda x: x[1])]


def with_classes(
    annotated: annotations.AnnotatedSet,
    categories: list[dict[str, Any]],
    *,
    counts_changes: bool,
) -> annotations.AnnotatedSet:
    """Returns a set with other category ids; a class is the same if its name is.

    Args:
      annotated: The set.
      categories: COCO's categories, those of the set included.
      counts_changes: Whether other ids are a finding, as they stand in the files.
    """
    by_name = {category["name"]: category["id"] for category in categories}
    ids = {c["id"]: by_name[c["name"]] for c in annotated.categories}
    if all(old == new for old, new in ids.items()):
        return annotated._replace(categories=categories)
    images = [
        image._replace(
            objects=tuple(
                item._replace(category_id=ids[item.category_id])
                for item in image.objects
            )
        )
        for image in annotated.images
    ]
    findings = [*annotated.findings]
    if counts_changes:
        sources = dict.fromkeys(image.source for image in images)
        findings += [annotations.Finding(_OTHER_IDS, source) for source in sources]
    return annotations.AnnotatedSet(images, categories, tuple(findings))
