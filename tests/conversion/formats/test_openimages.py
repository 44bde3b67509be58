import json

import pytest

from retinanet_tpu import errors
from retinanet_tpu.conversion.formats import files, openimages
from retinanet_tpu.data import annotations

HEADER = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,"
    "IsGroupOf,IsDepiction,IsInside\n"
)
CLASSES = openimages.ClassList(
    [{"id": 1, "name": "Cat"}, {"id": 2, "name": "Dog"}], {"/m/01": 1, "/m/02": 2}
)


LABELS = "ImageID,Source,LabelName,Confidence\n"


def read(folder, text, image_names=("0a.jpg",), labels=None, **options):
    path = folder / "boxes.csv"
    path.write_text(text)
    image_folder = files.ImageFolder("", image_names)
    label_path = None
    if labels is not None:
        label_path = str(folder / "labels.csv")
        (folder / "labels.csv").write_text(labels)
    return openimages.read(
        str(path),
        image_folder=image_folder,
        classes=CLASSES,
        image_labels=label_path,
        **options,
    )


def line(image="0a", label="/m/02", group=0, box="0.25,0.5,0.125,0.75"):
    return f"{image},xclick,{label},1,{box},0,0,{group},0,0\n"


@pytest.mark.parametrize(
    ("group", "is_crowd"),
    [(0, False), (1, True), (-1, False), ("True", True), ("1.0", True), ("", False)],
)
def test_boxes_are_fractions_and_groups_are_crowds(tmp_path, group, is_crowd):
    annotated = read(tmp_path, HEADER + line(group=group))
    (image,) = annotated.images
    (item,) = image.objects
    assert image.is_norm and image.file_name == "0a.jpg"
    assert item.box_xywh == (0.25, 0.125, 0.25, 0.625)
    assert (item.category_id, item.is_crowd) == (2, is_crowd)
    assert annotations.source_line_of(image, item) == "boxes.csv, line 2"


def test_a_subset_of_the_classes_leaves_out_other_boxes_and_their_images(tmp_path):
    text = HEADER + line("0b", label="/m/99") + line("0a", label="/m/99") + line("0a")
    text += line("0c", label="/m/01") + line("ff", label="/m/99")
    names = ("0a.jpg", "0b.jpg", "0c.jpg")
    with pytest.raises(errors.UserError, match="has class '/m/99'"):
        read(tmp_path, text, names)
    annotated = read(tmp_path, text, names, drop_other_classes=True)
    ids = {i.file_name: [x.category_id for x in i.objects] for i in annotated.images}
    assert ids == {"0a.jpg": [2], "0c.jpg": [1]}
    dropped, unannotated = annotated.events
    assert (dropped.location, dropped.detail) == ("boxes.csv", "3 boxes")
    assert unannotated == (annotations.UNANNOTATED, "0b.jpg", "", "0b.jpg")


def test_a_subset_without_any_box_is_an_error_of_the_classes(tmp_path):
    text = HEADER + line(label="/m/98") + line(label="/m/99")
    with pytest.raises(errors.UserError, match=r"All 2 boxes .* not in --classes"):
        read(tmp_path, text, drop_other_classes=True)


def test_images_that_were_not_downloaded_are_reported_once(tmp_path):
    text = HEADER + line("ff") + line() + line("ff", label="/m/99")
    annotated = read(tmp_path, text)
    assert [image.file_name for image in annotated.images] == ["0a.jpg"]
    (event,) = annotated.events
    assert event.kind == "annotated images not in the folder, left out"
    assert event[1:] == ("ff", "boxes.csv, line 2", "ff")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1 lacks ImageID, LabelName, XMin"),
        ("ImageID,LabelName,XMin,XMax,YMin\n", "line 1 lacks YMax"),
        (HEADER + "0a,xclick\n", "line 2 has 2 fields, expected 13"),
        (HEADER + line(group=7), "line 2 has IsGroupOf '7'; expected 0 or 1"),
        (HEADER + line(box="a,0,0,0"), "line 2: expected a number, got 'a'"),
        (HEADER + line(label="/m/77"), "line 2 has class '/m/77'; known are /m/01"),
        (HEADER + line("ff"), "None of the 1 images.*ff.*--images"),
    ],
)
def test_invalid_tables_are_errors_that_contain_the_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize("header", ["", "LabelName,DisplayName\n"])
def test_classes_are_those_of_the_descriptions_in_their_order(tmp_path, header):
    path = tmp_path / "classes.csv"
    path.write_text(header + '/m/02,Dog\n/m/01,"Cat, tame"\n', "utf-8")
    categories, ids = openimages.read_classes(str(path))
    assert categories == [
        {"id": 1, "name": "Dog", "machine_id": "/m/02"},
        {"id": 2, "name": "Cat, tame", "machine_id": "/m/01"},
    ]
    assert ids == {"/m/02": 1, "/m/01": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [("/m/01\n", "line 1 is .*expected /m/id,name"),
     ("/m/01,a\n/m/01,b\n", "line 2 repeats /m/01")],
)  # fmt: skip
def test_invalid_descriptions_are_an_error(tmp_path, text, message):
    path = tmp_path / "classes.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        openimages.read_classes(str(path))


def test_verified_labels_of_images_with_and_without_boxes_are_written(tmp_path):
    labels = LABELS + "0a,v,/m/01,0\n0a,v,/m/02,1\n0b,v,/m/01,0\nff,v,/m/01,1\n"
    # A class without a description, as in the labels of all 20,000 classes.
    labels += "0b,v,/m/99,1\n"
    names = ("0a.jpg", "0b.jpg", "0c.jpg")
    annotated = read(tmp_path, HEADER + line(), names, labels)
    path = tmp_path / "out.json"
    annotations.write_coco(annotated, str(path), description="x")
    content = json.loads(path.read_text())
    keys = ("file_name", "pos_category_ids", "neg_category_ids")
    assert [[image[key] for key in keys] for image in content["images"]] == [
        ["0a.jpg", [2], [1]],
        ["0b.jpg", [], [1]],
    ]
    assert [item["image_id"] for item in content["annotations"]] == [1]
    assert [event.image for event in annotated.events] == ["0c.jpg"]


def test_images_without_verified_labels_have_no_keys_of_labels(tmp_path):
    annotated = read(tmp_path, HEADER + line())
    path = tmp_path / "out.json"
    annotations.write_coco(annotated, str(path), description="x")
    (image,) = json.loads(path.read_text())["images"]
    assert image.keys() == {"id", "file_name", "height", "width"}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("ImageID,LabelName\n", "line 1 lacks Confidence; .*ImageID,LabelName,Conf"),
        (LABELS + "0a,m,/m/01,0.8\n", "line 2 has Confidence '0.8'; .*human"),
        (LABELS + "ff,v,/m/01,1\n", "has no label of an image in --images"),
    ],
)
def test_invalid_tables_of_image_labels_are_errors(tmp_path, labels, message):
    with pytest.raises(errors.UserError, match=message):
        read(tmp_path, HEADER + line(), labels=labels)
