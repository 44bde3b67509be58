"""Writes `SampleImage`s as annotation tools export them."""

import csv
import json
import pathlib
import urllib.parse
import xml.etree.ElementTree as ET

_VIA_COLUMNS = (
    "filename,file_size,file_attributes,region_count,region_id,"
    "region_shape_attributes,region_attributes"
)


def via_csv(folder, images, names):
    path = folder / "via_export_csv.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(_VIA_COLUMNS.split(","))
        for image in images:
            regions = [_via_region(box) for box in image.boxes]
            for i, region in enumerate(regions):
                shape, attributes = map(json.dumps, region.values())
                row = [image.name, 99, "{}", len(regions), i, shape, attributes]
                rows.writerow(row)
            if not regions:
                rows.writerow([image.name, 99, "{}", 0, 0, "{}", "{}"])
    return path


def via_json(folder, images, names):
    return _json(folder / "via_export_json.json", _via_images(images))


def via_project(folder, images, names):
    options = dict.fromkeys(names, "")
    content = {
        "_via_settings": {"core": {"default_filepath": ""}},
        "_via_img_metadata": _via_images(images),
        "_via_attributes": {
            "region": {"type": {"type": "dropdown", "options": options}},
            "file": {},
        },
    }
    return _json(folder / "via_project.json", content)


def via_coco(folder, images, names):
    """Writes the COCO export: image ids are texts, categories repeat per image."""
    boxes = [(i, b) for i, image in enumerate(images) for b in image.boxes]
    content = {
        "info": {"description": "VIA project exported to COCO format"},
        "images": [
            {
                "id": i,
                "width": image.width,
                "height": image.height,
                "file_name": image.name,
            }
            for i, image in enumerate(images)
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
            for _ in images
            for i, name in enumerate(names, start=1)
        ],
    }
    return _json(folder / "via_export_coco.json", content)


def createml(folder, images, names):
    content = [
        {
            "image": image.name,
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
                for b in image.boxes
            ],
        }
        for image in images
    ]
    return _json(folder / "_annotations.createml.json", content)


def cvat(folder, images, names):
    root = _cvat_root(names)
    for number, image in enumerate(images):
        sides = {"width": str(image.width), "height": str(image.height)}
        element = ET.SubElement(root, "image", id=str(number), name=image.name, **sides)
        for b in image.boxes:
            ET.SubElement(element, "box", label=b.name, occluded="0", **_corners(b))
    path = folder / "annotations.xml"
    ET.ElementTree(root).write(path, "utf-8", xml_declaration=True)
    return path


def cvat_video(folder, images, names):
    """Writes a track for each box, which is outside in the next frame."""
    root = _cvat_root(names)
    for number, image in enumerate(images):
        for b in image.boxes:
            track = ET.SubElement(root, "track", id=str(len(root)), label=b.name)
            for frame, outside in ((number, "0"), (number + 1, "1")):
                place = {"frame": str(frame), "outside": outside, "keyframe": "1"}
                ET.SubElement(track, "box", occluded="0", **place, **_corners(b))
    path = folder / "annotations.xml"
    ET.ElementTree(root).write(path, "utf-8", xml_declaration=True)
    return path


def label_studio(folder, images, names):
    content = [
        {
            "id": number,
            "data": {"image": _upload(image.name)},
            "annotations": [
                {
                    "id": number,
                    "result": [_label_studio_result(image, b) for b in image.boxes],
                    "was_canceled": False,
                    "ground_truth": False,
                    "updated_at": "2026-01-01T00:00:00.000000Z",
                }
            ],
            "predictions": [],
        }
        for number, image in enumerate(images, start=1)
    ]
    return _json(folder / "project-1.json", content)


def label_studio_min(folder, images, names):
    content = []
    for number, image in enumerate(images, start=1):
        results = [_label_studio_result(image, b) for b in image.boxes]
        sizes = {"original_width": image.width, "original_height": image.height}
        task = {
            "image": f"/data/local-files/?d={urllib.parse.quote(f'set/{image.name}')}",
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


def _label_studio_result(image, box):
    return {
        "original_width": image.width,
        "original_height": image.height,
        "image_rotation": 0,
        "value": {
            "x": box.xmin * 100 / image.width,
            "y": box.ymin * 100 / image.height,
            "width": (box.xmax - box.xmin) * 100 / image.width,
            "height": (box.ymax - box.ymin) * 100 / image.height,
            "rotation": 0,
            "rectanglelabels": [box.name],
        },
        "id": f"{image.name} {box}",
        "from_name": "label",
        "to_name": "image",
        "type": "rectanglelabels",
    }


def _via_images(images):
    return {
        f"{image.name}99": {
            "filename": image.name,
            "size": 99,
            "regions": [_via_region(box) for box in image.boxes],
            "file_attributes": {},
        }
        for image in images
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
