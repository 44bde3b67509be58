import json
import math

import pytest

import annotation_files
import tool_exports
from retinanet_tpu.conversion.formats import via

RECT = {"name": "rect", "x": 1, "y": 2, "width": 30, "height": 40}


def region(shape, **attributes):
    return {"shape_attributes": shape, "region_attributes": attributes or {"t": "cat"}}


def read(tmp_path, regions, name="a.jpg", **options):
    content = {"a.jpg9": {"filename": name, "size": 9, "regions": regions}}
    return read_text(tmp_path, json.dumps(content), **options)


def read_text(tmp_path, text, **options):
    annotation_files.draw(tmp_path, [annotation_files.SampleImage("a.jpg", 64, 64, ())])
    path = tmp_path / "via.json"
    path.write_text(text, "utf-8")
    return via.read(
        str(path), image_folder=annotation_files.image_folder(tmp_path), **options
    )


def boxes(annotated):
    names = {c["id"]: c["name"] for c in annotated.categories}
    (image,) = annotated.images
    return [(names[o.category_id], o.box_xywh) for o in image.objects]


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ({"name": "circle", "cx": 30, "cy": 20, "r": 10}, (20, 10, 20, 20)),
        ({"name": "ellipse", "cx": 30, "cy": 20, "rx": 10, "ry": 5}, (20, 15, 20, 10)),
        (
            {"name": "ellipse", "cx": 30, "cy": 20, "rx": 9, "ry": 5, "theta": math.pi},
            (21, 15, 18, 10),
        ),
        (
            {"name": "polygon", "all_points_x": [1, 9, 5], "all_points_y": [2, 3, 8]},
            (1, 2, 8, 6),
        ),
    ],
)
def test_shapes_become_the_boxes_around_them(tmp_path, shape, box):
    annotated = read(tmp_path, [region(shape)])
    assert boxes(annotated) == [("cat", pytest.approx(box))]
    (event,) = annotated.events
    assert event.kind == "shapes stored as the boxes around them"
    assert event.location == "via.json, a.jpg, region 1" and event.image == "a.jpg"


def test_points_and_lines_are_dropped_and_counted(tmp_path):
    line = {"name": "polyline", "all_points_x": [1, 2], "all_points_y": [1, 2]}
    point = {"name": "point", "cx": 1, "cy": 2}
    annotated = read(tmp_path, [region(line), region(RECT), region(point)])
    assert boxes(annotated) == [("cat", (1, 2, 30, 40))]
    assert [(e.kind, e.detail) for e in annotated.events] == [
        ("shapes that enclose nothing, dropped", "polyline"),
        ("shapes that enclose nothing, dropped", "point"),
    ]


def test_regions_of_version_1_are_numbered_by_keys(tmp_path):
    annotated = read(tmp_path, {"0": region(RECT), "1": region(RECT, t="dog")})
    assert [name for name, _ in boxes(annotated)] == ["cat", "dog"]


def test_a_number_as_class_becomes_its_name(tmp_path):
    annotated = read(tmp_path, [region(RECT, t=7)])
    assert [name for name, _ in boxes(annotated)] == ["7"]


def test_each_checked_box_of_a_checkbox_is_a_class(tmp_path):
    annotated = read(tmp_path, [region(RECT, t={"cat": True, "dog": False, "x": True})])
    assert [name for name, _ in boxes(annotated)] == ["cat", "x"]


def test_the_attribute_that_names_the_class_is_chosen_by_flag(tmp_path):
    regions = [region(RECT, kind="cat", color="red"), region(RECT, color="blue")]
    with pytest.raises(
        ValueError, match=r"kind, color; select .* --class_attribute=kind"
    ):
        read(tmp_path, regions)
    annotated = read(tmp_path, regions, class_attribute="color")
    assert [name for name, _ in boxes(annotated)] == ["red", "blue"]
    with pytest.raises(ValueError, match=r"=shape is no .* kind, color"):
        read(tmp_path, regions, class_attribute="shape")


def test_boxes_without_class_are_counted_and_too_many_are_refused(tmp_path):
    annotated = read(tmp_path, [region(RECT), region(RECT, t="")])
    assert [e.kind for e in annotated.events] == ["boxes without a class, dropped"]
    with pytest.raises(ValueError, match=r"2 of 3 boxes have no class, first .*gion 2"):
        read(tmp_path, [region(RECT), region(RECT, t=""), region(RECT, t="")])
    with pytest.raises(ValueError, match="no region attribute, so its boxes have no"):
        read(tmp_path, [region(RECT, t="")])


