"""Writes splits of a data directory: records, <split>.json and categories.json.

  python -m retinanet_tpu.convert --format=coco --images=DS/{split} \
    --annotations=DS/{split}.json --split=train,val --output_dir=DATA_DIR
  python -m retinanet_tpu.convert --format=voc --images=JPEGImages \
    --annotations=Annotations --split_file=ImageSets/Main/{split}.txt \
    --split=train,val --output_dir=DATA_DIR
  python -m retinanet_tpu.convert --format=yolo --images=DS --annotations=DS \
    --split_file=DS/data.yaml --split=train,val=valid --output_dir=DATA_DIR
  python -m retinanet_tpu.convert --format=yolo --images=images --annotations=labels \
    --output_dir=DATA_DIR --val_fraction=0.2

All splits of a data set are best written in one call, as they share their classes.
{split} in a path stands for the name of each split, or for WORD where --split has
NAME=WORD. Where a split is written later, the classes of categories.json hold. Killed
and started again it goes on where it was. What a person should look at is counted, and
listed with file and line in <split>.issues.txt.
"""

import retinanet_tpu.startup.cpu

import os
import shlex
from typing import NamedTuple

import tensorflow as tf
import tqdm
from absl import flags, logging

from retinanet_tpu import errors
from retinanet_tpu.conversion import checks, converter, shard_progress
from retinanet_tpu.conversion.formats import (
    files,
    locating,
    readers,
    recognition,
    split_classes,
    split_lists,
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
    "voc, yolo, labelme: folder of files. Others: one JSON, CSV or XML file.",
)
_SPLIT_FILE = flags.DEFINE_string(
    "split_file",
    None,
    "Text file with an image on each line: a path, a name or a stem. Or YOLO's "
    "data.yaml, whose train, val and test are used.",
)
_NAMES = flags.DEFINE_list(
    "names",
    None,
    f"{', '.join(readers.TAKE_NAMES)}: classes in the order wanted; default: sorted by "
    "name.",
)
_CLASSES = flags.DEFINE_string(
    "classes",
    None,
    "yolo: data.yaml or classes.txt; default: looked for beside the labels. "
    "openimages: class-descriptions CSV.",
)
_CLASS_ATTRIBUTE = flags.DEFINE_string(
    "class_attribute", None, "via: the region attribute that names the class."
)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "The data directory to write to.")
_SPLIT = flags.DEFINE_multi_string(
    "split",
    None,
    "Names of the splits, such as train,val; NAME=WORD where {split} in the paths is "
    "to become WORD.",
)
_VAL_FRACTION = flags.DEFINE_float(
    "val_fraction",
    None,
    "Instead of --split: writes train and val, with this share of the images in val. "
    "Roboflow's versions of one image stay together.",
)
_GROUP_BY = flags.DEFINE_string(
    "group_by",
    None,
    "Regular expression for --val_fraction: images whose names agree in its first "
    r"group stay in one split, such as '(.*)_frame\d+'.",
)
_SEED = flags.DEFINE_integer("seed", 0, "Another one makes another --val_fraction.")
_NUM_SHARDS = flags.DEFINE_integer(
    "num_shards",
    64,
    "Record files of a split; at least as many as hosts will read.",
    lower_bound=1,
)
_NUM_WORKERS = flags.DEFINE_integer(
    "num_workers", os.cpu_count(), "Images converted at once.", lower_bound=1
)
_INDEX_BY_ID = flags.DEFINE_bool(
    "index_by_id", False, "Category id = network index, as in the TF recipes for COCO."
)
_USED_BY = {
    "names": readers.TAKE_NAMES,
    "classes": readers.TAKE_CLASSES,
    "class_attribute": readers.TAKE_CLASS_ATTRIBUTE,
}
_PATHS = ("images", "annotations", "split_file")


class Part(NamedTuple):
    """A split to write."""

    annotated: annotations.AnnotatedSet
    images_dir: str


