"""Folders as annotation tools export them: images and annotations."""

import json
import shutil

import annotation_files
import tool_exports

NAMES = ["cat", "dog"]
# Sides are powers of two, so that fractions of them are exact.
IMAGES = [
    annotation_files.SampleImage(
        f"img{number}.png",
        64,
        32,
        (
            annotation_files.Box("cat", 1 + number, 2, 30, 20),
            annotation_files.Box("dog", 8, 4 + number, 50, 30),
        ),
    )
    for number in range(8)
]
_TRAIN, _VAL = IMAGES[:5], IMAGES[5:]
_FRAMES = [image._replace(name=f"frame_{i:06d}.png") for i, image in enumerate(IMAGES)]
_NAMES_TEXT = "cat\ndog\n"
_YAML = {
    "data.yaml": f"path: .\ntrain: images/train\nval: images/val\nnames: {NAMES}\n"
}
_HASHED = [image._replace(name=f"0a1b2c3d-{image.name}") for image in IMAGES]


def _whole(write, images_dir, annotations_path, *, images=IMAGES, files=()):
    """Returns a function that writes an export without splits.

    Args:
      write: The function that writes annotations. Its arguments are a folder, images
        and class names; it returns the path of the file or folder that it wrote.
      images_dir: The folder of images, relative to the export.
      annotations_path: The file or folder of annotations, relative to the export.
      images: The images.
      files: The texts of further files, by file name.
    """
    return _in_splits(write, images_dir, annotations_path, {"": images}, files)


def _in_splits(write, images_dir, annotations_path, splits, files=()):
    """Returns a function that writes an export with a part for each split."""

    def make(folder):
        for split, images in splits.items():
            annotation_files.draw(folder / images_dir.format(split), images)
            path = folder / annotations_path.format(split)
            scratch = folder / "scratch"
            scratch.mkdir()
            scratch_path = write(scratch, images, NAMES)
            path.parent.mkdir(parents=True, exist_ok=True)
            if scratch_path.is_dir():
                shutil.copytree(scratch_path, path, dirs_exist_ok=True)
            else:
                scratch_path.rename(path)
            shutil.rmtree(scratch)
        for name, text in dict(files).items():
            (folder / name).write_text(text)

    return make


def _yolo(folder, images, names):
    for image in images:
        lines = []
        for b in image.boxes:
            numbers = [
                (b.xmin + b.xmax) / 2 / image.width,
                (b.ymin + b.ymax) / 2 / image.height,
                (b.xmax - b.xmin) / image.width,
                (b.ymax - b.ymin) / image.height,
            ]
            lines.append(" ".join(map(str, (names.index(b.name), *numbers))) + "\n")
        (folder / image.name).with_suffix(".txt").write_text("".join(lines))
    return folder


def _csv(header, row_fn):
    """Returns a writer of a table with a line for each box."""

    def write(folder, images, names):
        rows = [
            ",".join(map(str, row_fn(image, b)))
            for image in images
            for b in image.boxes
        ]
        path = folder / "table.csv"
        path.write_text("\n".join([*header, *rows]) + "\n")
        return path

    return write


def _roboflow_coco(folder, images, names):
    """Writes COCO whose first category is the supercategory of all others."""
    content = annotation_files.coco_content(images, names)
    for category in content["categories"]:
        category["supercategory"] = "animals"
    root = {"id": 0, "name": "animals", "supercategory": "none"}
    content["categories"].insert(0, root)
    path = folder / "coco.json"
    path.write_text(json.dumps(content))
    return path


def _label_studio_coco(folder, images, names):
    content = annotation_files.coco_content(images, names)
    for image in content["images"]:
        image["file_name"] = f"images/{image['file_name']}"
    path = folder / "coco.json"
    path.write_text(json.dumps(content))
    return path


def _open_images(folder):
    for split, images in (("train", _TRAIN), ("validation", _VAL)):
        annotation_files.draw(folder / split, images)
        table = annotation_files.write("openimages", folder / "x", images, NAMES)
        table.rename(folder / f"{split}-annotations-bbox.csv")
        classes = folder / "x/class-descriptions.csv"
        classes.rename(folder / "class-descriptions-boxable.csv")
        (folder / "x").rmdir()


def _listed(images):
    return "".join(f"data/obj/{image.name}\n" for image in images)


