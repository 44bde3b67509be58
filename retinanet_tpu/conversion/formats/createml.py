"""Reads CreateML: one JSON list of images, boxes in pixels by their centers.

[{"image": "a.jpg", "annotations": [{"label": "cat",
  "coordinates": {"x": 60, "y": 40, "width": 60, "height": 40}}]}]
"""

import os
from typing import Any

from retinanet_tpu.conversion.formats import assembly, documents, files, listing
from retinanet_tpu.data import annotations

_IMAGE = ("image", "imagefilename")  # The second is that of Apple's older pages.
_ANNOTATIONS = ("annotations", "annotation")


def read(
    path: str,
    *,
    pictures: files.ImageFolder,
    categories: list[dict[str, Any]] | None = None,
) -> annotations.AnnotatedSet:
    """Reads a CreateML file.

    Args:
      path: The JSON file.
      images: The folder of images.
      categories: The classes; None for all that occur in the file, sorted.

    Raises:
      UserError: The file has another structure, or a class is not known.
      MissingFileError: There is no such file.
    """
    content = documents.load_json(files.read_bytes(path), path)
    entries = documents.is_a(content, list, path)
    return listing.assemble(
        [
            _content(e, f"{path}, entry {i}", path)
            for i, e in enumerate(entries, start=1)
        ],
        path=path,
        pictures=pictures,
        categories=categories,
        unit="annotation",
    )


def _content(entry: Any, where: str, path: str) -> assembly.Content:
    documents.is_a(entry, dict, where)
    name = documents.get(entry, _IMAGE, str, where)
    source = f"{os.path.basename(path)}, {name}"
    objects, findings = [], []
    listed = documents.get(entry, _ANNOTATIONS, list, where)
    for place, item in enumerate(listed, start=1):
        here = f"{source}, annotation {place}"
        documents.is_a(item, dict, here)
        coordinates = documents.get(item, ["coordinates"], dict, here)
        keys = ("x", "y", "width", "height")
        x, y, width, height = documents.numbers(coordinates, keys, here)
        label = documents.label(item.get("label"), here)
        if not label:
            findings.append(annotations.ConversionEvent(listing.NO_CLASS, here))
            continue
        box_xywh = (x - width / 2, y - height / 2, width, height)
        objects.append(assembly.LabeledBox(label, box_xywh, place))
    picture = assembly.ReadImage(name, 0, 0, objects, source)
    return assembly.Content(picture, findings)