def check_flags() -> None:
    """Raises UserError where flags do not go together."""
    for name, formats in _USED_BY.items():
        if flags.FLAGS[name].value is not None and _FORMAT.value not in formats:
            raise errors.UserError(
                f"--{name} is for --format={', '.join(formats)}, not for "
                f"{_FORMAT.value}; leave it out."
            )
    for flag in (_IMAGES, _ANNOTATIONS, _OUTPUT_DIR):
        if not flag.value:
            raise errors.UserError(f"--{flag.name} is empty; give it a path.")
    if (_SPLIT.value is None) == (_VAL_FRACTION.value is None):
        raise errors.UserError("Say either --split=NAME or --val_fraction=SHARE.")
    if _VAL_FRACTION.value is None:
        if _GROUP_BY.value is not None:
            raise errors.UserError("--group_by is for --val_fraction; leave it out.")
        return
    if not 0 < _VAL_FRACTION.value < 1:
        raise errors.UserError(
            f"--val_fraction={_VAL_FRACTION.value:g} must lie between 0 and 1."
        )
    if _SPLIT_FILE.value is not None:
        raise errors.UserError(
            "--split_file names the images of a --split; leave out --val_fraction."
        )


def read_annotations(word: str) -> tuple[annotations.AnnotatedSet, files.ImageFolder]:
    """Reads what the flags point to, with a word in place of {split}."""
    images_dir = _path("images", word)
    pictures = files.ImageFolder(images_dir, files.list_images(images_dir))
    path = _path("annotations", word)
    with recognition.explained(path, _FORMAT.value):
        annotated = readers.read(
            _FORMAT.value,
            path,
            pictures=pictures,
            names=_NAMES.value,
            classes=_path("classes", word),
            class_attribute=_CLASS_ATTRIBUTE.value,
        )
    return annotated, pictures


def check_annotations(
    annotated: annotations.AnnotatedSet, pictures: files.ImageFolder, word: str
) -> None:
    """Raises UserError where converting would be pointless."""
    with recognition.explained(_path("annotations", word), _FORMAT.value):
        locating.check_exist(annotated, pictures)
        checks.check_set(annotated)


def read_splits() -> dict[str, Part]:
    """Reads and checks the splits to write, by name."""
    if _VAL_FRACTION.value is not None:
        annotated, pictures = read_annotations(splits.PLACEHOLDER)
        check_annotations(annotated, pictures, splits.PLACEHOLDER)
        parts = splits.by_fraction(
            annotated,
            val_fraction=_VAL_FRACTION.value,
            seed=_SEED.value,
            group_fn=splits.group_fn(_GROUP_BY.value),
        )
        checks.check_splits(**parts)
        return {name: Part(part, pictures.folder) for name, part in parts.items()}
    words, found, read = splits.parse(_SPLIT.value), {}, {}
    _check_words(words)
    for split, word in words.items():
        # One reading for all splits that differ in their list alone.
        paths = _path("images", word), _path("annotations", word)
        logging.info("Reading %s from %s", split, paths[1])
        is_first = paths not in read
        if is_first:
            read[paths] = read_annotations(word)
        annotated, pictures = read[paths]
        if split_file := _path("split_file", word):
            annotated = splits.by_list(
                annotated,
                split_file,
                word=word,
                images_dir=pictures.folder,
                is_first=is_first,
            )
        check_annotations(annotated, pictures, word)
        found[split] = Part(annotated, pictures.folder)
    sets = {split: part.annotated for split, part in found.items()}
    folders = {split: part.images_dir for split, part in found.items()}
    return {
        split: Part(annotated, folders[split])
        for split, annotated in splits.apart(sets, folders).items()
    }


def with_common_classes(
    parts: dict[str, Part], existing: category_map.Categories | None
) -> dict[str, Part]:
    """Gives all splits one list of classes, with the ids of an earlier conversion.

    Raises:
      UserError: A split has a class that the earlier conversion lacks, or names of
        different splits differ in case or blanks only.
    """
    read = [part.annotated for part in parts.values()]
    has_ids = _FORMAT.value not in readers.TAKE_NAMES
    sets = split_classes.unified(read, existing, has_ids=has_ids)
    new = split_classes.new_class(read, existing) if existing else None
    if new:
        raise errors.UserError(
            f"{_categories_path()} has {_listed(existing)}, and not {new.described}. "
            f"{_remedy(new.names)}"
        )
    return {
        split: part._replace(annotated=annotated)
        for (split, part), annotated in zip(parts.items(), sets, strict=True)
    }


def check_no_other_files(output_dir: str, split: str, num_shards: int) -> None:
    """Raises UserError where files of others would be lost, or older shards stay."""
    path = os.path.join(output_dir, f"{split}.json")
    if tf.io.gfile.exists(path) and not annotations.has_description(
        path, _description(split)
    ):
        raise errors.UserError(
            f"{path} would be replaced, and no conversion wrote it; choose another "
            "--output_dir."
        )
    others = [
        name
        for name in splits.record_names(output_dir)
        if name.startswith(f"{split}-") and f"-of-{num_shards:05d}." not in name
    ]
    if others:
        raise errors.UserError(
            f"{output_dir} holds shards of an earlier conversion, such as "
            f"{others[0]}; delete its {split}-*.tfrecord* files, or choose another "
            "--output_dir."
        )


