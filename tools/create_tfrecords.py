"""Writes one split of a data directory: records, <split>.json and categories.json.

  python tools/create_tfrecords.py --format=coco --images=IMAGES \
    --annotations=instances_train.json --output_dir=DATA_DIR --split=train
  python tools/create_tfrecords.py --format=voc --images=JPEGImages \
    --annotations=Annotations --split_file=ImageSets/Main/train.txt \
    --output_dir=DATA_DIR --split=train

Run it once a split; the first writes categories.json and the others must agree with it.
"""

import os

import tensorflow as tf
import tqdm
from absl import app, flags

from retinanet_tpu.data import annotations, categories, converter, record_files

_FORMAT = flags.DEFINE_enum(
    "format", None, ["coco", "voc"], "Format of the annotations."
)
_IMAGES = flags.DEFINE_string("images", None, "Folder of the pictures.")
_ANNOTATIONS = flags.DEFINE_string(
    "annotations", None, "COCO JSON file, or folder of VOC XML files."
)
_SPLIT_FILE = flags.DEFINE_string(
    "split_file", None, "voc: text file with the stem of an image on each line."
)
_NAMES = flags.DEFINE_list(
    "names", None, "voc: classes in the order wanted; default: sorted by name."
)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "The data directory to write to.")
_SPLIT = flags.DEFINE_string("split", None, "Name of the split, such as train or val.")
_NUM_SHARDS = flags.DEFINE_integer(
    "num_shards",
    64,
    "Record files; at least as many as hosts will read.",
    lower_bound=1,
)
_NUM_WORKERS = flags.DEFINE_integer(
    "num_workers", os.cpu_count(), "Images converted at once.", lower_bound=1
)
_INDEX_BY_ID = flags.DEFINE_bool(
    "index_by_id", False, "Category id = network index, as in the TF recipes for COCO."
)
_NAMED_FILES = 5  # How many files a line of the summary names.


def read_annotations(
    existing: categories.Categories | None,
) -> annotations.AnnotatedSet:
    """Reads what the flags point to; categories.json, if any, orders VOC's classes."""
    if _FORMAT.value == "coco":
        return annotations.read_coco(_ANNOTATIONS.value)
    names = _NAMES.value
    if names is None and existing is not None:
        ordered = sorted(existing.categories, key=lambda category: category.id)
        names = [category.name for category in ordered]
    return annotations.read_voc(
        _ANNOTATIONS.value,
        image_names=tf.io.gfile.listdir(_IMAGES.value),
        split_file=_SPLIT_FILE.value,
        names=names,
    )


def check_agreement(
    existing: categories.Categories | None, wanted: categories.Categories, path: str
) -> None:
    """Raises ValueError where an existing categories.json says something else."""
    if existing is not None and existing != wanted:
        raise ValueError(
            f"{path} has {_listed(existing)}; this split would write "
            f"{_listed(wanted)}. All splits of a directory share one numbering: use "
            "the same --names and --index_by_id, or another --output_dir."
        )


def check_no_other_conversion(output_dir: str, split: str, num_shards: int) -> None:
    """Raises ValueError where older shards of another number would stay."""
    pattern = os.path.join(output_dir, f"{split}-?????-of-?????.tfrecord")
    others = [
        path
        for path in sorted(tf.io.gfile.glob(pattern))
        if not path.endswith(f"-of-{num_shards:05d}.tfrecord")
    ]
    if others:
        raise ValueError(
            f"{output_dir} holds shards of an earlier conversion, such as "
            f"{os.path.basename(others[0])}; delete the {split}-*.tfrecord files first "
            "or use the same --num_shards."
        )


def summary(conversion: converter.Conversion) -> str:
    """Returns a table of what happened, with the files that need a look."""
    lines = []
    for what, count in sorted(conversion.counts.items()):
        files = conversion.affected.get(what, [])
        named = ", ".join(files[:_NAMED_FILES])
        more = ", ..." if len(files) > _NAMED_FILES else ""
        lines.append(f"{count:10,d}  {what:40s} {named}{more}".rstrip())
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Converts the split that the flags describe."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}.")
    output_dir, split = _OUTPUT_DIR.value, _SPLIT.value
    categories_path = os.path.join(output_dir, categories.FILE_NAME)
    is_first = not tf.io.gfile.exists(categories_path)
    existing = None if is_first else categories.read(categories_path)
    annotated = read_annotations(existing)
    num_shards = min(_NUM_SHARDS.value, len(annotated.images))
    check_no_other_conversion(output_dir, split, num_shards)
    wanted = categories.from_coco(annotated.categories, index_by_id=_INDEX_BY_ID.value)
    check_agreement(existing, wanted, categories_path)
    with tqdm.tqdm(total=len(annotated.images), unit=" images") as progress:
        conversion = converter.write_shards(
            annotated,
            images_dir=_IMAGES.value,
            output_dir=output_dir,
            split=split,
            num_shards=num_shards,
            num_workers=_NUM_WORKERS.value,
            progress_fn=progress.update,
        )
    categories.write(wanted, categories_path)
    # Last, so that it stands for a finished conversion.
    json_path = os.path.join(output_dir, f"{split}.json")
    stored = annotated._replace(images=conversion.images)
    annotations.write_coco(stored, json_path, description=f"{split} split")
    print(summary(conversion))
    last = record_files.file_name(split, num_shards - 1, num_shards)
    print(
        f"Wrote {num_shards} files up to {last}, {split}.json, categories.json with "
        f"NUM_CLASSES = {wanted.num_classes}, all in {output_dir}."
    )


def _listed(entries: categories.Categories) -> str:
    listed = ", ".join(f"{c.index}={c.name}" for c in entries.categories[:5])
    return f"{entries.num_classes} classes ({listed}, ...)"


if __name__ == "__main__":
    flags.mark_flags_as_required(
        ["format", "images", "annotations", "output_dir", "split"]
    )
    app.run(main)
