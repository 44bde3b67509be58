"""Converts annotated images to a data directory: records and COCO files.

  python -m retinanet_tpu.convert --format=coco --images=DS/{split} \
    --annotations=DS/{split}.json --split=train,val --output_dir=DATA_DIR
  python -m retinanet_tpu.convert --format=voc --images=JPEGImages \
    --annotations=Annotations --split_file=ImageSets/Main/{split}.txt \
    --split=train,val --output_dir=DATA_DIR
  python -m retinanet_tpu.convert --format=yolo --images=DS --annotations=DS \
    --split_file=DS/data.yaml --split=train,val=valid --output_dir=DATA_DIR
  python -m retinanet_tpu.convert --format=yolo --images=images --annotations=labels \
    --output_dir=DATA_DIR --val_fraction=0.2

Writes <split>-?????-of-?????.tfrecord, their index, <split>.json and categories.json.
{split} in a path stands for each split's name, or for WORD if --split has NAME=WORD.

Write all splits of a data set in one call, so that they share their classes. A split
that is written later must use the classes of categories.json. A conversion that was
killed is resumed by the same command. Issues of the data are counted, and listed with
file and line in <split>.issues.txt.
"""

import retinanet_tpu.startup.cpu

import os
import shlex
from typing import NamedTuple, NoReturn, TypeAlias

import tensorflow as tf
import tqdm
from absl import flags, logging

from retinanet_tpu import errors
from retinanet_tpu.conversion import checks, converter, output_files, shard_progress
from retinanet_tpu.conversion.formats import (
    files,
    locating,
    readers,
    recognition,
    split_classes,
    splits,
)
from retinanet_tpu.data import annotations, category_map, record_files
from retinanet_tpu.startup import guard

_FORMAT = flags.DEFINE_enum(
    "format", None, list(readers.FORMATS), "Format of the annotations."
)
_IMAGES = flags.DEFINE_string("images", None, "Folder of the images.")
_ANNOTATIONS = flags.DEFINE_string(
    "annotations",
    None,
    "voc, yolo, labelme: a folder of files. Other formats: one JSON, CSV or XML file.",
)
_SPLIT_FILE = flags.DEFINE_string(
    "split_file",
    None,
    "Text file with an image on each line: a path, a name or a stem. Or YOLO's "
    "data.yaml, of which train, val and test are used.",
)
_NAMES = flags.DEFINE_list(
    "names",
    None,
    f"{', '.join(readers.TAKE_NAMES)}: the classes in the order of their ids. Default: "
    "sorted by name.",
)
_CLASSES = flags.DEFINE_string(
    "classes",
    None,
    "yolo: data.yaml or classes.txt. Default: the one beside the labels. openimages: "
    "the class-descriptions CSV.",
)
_CLASS_ATTRIBUTE = flags.DEFINE_string(
    "class_attribute", None, "via: the region attribute that contains the class."
)
_IMAGE_LABELS = flags.DEFINE_string(
    "image_labels",
    None,
    "openimages: the CSV of classes that were verified in the images.",
)
_DROP_OTHER_CLASSES = flags.DEFINE_bool(
    "drop_other_classes",
    None,
    "openimages: leaves out boxes of other classes, and images of only such boxes.",
)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "The data directory to write.")
_SPLIT = flags.DEFINE_multi_string(
    "split",
    None,
    "Names of the splits, such as train,val. NAME=WORD replaces {split} in the paths "
    "with WORD.",
)
_VAL_FRACTION = flags.DEFINE_float(
    "val_fraction",
    None,
    "Instead of --split: writes train and val, with this fraction of the images in "
    "val. Roboflow's versions of one image stay together.",
)
_GROUP_BY = flags.DEFINE_string(
    "group_by",
    None,
    "Regular expression for --val_fraction, such as '(.*)_frame\\d+': images whose "
    "names agree in its first group stay in one split.",
)
_SEED = flags.DEFINE_integer("seed", 0, "Random seed of --val_fraction.")
_NUM_SHARDS = flags.DEFINE_integer(
    "num_shards",
    64,
    "Number of record files of a split, at least the number of hosts that read them.",
    lower_bound=1,
)
_NUM_WORKERS = flags.DEFINE_integer(
    "num_workers",
    os.cpu_count() or 1,
    "Number of images that are converted at once.",
    lower_bound=1,
)
_INDEX_BY_ID = flags.DEFINE_bool(
    "index_by_id",
    False,
    "Uses the category id as network index, as the TF recipes for COCO do.",
)
_USED_BY = {
    "names": readers.TAKE_NAMES,
    "classes": readers.TAKE_CLASSES,
    "class_attribute": readers.TAKE_CLASS_ATTRIBUTE,
    "image_labels": readers.TAKE_IMAGE_LABELS,
    "drop_other_classes": readers.TAKE_DROP_OTHER_CLASSES,
}
_PATHS = ("images", "annotations", "split_file")
_Paths: TypeAlias = tuple[str | None, ...]


