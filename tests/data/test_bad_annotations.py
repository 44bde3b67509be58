"""Faults of a data set, and the converter's message about each.

Each fault is a function that damages the folder of a valid data set: images/, and
annotations of a format. The expected message stands beside it: an error, or an event
with its location while the rest is converted.
"""

import json
import re

import numpy as np
import PIL.Image
import pytest

import annotation_files
import repository

VALID = annotation_files.IMAGES


def replace(folder, name, *changes, count=1):
    """Replaces texts in an annotation file."""
    path = folder / "annotations" / name
    text = path.read_text("utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, count)
    path.write_text(text, "utf-8")


def cut_off(folder, name):
    path = folder / "annotations" / name
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])


def change_coco(folder, change_fn):
    path = folder / "annotations" / "instances.json"
    content = json.loads(path.read_text())
    change_fn(content)
    path.write_text(json.dumps(content))


def edit(part, position, **changes):
    """Returns a function that edits an entry of a COCO file; None removes a key."""

    def damage(folder):
        def change(content):
            entry = content[part][position]
            entry.update(changes)
            for key in [key for key, value in changes.items() if value is None]:
                del entry[key]

        change_coco(folder, change)

    return damage


def edit_all_boxes(box_fn):
    def change(content):
        for annotation in content["annotations"]:
            annotation["bbox"] = box_fn(*annotation["bbox"])

    return lambda folder: change_coco(folder, change)


def save_size(folder, name, width, height):
    pixels = np.zeros([height, width, 3], np.uint8)
    (folder / "images" / name).parent.mkdir(exist_ok=True)
    PIL.Image.fromarray(pixels).save(folder / "images" / name)


def append(folder, name, text):
    """Adds text to the last line of an annotation file."""
    path = folder / "annotations" / name
    path.write_text(path.read_text().rstrip("\n") + text + "\n")


def add_root(content):
    """Adds a category above all others, as Roboflow does."""
    for category in content["categories"]:
        category["supercategory"] = "Straße"
    root = {"id": 0, "name": "Straße", "supercategory": "none"}
    content["categories"].insert(0, root)


def rename(folder, name, path):
    """Lets an image be annotated, and lie, elsewhere."""
    (folder / "images/b.png").rename(folder / "b.png")
    replace(folder, name, ("b.png", path))


def resize_all(folder):
    for image in VALID:
        save_size(folder, image.name, image.width * 2, image.height * 2)


