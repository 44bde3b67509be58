import codecs
import json
import random

import pytest

from retinanet_tpu import errors
from retinanet_tpu.evaluation import coco_metric

BOX = [1, 2.5, 3, 4]


def dataset(**changes):
    """Returns a small valid file's content, with other values of its three lists."""
    content = {
        "images": [{"id": 1}, {"id": 2}],
        "annotations": [{"image_id": 1, "category_id": 3, "bbox": BOX}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}],
    } | changes
    return {key: value for key, value in content.items() if value is not None}


def with_annotation(**changes):
    """Returns a content whose second annotation has other fields."""
    good = {"image_id": 1, "category_id": 3, "bbox": BOX}
    bad = {key: value for key, value in (good | changes).items() if value is not ...}
    return dataset(annotations=[good, bad])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "truth.json"


def assert_rejected(path, message):
    with pytest.raises(errors.UserError, match=message) as caught:
        coco_metric.ground_truth(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "lacks images, .* it has no keys"),
        ("images", "lacks images, .* it has no keys"),
        (None, "lacks images, .* it has no keys"),
        (dataset(images=None), "lacks images; it has annotations, categories"),
        (dataset(annotations=None), "lacks annotations"),
        (dataset(categories=None), "lacks categories"),
        (dataset(images=[]), "lists no images"),
        (dataset(categories=[]), "lists no categories"),
        (dataset(images={"a": 1}), r'images is {"a": 1}; expected a list'),
        (dataset(annotations="none"), 'annotations is "none"; expected a list'),
        (dataset(images=[{"id": 1}, 7]), r"images\[1\] is 7; expected an object"),
        (dataset(annotations=[None]), r"annotations\[0\] is null; expected an obj"),
        (dataset(images=[{"id": 4}, {"id": "4"}]), "image id 4 more than once"),
        (dataset(images=[{"id": "a"}]), r'images\[0\] has id "a"; ids must be int'),
        (dataset(images=[{"file_name": "a"}]), r"images\[0\] has no id"),
        (dataset(images=[{"id": 2**63}]), r"has id 9223372036854775808; ids must"),
        (dataset(categories=[{"id": [1]}]), r"categories\[0\] has id \[1\]"),
        (dataset(categories=[{"id": -1}]), r"categories\[0\] has id -1; ids must"),
        (dataset(categories=[{"id": 1}]), r"categories\[0\] has no name"),
        (dataset(categories=[{"id": 1, "name": None}]), "has name null; .* a string"),
        (
            dataset(categories=[{"id": i, "name": "x"} for i in (1, 2)]),
            "category name x more than once",
        ),
        (
            dataset(categories=[{"id": 1, "name": n} for n in "xy"]),
            "category id 1 more than once",
        ),
        (
            with_annotation(image_id=9),
            r"1 of 2 annotations, first annotations\[1\], refer to images that the "
            "file does not list: image_id 9. Listed are 1, 2",
        ),
        (with_annotation(category_id=0), "refer to categories .* list: category_id 0"),
    ],
)
def test_invalid_file_is_rejected_in_one_sentence(path, content, message):
    path.write_text(json.dumps(content))
    assert_rejected(path, message)


@pytest.mark.parametrize("field", ["image_id", "category_id"])
@pytest.mark.parametrize(
    ("value", "formatted"),
    [
        (..., "no {}"),
        (None, "{} null"),
        (True, "{} true"),
        (1.5, "{} 1.5"),
        (-1, "{} -1"),
        ("one", '{} "one"'),
        ("²", '{} "²"'),
        ("9" * 5000, '{} "999.*…'),
        ({}, "{} {{}}"),
        (float("nan"), "{} NaN"),
    ],
    ids=str,
)
def test_annotation_with_an_invalid_id_is_an_error_with_its_position(
    path, field, value, formatted
):
    path.write_text(json.dumps(with_annotation(**{field: value})))
    assert_rejected(
        path, rf"annotations\[1\] has {formatted.format(field)}; ids must be"
    )


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (..., "no bbox, not a list"),
        (None, "bbox null, not a list"),
        ("1,2,3,4", 'bbox "1,2,3,4", not a list'),
        ({"x": 1}, "not a list"),
        ([], "0 values"),
        ([1, 2, 3], r"bbox \[1, 2, 3\], 3 values"),
        ([1, 2, 3, 4, 5], "5 values"),
        ([1, 2, "3", 4], "not all numbers"),
        ([1, 2, None, 4], "not all numbers"),
        ([1, 2, True, 4], "not all numbers"),
        ([[1], 2, 3, 4], "not all numbers"),
        ([1, 2, float("nan"), 4], "not all finite"),
        ([float("inf"), 2, 3, 4], "not all finite"),
        ([1, 2, 10**400, 4], "not all finite"),
        ([30, 20, 10, -5], "a negative side"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_annotation_with_an_invalid_box_is_an_error_with_its_position(
    path, box, message
):
    path.write_text(json.dumps(with_annotation(bbox=box)))
    assert_rejected(
        path, rf"annotations\[1\] \(image 1\) has .*{message}.*; expected \[x"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON, or cut off"),
        (b"{", "is not JSON, or cut off"),
        (b"\x00\x01\x02\x03", "is not JSON, or cut off"),
        ('{"a": "é"}'.encode("latin-1"), "is not JSON: not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"images": ' + b"9" * 5000 + b"}", "is not JSON, or cut off"),
    ],
    ids=range(7),
)
def test_file_that_is_not_json_is_rejected_in_one_sentence(path, content, message):
    path.write_bytes(content)
    assert_rejected(path, message)


@pytest.mark.parametrize("depth", [50, 900, 960, 980, 990])
def test_deeply_nested_value_is_rejected_in_one_sentence(path, depth):
    nested = "[" * depth + "]" * depth
    text = json.dumps(with_annotation(bbox="HERE")).replace('"HERE"', nested)
    path.write_text(text)
    assert_rejected(path, "nested|1 values|not all")


@pytest.mark.parametrize("bom", [b"", codecs.BOM_UTF8])
def test_numbers_in_quotes_and_names_that_are_numbers_are_accepted(path, bom):
    content = dataset(
        images=[{"id": "7"}, {"id": 8.0}],
        annotations=[{"image_id": 7.0, "category_id": "012", "bbox": BOX}],
        categories=[{"id": "12", "name": 5}],
    )
    path.write_bytes(bom + json.dumps(content).encode())
    truth = coco_metric.ground_truth(str(path))
    assert sorted(truth.imgs) == [7, 8]
    assert truth.cats == {12: {"id": 12, "name": "5"}}
    (annotation,) = truth.imgToAnns[7]
    assert (annotation["image_id"], annotation["category_id"]) == (7, 12)


def test_randomly_replaced_entries_are_an_error_or_are_accepted(path):
    values = [None, True, -1, 1.5, "", "a", "1", [], [1], {}, {"id": 1}, 10**30]
    rng = random.Random(0)
    for _ in range(400):
        content = json.loads(json.dumps(with_annotation(area=12, iscrowd=0)))
        entry = rng.choice(content[rng.choice(list(content))])
        containers = [content, content["annotations"], content["images"], entry]
        container = rng.choice(containers)
        is_dict = isinstance(container, dict)
        key = rng.choice(list(container) if is_dict else range(len(container)))
        container[key] = rng.choice(values)
        path.write_text(json.dumps(content))
        try:
            truth = coco_metric.ground_truth(str(path))
        except errors.UserError as error:
            assert str(path) in str(error)
        else:
            assert all(annotation["area"] > 0 for annotation in truth.anns.values())