class Part(NamedTuple):
    """A split to write.

    Attributes:
      annotated: The annotated images.
      images_dir: The folder to which their file names are relative.
    """

    annotated: annotations.AnnotatedSet
    images_dir: str


def check_flags() -> None:
    """Raises UserError if flags contradict each other or are empty."""
    for name, formats in _USED_BY.items():
        if flags.FLAGS[name].value is not None and _FORMAT.value not in formats:
            raise errors.UserError(
                f"--{name} is for --format={', '.join(formats)}, not for "
                f"{_FORMAT.value}; leave it out."
            )
    for flag in (_IMAGES, _ANNOTATIONS, _OUTPUT_DIR):
        _given(flag)
    if (_SPLIT.value is None) == (_VAL_FRACTION.value is None):
        raise errors.UserError("Give either --split=NAME or --val_fraction=FRACTION.")
    if _VAL_FRACTION.value is None:
        if _GROUP_BY.value is not None:
            raise errors.UserError("--group_by is for --val_fraction; leave it out.")
        return
    if not 0 < _VAL_FRACTION.value < 1:
        raise errors.UserError(
            f"--val_fraction={_VAL_FRACTION.value:g} must be between 0 and 1."
        )
    if _SPLIT_FILE.value is not None:
        raise errors.UserError(
            "--split_file lists the images of a --split; leave out --val_fraction."
        )


def read_annotations(word: str) -> tuple[annotations.AnnotatedSet, files.ImageFolder]:
    """Reads the annotations and lists the images of the flags.

    Args:
      word: The replacement of {split} in the paths.
    """
    images_dir = _required_path("images", word)
    folder = files.ImageFolder(images_dir, files.list_images(images_dir))
    path = _required_path("annotations", word)
    with recognition.explained(path, _given(_FORMAT)):
        annotated = readers.read(
            _given(_FORMAT),
            path,
            image_folder=folder,
            names=_NAMES.value,
            classes=_path("classes", word),
            class_attribute=_CLASS_ATTRIBUTE.value,
            image_labels=_path("image_labels", word),
            drop_other_classes=bool(_DROP_OTHER_CLASSES.value),
        )
    return annotated, folder


def check_annotations(
    annotated: annotations.AnnotatedSet, folder: files.ImageFolder, word: str
) -> None:
    """Raises UserError if the annotations are not fit to train on.

    Args:
      annotated: The annotated images of a split.
      folder: The folder of the images.
      word: The replacement of {split} in the paths.
    """
    with recognition.explained(_required_path("annotations", word), _given(_FORMAT)):
        locating.check_exist(annotated, folder)
        checks.check_set(annotated)


def read_splits() -> dict[str, Part]:
    """Reads and checks the splits to write, by name."""
    if _VAL_FRACTION.value is not None:
        annotated, folder = read_annotations(splits.PLACEHOLDER)
        check_annotations(annotated, folder, splits.PLACEHOLDER)
        parts = splits.by_fraction(
            annotated,
            val_fraction=_VAL_FRACTION.value,
            seed=_SEED.value,
            group_fn=splits.group_fn(_GROUP_BY.value),
        )
        checks.check_splits(**parts)
        return {name: Part(part, folder.folder) for name, part in parts.items()}
    words = splits.parse(_SPLIT.value or [])
    splits.check_words(words, [flags.FLAGS[flag].value or "" for flag in _PATHS])
    read: dict[_Paths, tuple[annotations.AnnotatedSet, files.ImageFolder]] = {}
    split_parts = {}
    for split, word in words.items():
        # Splits that differ only in their --split_file share one reading.
        paths = tuple(_path(f, word) for f in ("images", "annotations", "image_labels"))
        logging.info("Reading %s from %s", split, paths[1])
        is_first = paths not in read
        if is_first:
            read[paths] = read_annotations(word)
        annotated, folder = read[paths]
        if split_file := _path("split_file", word):
            annotated = splits.by_list(
                annotated,
                split_file,
                word=word,
                images_dir=folder.folder,
                is_first=is_first,
            )
        check_annotations(annotated, folder, word)
        split_parts[split] = Part(annotated, folder.folder)
    sets = {split: part.annotated for split, part in split_parts.items()}
    folders = {split: part.images_dir for split, part in split_parts.items()}
    return {
        split: Part(annotated, folders[split])
        for split, annotated in splits.apart(sets, folders).items()
    }


def with_common_classes(
    parts: dict[str, Part], existing: category_map.Categories | None
) -> dict[str, Part]:
    """Returns the splits with common classes and the ids of an earlier conversion.

    Args:
      parts: The splits by name.
      existing: The classes of an earlier conversion, or None.

    Raises:
      UserError: A split has a class that the earlier conversion lacks, or names of
        different splits differ in case or blanks only.
    """
    read = [part.annotated for part in parts.values()]
    has_ids = _FORMAT.value not in readers.TAKE_NAMES
    sets = split_classes.unified(read, existing, has_ids=has_ids)
    if existing and (new := split_classes.new_class(read, existing)):
        raise errors.UserError(
            f"{_categories_path()} has {_listed(existing)}, and not {new.described}. "
            f"{_remedy(new.names)}"
        )
    return {
        split: part._replace(annotated=annotated)
        for (split, part), annotated in zip(parts.items(), sets, strict=True)
    }


