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
# Kinds of events about images that may belong to another split.
_MAYBE_OTHER_SPLIT = (annotations.UNANNOTATED, annotations.BACKGROUND)
_RECORDS = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}\.tfrecord.*")


def parse(texts: Sequence[str]) -> dict[str, str]:
    """Parses the values of --split.

    Args:
      texts: The values: NAME, or NAME=WORD where paths contain another word for the
        split. A value may contain several, separated by commas.

    Returns:
      The splits to write, as a dict: name -> word in paths.

    Raises:
      UserError: A name cannot be a part of a file name, or occurs twice.
    """
    splits: dict[str, str] = {}
    for text in ",".join(texts).split(","):
        name, equals, word = text.strip().partition("=")
        if not re.fullmatch(r"\w[\w.-]*", name) or (equals and not word):
            raise errors.UserError(
                f"--split has {text!r}; expected NAME or NAME=WORD, separated by "
                "commas: --split=train,val=valid."
            )
        if name == _RESERVED:
            raise errors.UserError(
                f"--split={name} would write {name}.json, which is the file of the "
                "classes; choose another name."
            )
        if name.endswith(".index"):
            raise errors.UserError(
                f"--split={name} would write {name}.json, which is the index of the "
                f"records of the split {name.removesuffix('.index')}; choose another "
                "name."
            )
        if name in splits:
            raise errors.UserError(f"--split has {name} twice; write each split once.")
        splits[name] = word or name
    return splits


def check_words(words: Mapping[str, str], paths: Sequence[str]) -> None:
    """Checks that several splits do not have the same images.

    Args:
      words: The splits, as returned by `parse`.
      paths: The paths of the images, the annotations and the split file.

    Raises:
      UserError: No path distinguishes the splits.
    """
    has_placeholder = any(PLACEHOLDER in path for path in paths)
    if len(words) > 1 and not has_placeholder and not split_lists.is_yaml(paths[-1]):
        raise errors.UserError(
            f"--split={','.join(words)} writes several splits, and no path "
            "distinguishes them: write {split} for the name of the split in --images, "
            "--annotations or --split_file."
        )


def by_fraction(
    annotated: annotations.AnnotatedSet,
    *,
    val_fraction: float,
    seed: int,
    group_fn: Callable[[str], str] = annotations.source_name,
) -> dict[str, annotations.AnnotatedSet]:
    """Divides images into the splits train and val.

    Only the name of an image's group and the seed decide its split. Images that are
    added later therefore never move existing ones. The fraction is met on average.

    Args:
      annotated: All images.
      val_fraction: The expected fraction of validation images, in (0, 1).
      seed: The seed of the hash; another seed gives another division.
      group_fn: A function from a file name to the name of its group. All images of a
        group go to one split.
    """

    def is_val(file_name: str) -> bool:
        # File systems differ in how they compose accented letters.
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
    """Returns the images that a file lists, and the events about them.

    Args:
      annotated: All images.
      split_file: The list or data.yaml, as in `split_lists.read`.
      word: The key of the split in a data.yaml.
      images_dir: The folder of images.
      is_first: True if this split receives the events that concern no single image.
    """
    names = {image.file_name for image in annotated.images}
    names |= {event.image for event in annotated.events if event.image}
    selection = split_lists.read(
        split_file, word=word, names=names, images_dir=images_dir
    )
    split = part(annotated, selection.names.__contains__, is_first=is_first)
    return split._replace(events=(*split.events, *selection.events))


def part(
    annotated: annotations.AnnotatedSet,
    is_in: Callable[[str], bool],
    *,
    is_first: bool,
) -> annotations.AnnotatedSet:
    """Returns the images of a split, and the events about them.

    Args:
      annotated: All images.
      is_in: A function from a file name to True if the image is in the split.
      is_first: True if this split receives the events that concern no single image.
    """
    events = tuple(
        event
        for event in annotated.events
        if (is_in(event.image) if event.image else is_first)
    )
    images = [image for image in annotated.images if is_in(image.file_name)]
    return annotated._replace(images=images, events=events)