# Name, format, fault, kind and location of the event. The rest is converted.
COUNTED = [
    ("an XML file that is cut off", "voc", lambda f: cut_off(f, "b.xml"),
     "annotation files unreadable, their images left out", "b.xml"),
    ("a Labelme file that is cut off", "labelme", lambda f: cut_off(f, "b.json"),
     "annotation files unreadable, their images left out", "b.json"),
    ("a Labelme file without a key", "labelme",
     lambda f: replace(f, "b.json", ('"shapes"', '"forms"')),
     "annotation files unreadable, their images left out", "b.json"),
    ("a YOLO line with a number too few", "yolo",
     lambda f: replace(f, "labels/b.txt", (" 0.484375 ", " ")),
     "annotation files unreadable, their images left out", "b.txt"),
    ("an annotated image that is not there", "coco",
     lambda f: (f / "images/b.png").unlink(), "images missing on disk", "b.png"),
    ("an image under another path than annotated", "coco",
     lambda f: replace(f, "instances.json", ("b.png", "C:\\\\data\\\\B.jpeg")),
     "images found under another path than annotated", "b.png"),
    ("a name that fits two images", "csv",
     lambda f: [save_size(f, f"{x}/b.png", 9, 9) for x in "xy"]
     and (f / "images/b.png").unlink(),
     "images that match several files, left out", "b.png"),
    ("an image without annotation", "voc",
     lambda f: save_size(f, "new.png", 9, 9),
     "images without annotation, left out", "new.png"),
    ("an image without a YOLO file", "yolo",
     lambda f: save_size(f, "new.png", 9, 9),
     "images without a label file, kept as background", "new.png"),
    ("an annotation with an outline and no box", "coco",
     edit("annotations", 1, bbox=None),
     "boxes taken from the outline of the object", "instances.json, annotation 2"),
    ("an annotation without box and outline", "coco",
     edit("annotations", 1, bbox=[], segmentation=None),
     "objects without box or outline, dropped", "instances.json, annotation 2"),
    ("an annotation of an image that is not listed", "coco",
     edit("annotations", 1, image_id=77),
     "objects of images that are not listed, dropped", "instances.json, annotation 2"),
    ("an object without box and outline", "voc",
     lambda f: replace(f, "sub/c.xml", ("bndbox", "box"), ("bndbox", "box")),
     "objects without box or outline, dropped", "sub/c.xml, object 1"),
    ("an area that does not fit its box", "coco", edit("annotations", 1, area=0),
     "areas that do not fit their box, replaced by the box's",
     "instances.json, annotation 2"),
    ("Roboflow's root category", "coco",
     lambda f: change_coco(f, add_root),
     "categories that are only the supercategory of all others, left out",
     "instances.json"),
    ("a label that is no class", "labelme",
     lambda f: replace(f, "sub/c.json", ("ampel", "__ignore__")),
     "objects of no class (__ignore__, _background_), dropped", "sub/c.json, shape 1"),
    ("a box with keypoints", "yolo",
     lambda f: replace(f, "data.yaml", ("path: x", "kpt_shape: [1, 3]"))
     or append(f, "labels/b.txt", " 0.5 0.5 2"),
     "keypoints left out, their boxes stored", "b.txt, line 1"),
    ("a box of width 0", "csv",
     lambda f: replace(f, "boxes.csv", ("64,64", "0,64")),
     "boxes without area, dropped", "boxes.csv, line 3"),
    ("a box of negative width", "coco", edit("annotations", 1, bbox=[9, 9, -3, 2]),
     "boxes of negative size (xmin > xmax or ymin > ymax), dropped",
     "instances.json, annotation 2"),
    ("corners in the wrong order", "voc",
     lambda f: replace(f, "b.xml", (">1<", ">50<")),
     "boxes of negative size (xmin > xmax or ymin > ymax), dropped", "b.xml, object 1"),
    ("one box in fractions among pixels", "csv",
     lambda f: replace(f, "boxes.csv", ("0,0,64,64", "0.1,0.1,0.9,0.9")),
     "boxes in 0..1 where pixels were expected, dropped", "boxes.csv, line 3"),
    ("one box in pixels among fractions", "openimages",
     lambda f: replace(f, "boxes.csv", ("/m/1,0.0,1.0,0.0,1.0", "/m/1,0,64,0,64")),
     "boxes beyond 0..1 where fractions were expected, dropped", "boxes.csv, line 3"),
    ("NaN in JSON", "coco", edit("annotations", 1, bbox=[1, 2, float("nan"), 4]),
     "boxes that are not finite, dropped", "instances.json, annotation 2"),
    ("NaN in a text", "yolo",
     lambda f: replace(f, "labels/sub/c.txt", ("0.5 0.5", "nan 0.5")),
     "boxes that are not finite, dropped", "sub/c.txt, line 1"),
    ("a box far beyond the image", "voc",
     lambda f: replace(f, "b.xml", (">31<", ">99<")),
     "boxes far beyond the edge, clipped", "b.xml, object 1"),
    ("a box beyond the image", "voc",
     lambda f: replace(f, "b.xml", (">31<", ">33<")),
     "boxes beyond the edge, clipped", "b.xml, object 1"),
    ("a box beside the image", "voc",
     lambda f: replace(f, "b.xml", (">1<", ">40<"), (">31<", ">90<")),
     "boxes outside the image, dropped", "b.xml, object 1"),
    ("annotation ids that repeat", "coco", edit("annotations", 1, id=1),
     "files whose annotation ids are absent, repeated or below 1, renumbered",
     "instances.json"),
    ("an image of 0 bytes", "coco", lambda f: (f / "images/b.png").write_bytes(b""),
     "images of 0 bytes", "b.png"),
    ("an image that is cut off", "coco",
     lambda f: (f / "images/b.png").write_bytes(
         (f / "images/b.png").read_bytes()[:60]),
     "images unreadable", "b.png"),
    ("an image of another size than annotated", "voc",
     lambda f: save_size(f, "b.png", 64, 128),
     "images of another size than annotated, left out", "b.png"),
    ("a header of 100,000 x 100,000 px", "csv", 
     lambda f: (f / "images/b.png").write_bytes(annotation_files.giant_png(100_000)),
     "images too large to be images", "b.png"),
    ("a path that leaves the folder", "coco",
     lambda f: rename(f, "instances.json", "../b.png"),
     "images whose path leaves the folder, left out", "../b.png"),
    ("an absolute path to elsewhere", "csv",
     lambda f: rename(f, "boxes.csv", "/etc/b.png"),
     "images whose path leaves the folder, left out", "/etc/b.png"),
]  # fmt: skip

