"""CreateML: one JSON list of images, boxes in pixels by their centers.

[{"image": "a.jpg", "annotations": [{"label": "cat",
  "coordinates": {"x": 60, "y": 40, "width": 60, "height": 40}}]}]
"""

import os
from typing import Any

from retinanet_tpu.data import annotations
from retinanet_tpu.data.annotation_formats import assembly, documents, files, listing

_IMAGE = ("image", "imagefilename")  # The second is that of Apple's older pages.
_ANNOTATIONS = ("annotations", "annotation")


def read(
    path: str,
    *,
    pictures: files.Pictures,
    categories: list[dict[str, Any]] | None = None,
) -> annotations.AnnotatedSet:
    """Reads a CreateML file.

    Args:
      path: The JSON file.
      pictures: The folder of images.
      categories: The classes; None for all that occur in the file, sorted.

    Raises:
      UserError: The file has another structure, or a class is not known.
      MissingFileError: There is no such file.
    """
    content = documents.parse_json(files.read_bytes(path), path)
    found, findings = [], []
    for number, entry in enumerate(documents.is_a(content, list, path), start=1):
        where = f"{path}, entry {number}"
        documents.is_a(entry, dict, where)
        name = documents.get(entry, _IMAGE, str, where)
        source = f"{os.path.basename(path)}, {name}"
        objects = []
        items = documents.get(entry, _ANNOTATIONS, list, where)
        for place, item in enumerate(items, start=1):
            here = f"{source}, annotation {place}"
            documents.is_a(item, dict, here)
            numbers = documents.numbers(
                documents.get(item, ["coordinates"], dict, here),
                ("x", "y", "width", "height"),
                here,
            )
            label = documents.label(item.get("label"), here)
            if not label:
                findings.append(annotations.Finding(listing.NO_CLASS, here))
                continue
            x, y, width, height = numbers
            box_xywh = (x - width / 2, y - height / 2, width, height)
            objects.append(assembly.Labelled(label, box_xywh, place))
        found.append(assembly.Picture(name, 0, 0, objects, source))
    return listing.assemble(
        found,
        path=path,
        pictures=pictures,
        categories=categories,
        unit="annotation",
        findings=findings,
    )