def group_fn(pattern: str | None) -> Callable[[str], str]:
    """Returns a function from an image's file name to the name of its group.

    Args:
      pattern: A regular expression. Its first group, or the whole match if it has no
        group, is the name. Names that do not match form groups of their own. None
        groups the versions of an image that Roboflow writes.

    Raises:
      UserError: The pattern is not a valid regular expression.
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
        match = compiled.search(file_name)
        return match[min(1, compiled.groups)] or file_name if match else file_name

    return group


def template(path: str, word: str, others: Iterable[str]) -> str:
    """Replaces a split's word in a path by {split}.

    Args:
      path: The path of one split.
      word: The split's word in paths.
      others: The words of the other splits.

    Returns:
      The path with {split}, if it exists for all other splits; else the path itself.
    """
    matches = re.finditer(rf"(?<![^\W\d_]){re.escape(word)}(?![^\W\d_])", path)
    starts = [match.start() for match in matches]
    # The data set's name may contain the word too: replace all, then only the last.
    for replaced in (starts, starts[-1:]):
        changed = path
        for start in reversed(replaced):
            end = start + len(word)
            changed = changed[:start] + PLACEHOLDER + changed[end:]
        paths = [changed.replace(PLACEHOLDER, other) for other in others]
        if all(map(tf.io.gfile.exists, paths)):
            return changed
    return path


def record_names(data_dir: str) -> list[str]:
    """Returns the names of all record files of a directory, incomplete ones too."""
    if not tf.io.gfile.isdir(data_dir):
        return []
    return sorted(filter(_RECORDS.fullmatch, tf.io.gfile.listdir(data_dir)))


def converted(data_dir: str) -> list[str]:
    """Returns the splits whose records are in a data directory."""
    matches = map(_RECORDS.fullmatch, record_names(data_dir))
    return list(dict.fromkeys(match["split"] for match in matches if match))


def apart(
    sets: Mapping[str, annotations.AnnotatedSet], folders: Mapping[str, str]
) -> dict[str, annotations.AnnotatedSet]:
    """Removes from each split the images and events that belong to other splits.

    Splits may share a folder of images. An image without a label file then belongs to
    the split that has labels for it, else to the first split. An image with labels in
    several splits remains in all of them and is reported as an event.

    Args:
      sets: The splits, by name.
      folders: The folder of images of each split.
    """
    owners: dict[tuple[str, str], str] = {}
    separated: dict[str, annotations.AnnotatedSet] = {}
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
        events = [
            event
            for event in annotated.events
            if event.kind not in _MAYBE_OTHER_SPLIT or owner(event.image) == split
        ]
        shared = [i.file_name for i in images if owner(i.file_name) != split]
        events += [
            annotations.ConversionEvent(_SHARED, name, f"also in {owner(name)}", name)
            for name in shared
        ]
        separated[split] = annotated._replace(images=images, events=tuple(events))
    return separated


def in_one_call(
    words: Mapping[str, str], paths: Mapping[str, str], *, earlier: Sequence[str]
) -> str:
    """Returns the options that convert splits together with earlier ones.

    Args:
      words: The splits, as returned by `parse`.
      paths: The values of the flags that may contain {split}, by flag.
      earlier: The splits that were converted before.
    """
    split_values = [n if n == word else f"{n}={word}" for n, word in words.items()]
    others = [name for name in earlier if name not in words]
    for word in words.values():
        paths = {flag: template(path, word, others) for flag, path in paths.items()}
    path_options = [
        shlex.quote(f"--{flag}={path}")
        for flag, path in paths.items()
        if PLACEHOLDER in path
    ]
    hint = f"with {PLACEHOLDER} in {', '.join(f'--{flag}' for flag in paths)}"
    all_splits = ",".join([*others, *split_values])
    return f"--split={all_splits} {' '.join(path_options) or hint}"
