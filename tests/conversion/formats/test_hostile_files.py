"""Hostile files that could take a reader very long: each ends within seconds."""

import json
import time

import pytest

import annotation_files
from retinanet_tpu import errors
from retinanet_tpu.conversion import checks
from retinanet_tpu.conversion.formats import readers, recognition

SIZE = 200_000  # Quadratic time would be 4e10 steps.
HEADER = "image,xmin,ymin,xmax,ymax,class\n"
REGION = {"shape_attributes": {"name": "point"}, "region_attributes": {"t": "a"}}
POLYGON = {"label": "a", "shape_type": "polygon", "points": [[1, 1]] * (SIZE // 8)}
RESULT = {"type": "rectanglelabels", "value": {"rectanglelabels": ["a"] * (SIZE // 5)}}
HOSTILE = {
    "blanks": " " * SIZE,
    "lines": "\n" * SIZE,
    "brackets": "[" * SIZE,
    "objects": '{"a":' * (SIZE // 5),
    "an open text": '"' + '\\"' * (SIZE // 2),
    "a number": "1" * SIZE,
    "a list of a number": "[" + "1" * SIZE + "]",
    "commas": "," * SIZE,
    "a row": HEADER + "," * SIZE,
    "rows": HEADER + "a.png,1,2,3,4,a\n" * (SIZE // 16),
    "a long path": HEADER + "../" * (SIZE // 3) + "a.png,1,2,3,4,a\n",
    "an encoded path": HEADER + "%41" * (SIZE // 3) + ".png,1,2,3,4,a\n",
    "elements": "<a>" * (SIZE // 3),
    "tags": "<" * SIZE,
    "attributes": "<a " + " ".join(f"a{i}='1'" for i in range(SIZE // 12)) + "/>",
    "an entity": '<!DOCTYPE a [<!ENTITY x "many letters">]><a>'
    + "&x;" * 60_000
    + "</a>",
    "points": '<annotations><image name="a.png"><polygon label="a" points="'
    + "1,2;" * (SIZE // 4)
    + '3,4"/></image></annotations>',
    "images": "<annotations>" + '<image name="a.png"/>' * 9000 + "</annotations>",
    "a regions list": json.dumps(
        {"a": {"filename": "a.png", "regions": [REGION] * (SIZE // 70)}}
    ),
    "tasks": json.dumps(
        [{"data": {"image": "a.png"}, "annotations": [{"result": []}]}] * (SIZE // 60)
    ),
    "labels": json.dumps(
        [{"data": {"image": "a.png"}, "annotations": [{"result": [RESULT]}]}]
    ),
    "a polygon": json.dumps({"imagePath": "a.png", "shapes": [POLYGON]}),
    "YOLO lines": "0 .5 .5 .1 .1\n" * (SIZE // 14),
    "a YOLO line": "0 " + ".5 .5 " * (SIZE // 6),
}


@pytest.mark.long
@pytest.mark.parametrize("name", HOSTILE)
def test_every_reader_ends_within_seconds_with_a_short_error(tmp_path, name):
    annotation_files.draw(
        tmp_path / "images", [annotation_files.SampleImage("a.png", 8, 8, ())]
    )
    image_folder = annotation_files.image_folder(tmp_path / "images")
    labels = tmp_path / "labels"
    labels.mkdir()
    for file in ("a.txt", "a.xml", "a.json"):
        (labels / file).write_text(HOSTILE[name])
    for file in ("labels/classes.txt", "classes.csv"):
        (tmp_path / file).write_text("a,a\n")
    recognition.hint(str(labels / "a.json"), "none")
    for kind in readers.FORMATS:
        is_folder = kind in ("voc", "yolo", "labelme")
        path = str(labels if is_folder else labels / "a.json")
        classes = str(tmp_path / "classes.csv") if kind == "openimages" else None
        start = time.process_time()
        try:
            read = readers.read(kind, path, image_folder=image_folder, classes=classes)
            checks.check_set(read)
        except errors.UserError as error:
            assert len(str(error)) < 1500, kind
        assert time.process_time() - start < 5, kind
