import json

import pytest

from retinanet_tpu.conversion.formats import files, labelme
from retinanet_tpu.data import annotations

RECTANGLE = {"label": "cat", "points": [[4, 6], [1, 2]], "shape_type": "rectangle"}


def write(folder, stem, *shapes, **changes):
    content = {"imagePath": f"{stem}.jpg", "imageHeight": 40, "imageWidth": 60}
    content |= {"shapes": list(shapes), "imageData": "x"} | changes
    (folder / f"{stem}.json").write_text(json.dumps(content))


def read(folder, image_names=("a.jpg", "b.jpg"), **options):
    image_folder = files.ImageFolder(str(folder / "images"), image_names)
    return labelme.read(str(folder), image_folder=image_folder, **options)


def test_corners_of_a_rectangle_may_have_any_order(tmp_path):
    write(tmp_path, "a", RECTANGLE)
    annotated = read(tmp_path, ["a.jpg"])
    (image,) = annotated.images
    (item,) = image.objects
    assert image[:4] == (1, "a.jpg", 40, 60)
    assert item.box_xywh == (1, 2, 3, 4)
    assert annotations.source_line_of(image, item) == "a.json, shape 1"
    assert annotated.events == ()


@pytest.mark.parametrize(
    ("kind", "points", "box"),
    [
        ("polygon", [[5, 1], [9, 4], [2, 8]], (2, 1, 7, 7)),
        (None, [[5, 1], [9, 4], [2, 8]], (2, 1, 7, 7)),
        ("circle", [[10, 20], [13, 24]], (5, 15, 10, 10)),
    ],
)
def test_other_shapes_are_replaced_by_the_boxes_around_them(
    tmp_path, kind, points, box
):
    shape = {"label": "cat", "points": points, "shape_type": kind}
    write(tmp_path, "a", RECTANGLE, shape)
    annotated = read(tmp_path, ["a.jpg"])
    assert annotated.images[0].objects[1].box_xywh == box
    (event,) = annotated.events
    assert event[:2] == ("shapes stored as the boxes around them", "a.json, shape 2")


@pytest.mark.parametrize(
    ("kind", "points"),
    [("line", [[1, 2], [3, 4]]), ("point", [[1, 2]]), ("polygon", [[1, 2], [3, 4]]),
     ("linestrip", [[1, 2], [3, 4], [5, 0]])],
)  # fmt: skip
def test_shapes_that_enclose_nothing_are_dropped_and_reported(tmp_path, kind, points):
    shape = {"label": "x", "points": points, "shape_type": kind}
    write(tmp_path, "a", shape, RECTANGLE)
    annotated = read(tmp_path, ["a.jpg"])
    assert [o.source_line for o in annotated.images[0].objects] == [2]
    what = "shapes that enclose nothing, dropped"
    where = "a.json, shape 1"
    assert annotated.events == (
        annotations.ConversionEvent(what, where, kind, "a.jpg"),
    )


@pytest.mark.parametrize(
    "path",
    ["b.jpg", "../images/b.jpg", "images/b.jpg", "..\\elsewhere\\b.jpg", "gone.png"],
)
def test_an_image_is_found_after_it_was_moved(tmp_path, path):
    write(tmp_path, "b", RECTANGLE, imagePath=path)
    assert [i.file_name for i in read(tmp_path, ["b.jpg"]).images] == ["b.jpg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"imagePath": "b.jpg", "shapes": [', "cut off"),
        ('{"imagePath": "b.jpg"}', "shapes is None; expected list"),
        ('{"shapes": []}', "imagePath is None; expected str"),
        ('{"imagePath": "b.jpg", "shapes": [{}]}', "shape 1 has the label None"),
        (
            '{"imagePath": "b.jpg", "shapes": [{"label": "cat", "points": [1]}]}',
            "shape 1 has points [1]",
        ),
        (
            '{"imagePath": "b.jpg", "shapes": [{"label": "cat", "points": [[1, %s]]}]}'
            % ("9" * 400),
            "shape 1 has points [[1, 9",
        ),
        ("[]", "imagePath is None"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_the_image_of_a_file_that_cannot_be_read_is_left_out(
    tmp_path, content, message
):
    write(tmp_path, "a", RECTANGLE)
    (tmp_path / "b.json").write_text(content)
    annotated = read(tmp_path)
    assert [i.file_name for i in annotated.images] == ["a.jpg"]
    (event,) = annotated.events
    assert event[:2] == (files.UNREADABLE, "b.json")
    assert message in event.detail


def test_label_may_be_a_number(tmp_path):
    write(tmp_path, "a", RECTANGLE | {"label": 7})
    assert read(tmp_path, ["a.jpg"]).categories == [{"id": 1, "name": "7"}]


def test_an_outdated_image_path_is_ignored(tmp_path):
    for stem in ("a", "b", "c"):
        write(tmp_path, stem, RECTANGLE, imagePath="a.jpg")
    annotated = read(tmp_path, ["a.jpg", "b.jpg"])
    assert [i.file_name for i in annotated.images] == ["a.jpg", "b.jpg", "c.jpg"]