def test_regions_without_attributes_get_the_only_class(tmp_path):
    regions = [{"shape_attributes": RECT, "region_attributes": {}}]
    with pytest.raises(ValueError, match=r"no region attribute.* with --names=NAME"):
        read(tmp_path, regions)
    annotated = read(tmp_path, regions, categories=[{"id": 1, "name": "balloon"}])
    assert boxes(annotated) == [("balloon", (1, 2, 30, 40))]


def test_a_project_declares_its_classes_and_the_names_of_its_numbers(tmp_path):
    options = {"1": "cat", "2": "dog", "bird": "an animal with feathers"}
    content = {
        "_via_img_metadata": {
            "a.jpg9": {"filename": "a.jpg", "regions": [region(RECT, type="2")]}
        },
        "_via_attributes": {"region": {"type": {"options": options}}},
    }
    annotated = read_text(tmp_path, json.dumps(content))
    assert [c["name"] for c in annotated.categories] == ["cat", "dog", "bird"]
    assert boxes(annotated) == [("dog", (1, 2, 30, 40))]


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ({"0": 7}, "region 1 is 7; expected an object"),
        (7, "regions is 7; expected a list"),
        ([{}], "region 1 lacks shape_attributes; it has nothing"),
        ([{"shape_attributes": RECT}], "region 1 lacks region_attributes"),
        ([region({**RECT, "x": None})], "region 1 lacks x"),
        ([region({**RECT, "x": True})], "region 1: expected a number, got True"),
        ([region({**RECT, "x": []})], r"region 1: expected a number, got \[\]"),
        ([region({"name": "cube"})], "region 1 has the shape 'cube'; expected rect"),
        ([region({"name": "polygon", "all_points_x": [1]})], "all_points_y is None"),
        (
            [region({"name": "polygon", "all_points_x": [1], "all_points_y": [1]})],
            "polygon of 1 points",
        ),
        (
            [region({"name": "polygon", "all_points_x": [1], "all_points_y": [1, 2]})],
            "1 x and 2 y",
        ),
        ([region(RECT, t=[])], r"region 1: class is \[\]; expected text"),
        ([region(RECT, t=True)], "region 1: class is True; expected text"),
    ],
)
def test_invalid_structure_is_refused_with_its_location(tmp_path, regions, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, regions)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "expected an object"),
        ('{"a": 7}', "a is 7; expected an object"),
        ('{"a": {"regions": []}}', "a lacks filename; it has regions"),
        ('{"a": {"filename": 7}}', "filename is 7; expected text"),
        ('{"a": ', "is not JSON, or cut off"),
        ("{" * 100_000, "is not JSON, or cut off"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("filename,region_count\n", "lacks region_shape_attributes, region_attributes"),
        ("", "is empty"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_text(tmp_path, text)


def test_error_contains_the_csv_line(tmp_path):
    annotation_files.draw(tmp_path, annotation_files.IMAGES)
    image_folder = annotation_files.image_folder(tmp_path)
    path = tool_exports.via_csv(tmp_path, annotation_files.IMAGES, ())
    text = path.read_text("utf-8")
    for old, new, message in (
        ('{""name"": ""rect""', '{""name"": ', "line 2 is not JSON, or cut off"),
        ('{""name"": ""rect""', '{""name"": 7', "line 2 has the shape '7'"),
        ('"{""type""', '"[{""type""', "line 2 is not JSON, or cut off"),
        (",99,{},", ",99,", "line 2 has 6 fields; expected those of line 1"),
    ):
        assert old in text
        path.write_text(text.replace(old, new, 1), "utf-8")
        with pytest.raises(ValueError, match=message):
            via.read(str(path), image_folder=image_folder)


def test_a_csv_of_version_1_is_read(tmp_path):
    annotation_files.draw(tmp_path, annotation_files.IMAGES)
    path = tool_exports.via_csv(tmp_path, annotation_files.IMAGES, ())
    path.write_text("#" + path.read_text("utf-8"), "utf-8")
    annotated = via.read(
        str(path), image_folder=annotation_files.image_folder(tmp_path)
    )
    assert len(annotated.images) == 3
