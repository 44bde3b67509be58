"""Writes splits of a data directory: records, <split>.json and categories.json.

  python tools/create_tfrecords.py --format=coco --images=IMAGES \
    --annotations=instances_train.json --output_dir=DATA_DIR --split=train
  python tools/create_tfrecords.py --format=voc --images=JPEGImages \
    --annotations=Annotations --split_file=ImageSets/Main/train.txt \
    --output_dir=DATA_DIR --split=train
  python tools/create_tfrecords.py --format=yolo --images=images --annotations=labels \
    --output_dir=DATA_DIR --val_fraction=0.2

Run it once a split, or once with --val_fraction, which writes train and val. The first
run writes categories.json and the others must agree with it. Killed and started again
it goes on where it was. What a person should look at is counted, and listed with file
and line in <split>.findings.txt.
"""

import functools
import os
from typing import Any

import tensorflow as tf
import tqdm
from absl import flags

from retinanet_tpu import errors, guard
from retinanet_tpu.data import (
    annotation_checks,
    annotations,
    categories,
    converter,
    record_files,
    shard_states,
)
from retinanet_tpu.data.annotation_formats import (
    assembly,
    coco,
    csv_table,
    files,
    labelme,
    openimages,
    voc,
    yolo,
    yolo_names,
)

_FORMAT = flags.DEFINE_enum(
    "format",
    None,
    ["coco", "voc", "yolo", "csv", "labelme", "openimages"],
    "Format of the annotations.",
)
_IMAGES = flags.DEFINE_string("images", None, "Folder of the pictures.")
_ANNOTATIONS = flags.DEFINE_string(
    "annotations",
    None,
    "coco: JSON file. csv, openimages: CSV file. voc, yolo, labelme: folder of files.",
)
_SPLIT_FILE = flags.DEFINE_string(
    "split_file", None, "voc: text file with the stem of an image on each line."
)
_NAMES = flags.DEFINE_list(
    "names",
    None,
    "voc, csv, labelme: classes in the order wanted; default: sorted by name.",
)
_CLASSES = flags.DEFINE_string(
    "classes",
    None,
    "yolo: data.yaml or classes.txt; default: looked for beside the labels. "
    "openimages: class-descriptions CSV.",
)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "The data directory to write to.")
_SPLIT = flags.DEFINE_string("split", None, "Name of the split, such as train or val.")
_VAL_FRACTION = flags.DEFINE_float(
    "val_fraction",
    None,
    "Instead of --split: writes train and val, with this share of the images in val.",
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
_NAMED_PLACES = 3  # How many places a line of the summary names.
_USED_BY = {
    "split_file": ("voc",),
    "names": ("voc", "csv", "labelme"),
    "classes": ("yolo", "openimages"),
}


def check_flags() -> None:
    """Raises UserError where flags do not go together."""
    for name, formats in _USED_BY.items():
        if flags.FLAGS[name].value is not None and _FORMAT.value not in formats:
            raise errors.UserError(
                f"--{name} is for --format={', '.join(formats)}, not for "
                f"{_FORMAT.value}; leave it out."
            )
    if (_SPLIT.value is None) == (_VAL_FRACTION.value is None):
        raise errors.UserError("Say either --split=NAME or --val_fraction=SHARE.")
    if _VAL_FRACTION.value is not None and not 0 < _VAL_FRACTION.value < 1:
        raise errors.UserError(
            f"--val_fraction={_VAL_FRACTION.value:g} must lie between 0 and 1."
        )


def read_annotations(
    existing: categories.Categories | None,
) -> annotations.AnnotatedSet:
    """Reads what the flags point to; categories.json, if any, gives names their ids."""
    path = _ANNOTATIONS.value
    image_names = files.list_pictures(_IMAGES.value)
    if _FORMAT.value == "coco":
        return coco.read(path, image_names=image_names)
    pictures = files.Pictures(_IMAGES.value, image_names)
    if _FORMAT.value == "yolo":
        classes_path = _CLASSES.value or yolo.find_classes(path)
        return yolo.read(
            path, pictures=pictures, categories=yolo_names.read(classes_path)
        )
    if _FORMAT.value == "openimages":
        if _CLASSES.value is None:
            raise errors.UserError(
                "--format=openimages needs --classes=DESCRIPTIONS.csv."
            )
        classes = openimages.read_classes(_CLASSES.value)
        return openimages.read(path, pictures=pictures, classes=classes)
    read_fn = {
        "voc": functools.partial(voc.read, split_file=_SPLIT_FILE.value),
        "csv": csv_table.read,
        "labelme": labelme.read,
    }[_FORMAT.value]
    return read_fn(path, pictures=pictures, categories=known_classes(existing))


def known_classes(
    existing: categories.Categories | None,
) -> list[dict[str, Any]] | None:
    """Returns COCO's categories of --names or of categories.json, else None."""
    if _NAMES.value is not None:
        return assembly.number_classes(_NAMES.value)
    if existing is None:
        return None
    ordered = sorted(existing.categories, key=lambda category: category.id)
    return [{"id": category.id, "name": category.name} for category in ordered]


def split_up(
    annotated: annotations.AnnotatedSet,
) -> dict[str, annotations.AnnotatedSet]:
    """Returns the splits to write, by name."""
    annotation_checks.check_set(annotated)
    if _VAL_FRACTION.value is None:
        return {_SPLIT.value: annotated}
    train, val = annotations.split_by_name(
        annotated, val_fraction=_VAL_FRACTION.value, seed=_SEED.value
    )
    annotation_checks.check_splits(train, val)
    return {"train": train, "val": val}


def check_agreement(
    existing: categories.Categories | None, wanted: categories.Categories, path: str
) -> None:
    """Raises UserError where an existing categories.json says something else."""
    if existing is not None and existing != wanted:
        raise errors.UserError(
            f"{path} has {_listed(existing)}; this split would write "
            f"{_listed(wanted)}. All splits of a directory share one numbering: use "
            "the same --names and --index_by_id, or another --output_dir."
        )


def check_no_other_conversion(output_dir: str, split: str, num_shards: int) -> None:
    """Raises UserError where older shards of another number would stay."""
    others = [
        path
        for path in record_files.listed(output_dir, split, ".*")
        if f"-of-{num_shards:05d}.tfrecord" not in os.path.basename(path)
    ]
    if others:
        raise errors.UserError(
            f"{output_dir} holds shards of an earlier conversion, such as "
            f"{os.path.basename(others[0])}; delete the {split}-*.tfrecord* files "
            "first or use the same --num_shards."
        )


def write_split(
    annotated: annotations.AnnotatedSet, split: str, wanted: categories.Categories
) -> None:
    """Converts a split and says what became of it."""
    output_dir = _OUTPUT_DIR.value
    num_shards = min(_NUM_SHARDS.value, len(annotated.images))
    with tqdm.tqdm(total=len(annotated.images), desc=split, unit=" images") as progress:
        conversion = converter.write_shards(
            annotated,
            images_dir=_IMAGES.value,
            output_dir=output_dir,
            split=split,
            num_shards=num_shards,
            num_workers=_NUM_WORKERS.value,
            progress_fn=progress.update,
            keeps_states=True,
        )
    stored = annotated._replace(images=conversion.images)
    findings = [
        *annotated.findings,
        *conversion.findings,
        *annotation_checks.classes_without_boxes(stored.images, stored.categories),
    ]
    print(summary(conversion._replace(findings=findings)))
    write_findings(findings, split)
    categories.write(wanted, os.path.join(output_dir, categories.FILE_NAME))
    # Last, so that it stands for a finished conversion.
    json_path = os.path.join(output_dir, f"{split}.json")
    annotations.write_coco(stored, json_path, description=f"{split} split")
    last = record_files.file_name(split, num_shards - 1, num_shards)
    print(
        f"Wrote {num_shards} files up to {last}, {split}.json, categories.json with "
        f"NUM_CLASSES = {wanted.num_classes}, all in {output_dir}."
    )


def summary(conversion: converter.Conversion) -> str:
    """Returns a table of what happened, with the places that need a look."""
    lines = []
    for what, count in sorted(conversion.counts.items()):
        places = [f.where for f in conversion.findings if f.what == what]
        named = "; ".join(places[:_NAMED_PLACES])
        more = "; ..." if len(places) > _NAMED_PLACES else ""
        lines.append(f"{count:10,d}  {what:40s} {named}{more}".rstrip())
    return "\n".join(lines)


def write_findings(findings: list[annotations.Finding], split: str) -> None:
    """Writes <split>.findings.txt, a line for each, or removes that of an older run."""
    path = os.path.join(_OUTPUT_DIR.value, f"{split}.findings.txt")
    if tf.io.gfile.exists(path):
        tf.io.gfile.remove(path)
    if findings:
        lines = [
            f"{f.where}: {f.what}" + (f" ({f.detail})" if f.detail else "") + "\n"
            for f in findings
        ]
        with tf.io.gfile.GFile(path, "w") as file:
            file.write("".join(lines))
        print(f"{len(findings)} findings, each with its place, are in {path}.")


def main() -> None:
    """Converts the splits that the flags describe."""
    check_flags()
    output_dir = _OUTPUT_DIR.value
    categories_path = os.path.join(output_dir, categories.FILE_NAME)
    is_first = not tf.io.gfile.exists(categories_path)
    existing = None if is_first else categories.read(categories_path)
    splits = split_up(read_annotations(existing))
    for split, annotated in splits.items():
        num_shards = min(_NUM_SHARDS.value, len(annotated.images))
        check_no_other_conversion(output_dir, split, num_shards)
        wanted = categories.from_coco(
            annotated.categories, index_by_id=_INDEX_BY_ID.value
        )
        check_agreement(existing, wanted, categories_path)
    for split, annotated in splits.items():
        write_split(annotated, split, wanted)
    # Only now: killed in a later split, it shall not do the earlier one again.
    for split in splits:
        shard_states.forget(output_dir, split)


def _listed(entries: categories.Categories) -> str:
    listed = ", ".join(f"{c.index}={c.name}" for c in entries.categories[:5])
    return f"{entries.num_classes} classes ({listed}, ...)"


if __name__ == "__main__":
    flags.mark_flags_as_required(["format", "images", "annotations", "output_dir"])
    guard.run(main)
