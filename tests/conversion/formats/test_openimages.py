import pytest

from retinanet_tpu.conversion.formats import files, openimages
from retinanet_tpu.data import annotations

HEADER = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,"
    "IsGroupOf,IsDepiction,IsInside\n"
)
CLASSES = openimages.ClassList(
    [{"id": 1, "name": "Cat"}, {"id": 2, "name": "Dog"}], {"/m/01": 1, "/m/02": 2}
)


def read(folder, text, image_names=("0a.jpg",)):
    path = folder / "boxes.csv"
    path.write_text(text)
    image_folder = files.ImageFolder("", image_names)
    return openimages.read(str(path), image_folder=image_folder, classes=CLASSES)


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
    assert categories == [{"id": 1, "name": "Dog"}, {"id": 2, "name": "Cat, tame"}]
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
