"""Writes one small data set in each format that the converter reads."""

import csv
import json
import pathlib
import struct
import xml.etree.ElementTree as ET
import zlib
from typing import NamedTuple

import numpy as np
import PIL.Image

import tool_exports
from retinanet_tpu.conversion import checks, converter
from retinanet_tpu.conversion.formats import files, locating, readers

# Sorted, because formats without a list of classes number sorted names.
NAMES = ("Straße", "ampel", "猫 (cat)")


class Box(NamedTuple):
    """A box in pixels."""

    name: str
    xmin: float
    ymin: float
    xmax: float
    ymax: float


class SampleImage(NamedTuple):
    """An image and its boxes."""

    name: str
    width: int
    height: int
    boxes: tuple[Box, ...]


# Sides are powers of two, so that fractions of them are exact. Sorted by name.
IMAGES = (
    SampleImage("b.png", 32, 64, (Box(NAMES[2], 1, 2, 31, 60),)),
    SampleImage(
        "sub/c.jpg", 64, 64, (Box(NAMES[1], 0, 0, 64, 64), Box(NAMES[0], 5, 6, 7, 9))
    ),
    SampleImage("Äpfel 1.jpg", 64, 32, (Box(NAMES[0], 3.5, 4, 20, 30),)),
)


def draw(folder, images=IMAGES, **options):
    """Saves images of color ramps; returns the folder."""
    for image in images:
        path = pathlib.Path(folder) / image.name
        path.parent.mkdir(parents=True, exist_ok=True)
        x = np.linspace(0, 255, image.width, dtype=np.uint8)
        pixels = np.tile(x[None, :, None], [image.height, 1, 3])
        PIL.Image.fromarray(pixels).save(path, **options)
    return folder


def write(kind, folder, images=IMAGES, names=NAMES):
    """Writes annotations in a format to a new folder.

    Args:
      kind: The format, one of FORMATS.
      folder: The folder to make.
      images: The images to annotate.
      names: The class names.

    Returns:
      The path of the file or folder to read.
    """
    folder.mkdir(parents=True)
    return WRITERS[kind](folder, images, names)


def image_folder(folder):
    """Returns the images of a folder as an argument for readers."""
    return files.ImageFolder(str(folder), files.list_images(str(folder)))


def read(kind, path, images_dir):
    """Reads annotations as `retinanet-tpu convert` does."""
    images = image_folder(images_dir)
    flag, classes = kind.partition("_")[0], None
    if kind == "openimages":
        classes = str(pathlib.Path(path).parent / "class-descriptions.csv")
    annotated = readers.read(flag, str(path), image_folder=images, classes=classes)
    locating.check_exist(annotated, images)
    return annotated


def convert(kind, path, images_dir, output_dir, **options):
    """Reads, checks and converts to a split "train", as the command does.

    Returns:
      The Conversion. Its events begin with those of the reader.
    """
    annotated = read(kind, path, images_dir)
    checks.check_set(annotated)
    conversion = converter.write_shards(
        annotated,
        images_dir=str(images_dir),
        output_dir=str(output_dir),
        split="train",
        **{"num_shards": 2} | options,
    )
    events = [*annotated.events, *conversion.events]
    return conversion._replace(events=events)


def coco_content(images=IMAGES, names=NAMES):
    """Returns the content of a COCO file of the images, to be modified."""
    boxes = [(i, b) for i, image in enumerate(images, start=1) for b in image.boxes]
    return {
        "images": [
            {
                "id": i,
                "file_name": image.name,
                "width": image.width,
                "height": image.height,
            }
            for i, image in enumerate(images, start=1)
        ],
        "annotations": [
            {
                "id": number,
                "image_id": image_id,
                "category_id": names.index(b.name) + 1,
                "bbox": [b.xmin, b.ymin, b.xmax - b.xmin, b.ymax - b.ymin],
                "segmentation": [[b.xmin, b.ymin, b.xmax, b.ymax, b.xmin, b.ymax]],
            }
            for number, (image_id, b) in enumerate(boxes, start=1)
        ],
        "categories": [{"id": i, "name": n} for i, n in enumerate(names, start=1)],
    }