_VOC, _COCO, _LABELME = (
    annotation_files.WRITERS[kind] for kind in ("voc", "coco", "labelme")
)
_TENSORFLOW = _csv(
    ["filename,width,height,class,xmin,ymin,xmax,ymax"],
    lambda image, b: (image.name, image.width, image.height, *b),
)
_ROBOFLOW = {"train": _TRAIN, "valid": _VAL}
_ULTRALYTICS = {"train": _TRAIN, "val": _VAL}
EXPORTS = {
    "Roboflow, COCO": _in_splits(
        _roboflow_coco, "{}", "{}/_annotations.coco.json", _ROBOFLOW
    ),
    "Roboflow, YOLO": _in_splits(
        _yolo, "{}/images", "{}/labels", _ROBOFLOW, files=_YAML
    ),
    "Roboflow, Pascal VOC": _in_splits(_VOC, "{}", "{}", _ROBOFLOW),
    "Roboflow, TensorFlow CSV": _in_splits(
        _TENSORFLOW, "{}", "{}/_annotations.csv", _ROBOFLOW
    ),
    "Roboflow, CreateML": _in_splits(
        tool_exports.createml, "{}", "{}/_annotations.createml.json", _ROBOFLOW
    ),
    "CVAT, COCO 1.0": _whole(_COCO, "images", "annotations/instances_default.json"),
    "CVAT, YOLO 1.1": _whole(
        _yolo,
        "obj_train_data",
        "obj_train_data",
        files={"obj.names": _NAMES_TEXT, "train.txt": _listed(IMAGES)},
    ),
    "CVAT, Ultralytics YOLO": _whole(
        _yolo, "images/train", "labels/train", files=_YAML
    ),
    "CVAT, Pascal VOC 1.1": _whole(_VOC, "JPEGImages", "Annotations"),
    "CVAT, CVAT for images 1.1": _whole(tool_exports.cvat, "images", "annotations.xml"),
    "CVAT, CVAT for video 1.1": _whole(
        tool_exports.cvat_video, "images", "annotations.xml", images=_FRAMES
    ),
    "Label Studio, JSON": _whole(tool_exports.label_studio, "images", "project.json"),
    "Label Studio, JSON-MIN": _whole(
        tool_exports.label_studio_min, "images", "project.json"
    ),
    "Label Studio, COCO": _whole(
        _label_studio_coco, "images", "result.json", images=_HASHED
    ),
    "Label Studio, YOLO": _whole(
        _yolo,
        "images",
        "labels",
        images=_HASHED,
        files={"classes.txt": _NAMES_TEXT, "notes.json": "{}"},
    ),
    "Label Studio, Pascal VOC": _whole(_VOC, "images", "Annotations", images=_HASHED),
    "VIA 2, CSV": _whole(tool_exports.via_csv, "images", "via_export_csv.csv"),
    "VIA 2, JSON": _whole(tool_exports.via_json, "images", "via_export_json.json"),
    "VIA 2, project": _whole(tool_exports.via_project, "images", "via_project.json"),
    "VIA 2, COCO": _whole(tool_exports.via_coco, "images", "via_export_coco.json"),
    "labelme, JSON files": _whole(_LABELME, ".", "."),
    "makesense, YOLO": _whole(
        _yolo, "images", "labels", files={"labels.txt": _NAMES_TEXT}
    ),
    "makesense, VOC XML": _whole(_VOC, "images", "labels"),
    "makesense, CSV": _whole(
        _csv(
            [],
            lambda image, b: (
                *(b.name, b.xmin, b.ymin, b.xmax - b.xmin, b.ymax - b.ymin),
                *(image.name, image.width, image.height),
            ),
        ),
        "images",
        "labels.csv",
    ),
    "Ultralytics, data set": _in_splits(
        _yolo, "images/{}", "labels/{}", _ULTRALYTICS, files=_YAML
    ),
    "darknet, data set": _whole(
        _yolo,
        "obj",
        "obj",
        files={
            "obj.names": _NAMES_TEXT,
            "train.txt": _listed(_TRAIN),
            "valid.txt": _listed(_VAL),
        },
    ),
    "Create ML, JSON": _whole(tool_exports.createml, ".", "annotations.json"),
    "Open Images, boxes": _open_images,
    "TensorFlow, CSV": _in_splits(
        _TENSORFLOW, "images", "{}_labels.csv", {"train": _TRAIN, "test": _VAL}
    ),
    "keras-retinanet, CSV": _whole(
        _csv([], lambda image, b: (image.name, *b[1:], b.name)), ".", "annotations.csv"
    ),
    "FiftyOne, COCO": _whole(_COCO, "data", "labels.json"),
    "FiftyOne, YOLOv5": _in_splits(
        _yolo,
        "images/{}",
        "labels/{}",
        _ULTRALYTICS,
        files={"dataset.yaml": _YAML["data.yaml"]},
    ),
    "FiftyOne, VOC": _whole(_VOC, "data", "labels"),
}