def write_split(part: Part, split: str, wanted: category_map.Categories) -> None:
    """Converts a split and says what became of it."""
    output_dir, annotated = _OUTPUT_DIR.value, part.annotated
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
    findings = [
        *annotated.events,
        *conversion.events,
        *checks.classes_without_boxes(stored.images, stored.categories),
    ]
    print(converter.summary(conversion._replace(events=findings)))
    write_findings(findings, split)
    category_map.write(wanted, _categories_path())
    # Last, so that it stands for a finished conversion.
    json_path = os.path.join(output_dir, f"{split}.json")
    annotations.write_coco(stored, json_path, description=_description(split))
    last = record_files.file_name(split, num_shards - 1, num_shards)
    print(
        f"Wrote {num_shards} files up to {last}, {split}.json, categories.json with "
        f"NUM_CLASSES = {wanted.num_classes}, all in {output_dir}."
    )


def write_findings(findings: list[annotations.ConversionEvent], split: str) -> None:
    """Writes <split>.issues.txt, a line for each, or removes that of an older run."""
    path = os.path.join(_OUTPUT_DIR.value, f"{split}.issues.txt")
    if tf.io.gfile.exists(path):
        tf.io.gfile.remove(path)
    if findings:
        lines = [
            f"{f.location}: {f.kind}" + (f" ({f.detail})" if f.detail else "") + "\n"
            for f in findings
        ]
        with tf.io.gfile.GFile(path, "w") as file:
            file.write("".join(lines))
        print(f"{len(findings)} findings, each with its place, are in {path}.")


def main() -> None:
    """Converts the splits that the flags describe."""
    for flag in (*_PATHS, "classes", "output_dir"):
        if flags.FLAGS[flag].value:  # Shells leave a ~ after = as it is.
            flags.FLAGS[flag].value = os.path.expanduser(flags.FLAGS[flag].value)
    check_flags()
    output_dir, path = _OUTPUT_DIR.value, _categories_path()
    existing = category_map.read(path) if tf.io.gfile.exists(path) else None
    parts = with_common_classes(read_splits(), existing)
    listed = next(iter(parts.values())).annotated.categories
    wanted = category_map.from_coco(listed, index_by_id=_INDEX_BY_ID.value)
    if existing is not None and existing != wanted:
        if _INDEX_BY_ID.value:
            raise errors.UserError(
                f"{path} was written without --index_by_id; leave it out, or choose "
                "another --output_dir."
            )
        wanted = existing
    for split, part in parts.items():
        num_shards = min(_NUM_SHARDS.value, len(part.annotated.images))
        check_no_other_files(output_dir, split, num_shards)
    for split, part in parts.items():
        write_split(part, split, wanted)
    # Only now: killed in a later split, it shall not do the earlier one again.
    for split in parts:
        shard_progress.clear(output_dir, split)


def _description(split: str) -> str:
    return f"{split} split"


def _categories_path() -> str:
    return os.path.join(_OUTPUT_DIR.value, category_map.FILE_NAME)


def _path(flag: str, word: str) -> str | None:
    """Returns the path in a flag, for the split that paths call by a word."""
    value = flags.FLAGS[flag].value
    return value and value.replace(splits.PLACEHOLDER, word)


def _check_words(words: dict[str, str]) -> None:
    """Raises UserError where several splits would have the same images."""
    paths = [flags.FLAGS[flag].value or "" for flag in _PATHS]
    is_told_apart = any(splits.PLACEHOLDER in path for path in paths)
    if len(words) > 1 and not is_told_apart and not split_lists.is_yaml(paths[-1]):
        raise errors.UserError(
            f"--split={','.join(words)} writes several splits, and no path says which "
            "is which: write {split} for the name of the split in --images, "
            "--annotations or --split_file."
        )


def _remedy(names: str) -> str:
    """Returns how to convert splits of which one has a new class.

    Args:
      names: All classes, as --names takes them.
    """
    if _SPLIT.value is None:
        return "Choose another --output_dir."
    words, earlier = splits.parse(_SPLIT.value), splits.converted(_OUTPUT_DIR.value)
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