def write_split(part: Part, split: str, categories: category_map.Categories) -> None:
    """Converts a split and prints a summary.

    Args:
      part: The split.
      split: The name of the split.
      categories: The classes of the data directory.
    """
    output_dir = _given(_OUTPUT_DIR)
    annotated = part.annotated
    num_shards = min(_NUM_SHARDS.value, len(annotated.images))
    with tqdm.tqdm(total=len(annotated.images), desc=split, unit=" images") as progress:
        conversion = converter.write_shards(
            annotated,
            images_dir=part.images_dir,
            output_dir=output_dir,
            split=split,
            num_shards=num_shards,
            num_workers=_NUM_WORKERS.value,
            progress_fn=progress.update,
            keep_progress=True,
        )
    stored = annotated._replace(images=conversion.images)
    events = [
        *annotated.events,
        *conversion.events,
        *checks.classes_without_boxes(stored.images, stored.categories),
    ]
    print(converter.summary(conversion._replace(events=events)))
    if path := output_files.write_issues(events, output_dir, split):
        print(f"{len(events)} issues are listed with their locations in {path}.")
    category_map.write(categories, _categories_path())
    # Last: its existence marks a finished conversion.
    output_files.write_annotations(stored, output_dir, split)
    last = record_files.file_name(split, num_shards - 1, num_shards)
    print(
        f"Wrote {num_shards} files up to {last}, {split}.json, categories.json with "
        f"NUM_CLASSES = {categories.num_classes}, all in {output_dir}."
    )


def main() -> None:
    """Converts the splits that the flags describe."""
    for flag in (*_PATHS, "classes", "image_labels", "output_dir"):
        if path := flags.FLAGS[flag].value:  # Shells do not expand a ~ after =.
            flags.FLAGS[flag].value = os.path.expanduser(path)
    check_flags()
    output_dir = _given(_OUTPUT_DIR)
    path = _categories_path()
    existing = category_map.read(path) if tf.io.gfile.exists(path) else None
    parts = with_common_classes(read_splits(), existing)
    listed = next(iter(parts.values())).annotated.categories
    categories = category_map.from_coco(listed, index_by_id=_INDEX_BY_ID.value)
    if existing is not None and existing != categories:
        if _INDEX_BY_ID.value:
            raise errors.UserError(
                f"{path} was written without --index_by_id; leave it out, or choose "
                "another --output_dir."
            )
        categories = existing
    for split, part in parts.items():
        num_shards = min(_NUM_SHARDS.value, len(part.annotated.images))
        output_files.check_no_other_files(output_dir, split, num_shards)
    for split, part in parts.items():
        write_split(part, split, categories)
    # After all splits: if a later one is killed, the earlier ones are not repeated.
    for split in parts:
        shard_progress.clear(output_dir, split)


def _categories_path() -> str:
    return os.path.join(_given(_OUTPUT_DIR), category_map.FILE_NAME)


def _path(flag: str, word: str) -> str | None:
    """Returns the path of a flag with a word in place of {split}, or None."""
    value = flags.FLAGS[flag].value
    return value and value.replace(splits.PLACEHOLDER, word)


def _required_path(flag: str, word: str) -> str:
    return _path(flag, word) or _missing(flag)


def _given(flag: flags.FlagHolder[str | None]) -> str:
    """Returns the value of a required flag."""
    return flag.value or _missing(flag.name)


def _missing(flag: str) -> NoReturn:
    raise errors.UserError(f"--{flag} is empty; give it a path.")


def _remedy(names: str) -> str:
    """Returns the advice for a split with a new class.

    Args:
      names: All classes, in the form of --names.
    """
    if _SPLIT.value is None:
        return "Choose another --output_dir."
    words = splits.parse(_SPLIT.value)
    earlier = splits.converted(_given(_OUTPUT_DIR))
    if words.keys() >= set(earlier):
        return "Choose another --output_dir."
    paths = {flag: flags.FLAGS[flag].value or "" for flag in _PATHS}
    options = splits.in_one_call(words, paths, earlier=earlier)
    one_call = f"Write all splits in one call, to an empty --output_dir: {options}."
    if _FORMAT.value not in readers.TAKE_NAMES:
        return one_call
    option = shlex.quote(f"--names={names}")
    return f"{one_call} Or start again with {option} in the call for each split."


def _listed(entries: category_map.Categories) -> str:
    listed = ", ".join(f"{c.index}={c.name}" for c in entries.categories[:5])
    return f"{entries.num_classes} classes ({listed}, ...)"


if __name__ == "__main__":
    flags.mark_flags_as_required(["format", "images", "annotations", "output_dir"])
    guard.run(main)