def giant_png(side):
    """Returns a PNG of side x side pixels by its header, but without pixels."""
    size = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", size), (b"IDAT", zlib.compress(b"0")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + _checksum(name + data)
        for name, data in chunks
    )


def _checksum(chunk):
    return struct.pack(">I", zlib.crc32(chunk))


def _write_coco(folder, images, names):
    path = folder / "instances.json"
    path.write_text(json.dumps(coco_content(images, names)), "utf-8")
    return path


def _write_voc(folder, images, names):
    for image in images:
        root = ET.Element("annotation")
        ET.SubElement(root, "filename").text = image.name
        size = ET.SubElement(root, "size")
        ET.SubElement(size, "width").text = str(image.width)
        ET.SubElement(size, "height").text = str(image.height)
        for box in image.boxes:
            item = ET.SubElement(root, "object")
            ET.SubElement(item, "name").text = box.name
            corners = ET.SubElement(item, "bndbox")
            for side in ("xmin", "ymin", "xmax", "ymax"):
                ET.SubElement(corners, side).text = str(getattr(box, side))
        ET.ElementTree(root).write(_beside(folder, image, ".xml"), "utf-8")
    return folder


def _write_yolo(folder, images, names):
    listed = "".join(f"  {i}: {json.dumps(n)}\n" for i, n in enumerate(names, start=1))
    (folder / "data.yaml").write_text(f"path: x\nnames:\n{listed}nc: {len(names)}\n")
    labels = folder / "labels"
    for image in images:
        lines = []
        for b in image.boxes:
            center = (b.xmin + b.xmax) / 2, (b.ymin + b.ymax) / 2
            size = b.xmax - b.xmin, b.ymax - b.ymin
            sides = (image.width, image.height) * 2
            shares = [v / s for v, s in zip((*center, *size), sides, strict=True)]
            number = names.index(b.name) + 1
            lines.append(" ".join(map(str, (number, *shares))) + "\n")
        _beside(labels, image, ".txt").write_text("".join(lines))
    return labels


def _write_csv(folder, images, names):
    rows = [["class", "image", "xmin", "ymin", "xmax", "ymax"]]
    rows += [[b[0], image.name, *b[1:]] for image in images for b in image.boxes]
    return _write_rows(folder / "boxes.csv", rows)


def _write_labelme(folder, images, names):
    for image in images:
        shapes = [
            # Drawn from the lower right corner.
            {
                "label": b.name,
                "points": [[b.xmax, b.ymax], [b.xmin, b.ymin]],
                "shape_type": "rectangle",
            }
            for b in image.boxes
        ]
        content = {
            "imagePath": pathlib.Path(image.name).name,
            "imageData": "AAAA",
            "imageWidth": image.width,
            "imageHeight": image.height,
            "shapes": shapes,
        }
        _beside(folder, image, ".json").write_text(json.dumps(content))
    return folder


def _write_openimages(folder, images, names):
    rows = [["ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf"]]
    for image in images:
        stem = image.name.rpartition(".")[0]
        for b in image.boxes:
            xs, ys = (
                (b.xmin / image.width, b.xmax / image.width),
                (
                    b.ymin / image.height,
                    b.ymax / image.height,
                ),
            )
            rows.append([stem, f"/m/{names.index(b.name)}", *xs, *ys, 0])
    described = [[f"/m/{i}", name] for i, name in enumerate(names)]
    _write_rows(folder / "class-descriptions.csv", described)
    return _write_rows(folder / "boxes.csv", rows)


def _write_rows(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def _beside(folder, image, extension):
    path = (folder / image.name).with_suffix(extension)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


WRITERS = {
    "coco": _write_coco,
    "voc": _write_voc,
    "yolo": _write_yolo,
    "csv": _write_csv,
    "labelme": _write_labelme,
    "openimages": _write_openimages,
    **tool_exports.WRITERS,
}
# The part of a name before "_" is the format of --format, the rest a variant of a tool.
FORMATS = tuple(WRITERS)