# Name, format, fault, pattern of the error.
ERRORS = [
    ("a COCO file that is cut off", "coco", lambda f: cut_off(f, "instances.json"),
     r"instances\.json is not JSON, or cut off: .*line 1 column \d+"),
    ("a COCO entry without a key", "coco", edit("annotations", 1, category_id=None),
     r"instances\.json: annotations\[1\] lacks 'category_id'"),
    ("a flag that is none", "coco", edit("annotations", 1, iscrowd=2),
     r"annotation 2 has iscrowd 2; expected 0 or 1"),
    ("annotations without boxes", "coco",
     lambda f: change_coco(f, lambda c: [
         a.update(bbox=[], segmentation=[]) for a in c["annotations"][:3]]),
     r"3 of 4 boxes are unusable, 3 of them objects without box or outline: inst"),
    ("lines of polygons or keypoints", "yolo",
     lambda f: append(f, "labels/b.txt", " 0.5 0.5 2"),
     r"b\.txt, line 1 has 7 numbers after the class.*kpt_shape: \[0, 0\] for poly"),
    ("a COCO list that is missing", "coco",
     lambda f: change_coco(f, lambda c: c.pop("categories")),
     r"instances\.json lacks categories"),
    ("an image id that repeats", "coco", edit("images", 1, id=1),
     r"instances\.json: image id 1 occurs 2 times"),
    ("a category id that repeats", "coco", edit("categories", 1, id=1),
     r"instances\.json: category id 1 occurs 2 times"),
    ("one image listed twice", "coco", edit("images", 1, file_name="b.png"),
     r"b\.png is annotated twice, as image 1 .* and 2"),
    ("two classes of one name", "yolo",
     lambda f: replace(f, "data.yaml", ("ampel", "Stra\\u00dfe")),
     r"'Straße' .id 1: 2 boxes, first sub/c\.txt, line 2.*id 2: 1.*have one name"),
    ("class names that differ in case only", "voc",
     lambda f: replace(f, "sub/c.xml", ("ampel", "straße")),
     r"'Straße'.*sub/c\.xml, object 2.*'straße'.*object 1.*differ in case or blanks"),
    ("class names that differ in blanks only", "csv",
     lambda f: replace(f, "boxes.csv", ("ampel,", "Stra ße,")),
     r"'Stra ße'.*line 3.*'Straße'.*boxes\.csv, line 4.*differ in case or blanks"),
    ("a class number that has no name", "yolo",
     lambda f: replace(f, "labels/b.txt", ("3 ", "8 ")),
     r"b\.txt, line 1 has class '8'; known are 1, 2, 3"),
    ("fractions where pixels were expected", "coco",
     edit_all_boxes(lambda x, y, w, h: [x / 64, y / 64, w / 64, h / 64]),
     r"4 of 4 boxes are unusable, 4 of them boxes in 0\.\.1 where pixels were "
     r"expected: instances\.json, annotation 1 .*Write pixels"),
    ("pixels where fractions were expected", "openimages",
     lambda f: (f / "annotations/boxes.csv").write_text(
         "ImageID,LabelName,XMin,XMax,YMin,YMax\nb,/m/1,1,31,2,60\n"),
     r"1 of 1 boxes.*boxes\.csv, line 2 .*Write fractions"),
    ("width and height in place of corners", "csv",
     lambda f: (f / "annotations/boxes.csv").write_text(
         "b.png,20,30,9,9,cat\nsub/c.jpg,5,9,4,8,cat\nb.png,1,2,9,9,cat\n"),
     r"2 of 3 boxes.*negative size.*boxes\.csv, line 1.*Check that the order of"),
    ("corners in place of width and height", "coco",
     edit_all_boxes(lambda x, y, w, h: [x + 5, y + 5, x + w, y + h]),
     r"3 of 4 boxes are unusable, 3 of them boxes far beyond the edge: .*Check that"),
    ("no box at all", "voc",
     lambda f: [p.write_text("<annotation/>") for p in
                (f / "annotations").rglob("*.xml")],
     r"The 3 images have no box at all"),
    ("nothing but crowds", "coco",
     lambda f: change_coco(
         f, lambda c: [a.update(iscrowd=1) for a in c["annotations"]]),
     r"ignore all 4 boxes: each is a crowd"),
    ("the wrong folder of images", "coco",
     lambda f: (f / "images").rename(f / "pictures") and (f / "images").mkdir(),
     r"3 of 3 images are missing on disk, such as b\.png.*has no image.*--images"),
    ("most images missing", "voc",
     lambda f: [(f / "images" / p.name).unlink() for p in VALID[:2]],
     r"2 of 3 images are missing on disk, such as b\.png, sub/c\.jpg"),
    ("most images broken", "csv",
     lambda f: [(f / "images" / p.name).write_bytes(b"") for p in VALID[:2]],
     r"2 of 3 images are unusable, 2 of them images of 0 bytes: b\.png"),
    ("most label files broken", "voc",
     lambda f: [cut_off(f, name) for name in ("b.xml", "sub/c.xml")],
     r"2 of 3 annotation files are unusable, 2 of them annotation files unreadable"),
    ("images resized after they were annotated", "voc", resize_all,
     r"3 of 3 images are unusable.*another size than annotated: "
     r"b\.png \(32 x 64 annotated, is 64 x 128; annotated in b\.xml\)"),
    ("a table without a column", "csv",
     lambda f: replace(f, "boxes.csv", ("class,", "color,")),
     r"boxes\.csv, line 1 .*lacks class"),
    ("two images of one stem", "voc", lambda f: save_size(f, "b.bmp", 9, 9),
     r"has b\.bmp and b\.png; annotations of b may refer to either"),
]  # fmt: skip


