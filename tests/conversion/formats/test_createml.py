import json

import pytest

import annotation_files
from retinanet_tpu.conversion.formats import createml

PLACE = {"x": 30, "y": 20, "width": 40, "height": 30}


def entry(*annotations, image="a.jpg"):
    return {"image": image, "annotations": list(annotations)}


def annotation(label="cat", **changes):
    return {"label": label, "coordinates": {**PLACE, **changes}}


def read(tmp_path, content, **options):
    annotation_files.draw(tmp_path, [annotation_files.SampleImage("a.jpg", 64, 64, ())])
    path = tmp_path / "createml.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    image_folder = annotation_files.image_folder(tmp_path)
    return createml.read(str(path), image_folder=image_folder, **options)


def test_x_and_y_are_the_center(tmp_path):
    (image,) = read(tmp_path, [entry(annotation())]).images
    assert image.objects[0].box_xywh == (10, 5, 40, 30)
    assert image.source == "createml.json, a.jpg" and image.unit == "annotation"


def test_keys_of_older_files_are_read(tmp_path):
    content = [{"imagefilename": "a.jpg", "annotation": [annotation()]}]
    assert len(read(tmp_path, content).images[0].objects) == 1


def test_numbers_as_labels_become_names(tmp_path):
    annotated = read(tmp_path, [entry(annotation(3), annotation("3"), annotation(4.0))])
    assert [c["name"] for c in annotated.categories] == ["3", "4"]


def test_a_box_without_label_is_counted(tmp_path):
    items = [annotation(), annotation(""), {"coordinates": PLACE}, annotation()]
    annotated = read(tmp_path, [entry(*items)])
    assert [(f.kind, f.location, f.image) for f in annotated.events] == [
        (
            "boxes without a class, dropped",
            f"createml.json, a.jpg, annotation {number}",
            "a.jpg",
        )
        for number in (2, 3)
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected a list"),
        ([7], "entry 1 is 7; expected an object"),
        ([{"annotations": []}], "entry 1 lacks image or imagefilename"),
        ([{"image": 7, "annotations": []}], "entry 1: image is 7; expected text"),
        ([{"image": "a.jpg"}], "entry 1 lacks annotations or annotation; it has image"),
        ([entry(7)], "a.jpg, annotation 1 is 7; expected an object"),
        ([entry({"label": "cat"})], "annotation 1 lacks coordinates; it has label"),
        ([entry(annotation(x=None))], "annotation 1 lacks x"),
        ([entry(annotation(x="left"))], "expected a number, got 'left'"),
        ([entry(annotation(x=True))], "expected a number, got True"),
        ([entry(annotation(x=10**400))], "expected a number, got 1000"),
        ([entry(annotation(["cat"]))], r"class is \['cat'\]; expected text"),
        ('[{"image": ' + "9" * 5000, "is not JSON, or cut off: Exceeds the limit"),
        ("[" * 100_000, "is nested too deeply"),
    ],
)
def test_another_structure_is_an_error_with_its_location(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, content)
