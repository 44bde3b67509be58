import json

import pytest

import annotation_files
from retinanet_tpu.data import annotations
from retinanet_tpu.data.annotation_formats import coco

IMAGES = [{"id": 5, "file_name": "a.jpg", "height": 40, "width": 60}]
CATEGORIES = [{"id": 2, "name": "cat", "supercategory": "animal"}]
BOX = {"id": 9, "image_id": 5, "category_id": 2, "bbox": [1, 2, 3, 4]}


def coco_file(tmp_path, **changes):
    content = {"images": IMAGES, "annotations": [BOX], "categories": CATEGORIES}
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({**content, **changes}))
    return str(path)


def test_boxes_come_as_written(tmp_path):
    crowd = {**BOX, "id": 10, "iscrowd": 1, "area": 5.5}
    read = coco.read(coco_file(tmp_path, annotations=[BOX, crowd]))
    plain = annotations.AnnotatedObject(9, 2, (1.0, 2.0, 3.0, 4.0), 12.0, False, 9)
    same_as_crowd = plain._replace(annotation_id=10, area=5.5, is_crowd=True, place=10)
    (image,) = read.images
    assert image[:4] == (5, "a.jpg", 40, 60)
    assert image.objects == (plain, same_as_crowd)
    assert annotations.place_of(image, plain) == "coco.json, annotation 9"
    assert read.categories == [{"id": 2, "name": "cat"}]
    assert read.findings == ()


def test_ids_may_have_gaps_and_begin_at_zero(tmp_path):
    content = annotation_files.coco_content()
    for part, key in (("images", "image_id"), ("categories", "category_id")):
        for entry in content[part]:
            entry["id"] = 10**12 * (entry["id"] - 1)
        for entry in content["annotations"]:
            entry[key] = 10**12 * (entry[key] - 1)
    read = coco.read(coco_file(tmp_path, **content))
    assert [i.image_id for i in read.images] == [0, 10**12, 2 * 10**12]
    ids = [o.category_id for i in read.images for o in i.objects]
    assert ids == [2 * 10**12, 10**12, 0, 0]


@pytest.mark.parametrize("ids", [(0, 1), (4, 4), (None, 3), ("7", 3)])
def test_annotation_ids_that_pycocotools_cannot_use_are_replaced(tmp_path, ids):
    boxes = [{**BOX, "id": number} for number in ids]
    read = coco.read(coco_file(tmp_path, annotations=boxes))
    assert [o.annotation_id for o in read.images[0].objects] == [1, 2]
    (finding,) = read.findings
    assert "annotation ids are absent, repeated or below 1" in finding.what
    assert finding.where == "coco.json"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, "lists no images"),
        ({"images": IMAGES * 2}, "image id 5 comes 2 times"),
        ({"images": [{**IMAGES[0], "id": -5}]}, "image id -5 is negative"),
        ({"images": [{**IMAGES[0], "id": "a1"}]}, r"images\[0\] has id 'a1'"),
        ({"images": [{"id": 5, "width": 3}]}, r"images\[0\] lacks 'file_name'"),
        ({"images": [{**IMAGES[0], "width": "w"}]}, "image 5 has width 'w', no number"),
        ({"images": [{**IMAGES[0], "width": float("nan")}]}, "image 5 has width nan"),
        ({"annotations": [{**BOX, "area": "big"}]}, "annotation 9 has .*area 'big'"),
        ({"images": ["a.jpg"]}, r"images\[0\] is 'a.jpg'; expected an object"),
        ({"categories": CATEGORIES * 2}, "category id 2 comes 2 times"),
        ({"categories": [{"id": 2}]}, r"categories\[0\] lacks 'name'"),
        ({"annotations": [{**BOX, "image_id": 77}]}, "annotation 9 is of image 77"),
        ({"annotations": [{**BOX, "category_id": 3}]}, "unlisted category 3"),
        ({"annotations": [{**BOX, "bbox": [1, 2]}]}, r"annotation 9 has bbox \[1, 2\]"),
        ({"annotations": [BOX, {"id": 1}]}, r"annotations\[1\] lacks 'image_id'"),
    ],
)
def test_inconsistent_file_is_named_with_the_record(tmp_path, changes, message):
    with pytest.raises(ValueError, match=rf"coco\.json.* {message}"):
        coco.read(coco_file(tmp_path, **changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "lacks images, annotations, categories"),
        ('{"images": [], "annotations": []}', "lacks categories"),
        ("oops", "not JSON"),
        ('{"images": [\n{"id": 1', "cut off.*line 2"),
    ],
)
def test_file_that_is_not_coco_says_so(tmp_path, content, message):
    path = tmp_path / "coco.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"coco\.json.*{message}"):
        coco.read(str(path))