# Faults that cost an image.
LEAVE_OUT = {
    "annotation files unreadable, their images left out",
    "images missing on disk",
    "images that match several files, left out",
    "images of 0 bytes",
    "images unreadable",
    "images of another size than annotated, left out",
    "images too large to be images",
    "images whose path leaves the folder, left out",
}


def make(kind, damage, folder):
    """Writes a data set and damages it; returns its annotations' path."""
    annotation_files.draw(folder / "images")
    path = annotation_files.write(kind, folder / "annotations")
    damage(folder)
    return path


def names(cases):
    return [case[0] for case in cases]


DOCUMENTED = {
    name: message.removesuffix(" …")
    for name, message in re.findall(
        r"^\| (.*?) \| \w+ \| (.*) \|$",
        (repository.ROOT / "docs/reference/data_issues.md").read_text("utf-8"),
        re.MULTILINE,
    )
}


def test_the_documentation_has_every_case():
    assert {*names(COUNTED), *names(ERRORS)} == DOCUMENTED.keys() - {"what was wrong"}


@pytest.mark.parametrize(
    ("name", "annotation_format", "damage", "kind", "location"),
    COUNTED,
    ids=names(COUNTED),
)
def test_an_issue_is_counted_with_its_location_and_the_rest_is_converted(
    tmp_path, name, annotation_format, damage, kind, location
):
    path = make(annotation_format, damage, tmp_path)
    done = annotation_files.convert(
        annotation_format, path, tmp_path / "images", tmp_path / "out"
    )
    assert [(e.kind, e.location) for e in done.events] == [(kind, location)]
    line = "{0.location}: {0.kind} ({0.detail})".format(*done.events)
    assert line.startswith(DOCUMENTED[name])
    assert done.counts[kind] == 1
    left_out = kind in LEAVE_OUT
    assert len(done.images) == (2 if left_out else 3 + kind.endswith("background"))
    dropped = kind.startswith(("boxes", "objects")) and kind.endswith("dropped")
    num_in_b = 0 if "b.png" not in [i.file_name for i in done.images] else 1
    assert done.counts["boxes stored"] == 3 + num_in_b - dropped


@pytest.mark.parametrize(
    ("name", "annotation_format", "damage", "message"), ERRORS, ids=names(ERRORS)
)
def test_an_error_is_raised_and_nothing_is_written(
    tmp_path, name, annotation_format, damage, message
):
    path = make(annotation_format, damage, tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        annotation_files.convert(
            annotation_format, path, tmp_path / "images", tmp_path / "out"
        )
    assert not list((tmp_path / "out").glob("*"))
    folders = rf"{re.escape(str(tmp_path))}/(annotations/)?"
    assert re.sub(folders, "", str(caught.value)).startswith(DOCUMENTED[name])
