"""Small exports as annotation tools write them, of `annotation_files.Picture`s."""

import csv
import json
import pathlib
import urllib.parse
import xml.etree.ElementTree as ET

_VIA_COLUMNS = (
    "filename,file_size,file_attributes,region_count,region_id,"
    "region_shape_attributes,region_attributes"
)


def via_csv(folder, pictures, names):
    path = folder / "via_export_csv.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(_VIA_COLUMNS.split(","))
        for p in pictures:
            regions = [_via_region(box) for box in p.boxes]
            for i, region in enumerate(regions):
                shape, attributes = map(json.dumps, region.values())
                row = [p.name, 99, "{}", len(regions), i, shape, attributes]
                rows.writerow(row)
            if not regions:
                rows.writerow([p.name, 99, "{}", 0, 0, "{}", "{}"])
    return path


def via_json(folder, pictures, names):
    return _json(folder / "via_export_json.json", _via_images(pictures))


def via_project(folder, pictures, names):
    options = dict.fromkeys(names, "")
    content = {
        "_via_settings": {"core": {"default_filepath": ""}},
        "_via_img_metadata": _via_images(pictures),
        "_via_attributes": {
            "region": {"type": {"type": "dropdown", "options": options}},
            "file": {},
        },
    }
    return _json(folder / "via_project.json", content)


def via_coco(folder, pictures, names):
    """Writes the COCO export: image ids are texts, categories stand once an image."""
    boxes = [(i, b) for i, p in enumerate(pictures) for b in p.boxes]
    content = {
        "info": {"description": "VIA project exported to COCO format"},
        "images": [
            {"id": i, "width": p.width, "height": p.height, "file_name": p.name}
            for i, p in enumerate(pictures)
        ],
        "annotations": [
            {
                "id": number,
                "image_id": str(i),
                "category_id": names.index(b.name) + 1,
                "segmentation": [b.xmin, b.ymin, b.xmax, b.ymin, b.xmax, b.ymax],
                "area": (b.xmax - b.xmin) * (b.ymax - b.ymin),
                "bbox": [b.xmin, b.ymin, b.xmax - b.xmin, b.ymax - b.ymin],
                "iscrowd": 0,
            }
            for number, (i, b) in enumerate(boxes)
        ],
        "categories": [
            {"supercategory": "type", "id": i, "name": name}
            for _ in pictures
            for i, name in enumerate(names, start=1)
        ],
    }
    return _json(folder / "via_export_coco.json", content)


def createml(folder, pictures, names):
    content = [
        {
            "image": p.name,
            "annotations": [
                {
                    "label": b.name,
                    "coordinates": {
                        "x": (b.xmin + b.xmax) / 2,
                        "y": (b.ymin + b.ymax) / 2,
                        "width": b.xmax - b.xmin,
                        "height": b.ymax - b.ymin,
                    },
                }
                for b in p.boxes
            ],
        }
        for p in pictures
    ]
    return _json(folder / "_annotations.createml.json", content)


def cvat(folder, pictures, names):
    root = _cvat_root(names)
    for number, p in enumerate(pictures):
        sides = {"width": str(p.width), "height": str(p.height)}
        image = ET.SubElement(root, "image", id=str(number), name=p.name, **sides)
        for b in p.boxes:
            ET.SubElement(image, "box", label=b.name, occluded="0", **_corners(b))
    path = folder / "annotations.xml"
    ET.ElementTree(root).write(path, "utf-8", xml_declaration=True)
    return path


def cvat_video(folder, pictures, names):
    """Writes a track for each box, which leaves in the next frame."""
    root = _cvat_root(names)
    for number, p in enumerate(pictures):
        for b in p.boxes:
            track = ET.SubElement(root, "track", id=str(len(root)), label=b.name)
            for frame, outside in ((number, "0"), (number + 1, "1")):
                place = {"frame": str(frame), "outside": outside, "keyframe": "1"}
                ET.SubElement(track, "box", occluded="0", **place, **_corners(b))
    path = folder / "annotations.xml"
    ET.ElementTree(root).write(path, "utf-8", xml_declaration=True)
    return path


def label_studio(folder, pictures, names):
    content = [
        {
            "id": number,
            "data": {"image": _upload(p.name)},
            "annotations": [
                {
                    "id": number,
                    "result": [_label_studio_result(p, b) for b in p.boxes],
                    "was_canceled": False,
                    "ground_truth": False,
                    "updated_at": "2026-01-01T00:00:00.000000Z",
                }
            ],
            "predictions": [],
        }
        for number, p in enumerate(pictures, start=1)
    ]
    return _json(folder / "project-1.json", content)


def label_studio_min(folder, pictures, names):
    content = []
    for number, p in enumerate(pictures, start=1):
        results = [_label_studio_result(p, b) for b in p.boxes]
        sizes = {"original_width": p.width, "original_height": p.height}
        task = {
            "image": f"/data/local-files/?d={urllib.parse.quote(f'set/{p.name}')}",
            "id": number,
            "label": [{**r["value"], **sizes} for r in results],
            "annotator": 1,
            "annotation_id": number,
        }
        if not results:
            del task["label"]
        content.append(task)
    return _json(folder / "project-1-min.json", content)


def _upload(name):
    folder, file_name = pathlib.PurePosixPath(name).parent, pathlib.Path(name).name
    return urllib.parse.quote(f"/data/upload/1/{folder}/0a1b2c3d-{file_name}")


def _label_studio_result(picture, box):
    return {
        "original_width": picture.width,
        "original_height": picture.height,
        "image_rotation": 0,
        "value": {
            "x": box.xmin * 100 / picture.width,
            "y": box.ymin * 100 / picture.height,
            "width": (box.xmax - box.xmin) * 100 / picture.width,
            "height": (box.ymax - box.ymin) * 100 / picture.height,
            "rotation": 0,
            "rectanglelabels": [box.name],
        },
        "id": f"{picture.name} {box}",
        "from_name": "label",
        "to_name": "image",
        "type": "rectanglelabels",
    }


def _via_images(pictures):
    return {
        f"{p.name}99": {
            "filename": p.name,
            "size": 99,
            "regions": [_via_region(box) for box in p.boxes],
            "file_attributes": {},
        }
        for p in pictures
    }


def _via_region(box):
    return {
        "shape_attributes": {
            "name": "rect",
            "x": box.xmin,
            "y": box.ymin,
            "width": box.xmax - box.xmin,
            "height": box.ymax - box.ymin,
        },
        "region_attributes": {"type": box.name},
    }


def _cvat_root(names):
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    meta = ET.SubElement(root, "meta")
    labels = ET.SubElement(ET.SubElement(meta, "task"), "labels")
    for name in names:
        ET.SubElement(ET.SubElement(labels, "label"), "name").text = name
    return root


def _corners(box):
    sides = {"xtl": box.xmin, "ytl": box.ymin, "xbr": box.xmax, "ybr": box.ymax}
    return {side: f"{value:.2f}" for side, value in sides.items()}


def _json(path: pathlib.Path, content):
    path.write_text(json.dumps(content), "utf-8")
    return path


WRITERS = {
    "via": via_json,
    "via_csv": via_csv,
    "via_project": via_project,
    "createml": createml,
    "cvat": cvat,
    "labelstudio": label_studio,
    "labelstudio_min": label_studio_min,
}
