"""Reads Create ML: one JSON list of images, boxes in pixels with their centers.

[{"image": "a.jpg", "annotations": [{"label": "cat",
  "coordinates": {"x": 60, "y": 40, "width": 60, "height": 40}}]}]
"""

import os
from typing import Any

from retinanet_tpu.conversion.formats import assembly, documents, files, listing
from retinanet_tpu.data import annotations

# Apple's older documentation has the second key of each pair.
_IMAGE = ("image", "imagefilename")
_ANNOTATIONS = ("annotations", "annotation")


def read(
    path: str,
    *,
    image_folder: files.ImageFolder,
    categories: list[dict[str, Any]] | None = None,
) -> annotations.AnnotatedSet:
    """Reads a Create ML file.

    Args:
      path: The JSON file.
      image_folder: The folder of images.
      categories: The classes; None for all that occur in the file, sorted.

    Raises:
      UserError: The file has another structure, or a class is unknown.
      MissingFileError: The file does not exist.
    """
    content = documents.load_json(files.read_bytes(path), path)
    entries = documents.expect(content, list, path)
    return listing.assemble(
        [
            _content(entry, f"{path}, entry {number}", path)
            for number, entry in enumerate(entries, start=1)
        ],
        path=path,
        image_folder=image_folder,
        categories=categories,
        unit="annotation",
    )


def _content(entry: Any, where: str, path: str) -> assembly.Content:
    """Returns the annotations of an entry of the list."""
    documents.expect(entry, dict, where)
    name = documents.get(entry, _IMAGE, str, where)
    source = f"{os.path.basename(path)}, {name}"
    objects: list[assembly.LabeledBox] = []
    events: list[annotations.ConversionEvent] = []
    listed = documents.get(entry, _ANNOTATIONS, list, where)
    for number, item in enumerate(listed, start=1):
        here = f"{source}, annotation {number}"
        documents.expect(item, dict, here)
        coordinates = documents.get(item, ["coordinates"], dict, here)
        keys = ("x", "y", "width", "height")
        x, y, width, height = documents.numbers(coordinates, keys, here)
        label = documents.label(item.get("label"), here)
        if not label:
            events.append(annotations.ConversionEvent(listing.NO_CLASS, here))
            continue
        box_xywh = (x - width / 2, y - height / 2, width, height)
        objects.append(assembly.LabeledBox(label, box_xywh, number))
    image = assembly.ReadImage(name, 0, 0, objects, source)
    return assembly.Content(image, events)
