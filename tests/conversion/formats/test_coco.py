import json

import pytest

import annotation_files
from retinanet_tpu.conversion.formats import coco, files
from retinanet_tpu.data import annotations

IMAGES = [{"id": 5, "file_name": "a.jpg", "height": 40, "width": 60}]
CATEGORIES = [{"id": 2, "name": "cat", "supercategory": "animal"}]
BOX = {"id": 9, "image_id": 5, "category_id": 2, "bbox": [1, 2, 3, 4]}


def coco_file(tmp_path, **changes):
    content = {"images": IMAGES, "annotations": [BOX], "categories": CATEGORIES}
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({**content, **changes}))
    return str(path)


def test_boxes_are_read_as_written(tmp_path):
    crowd = {**BOX, "id": 10, "iscrowd": 1, "area": 5.5}
    read = coco.read(coco_file(tmp_path, annotations=[BOX, crowd]))
    plain = annotations.AnnotatedObject(9, 2, (1.0, 2.0, 3.0, 4.0), 12.0, False, 9)
    same_as_crowd = plain._replace(
        annotation_id=10, area=5.5, is_crowd=True, source_line=10
    )
    (image,) = read.images
    assert image[:4] == (5, "a.jpg", 40, 60)
    assert image.objects == (plain, same_as_crowd)
    assert annotations.source_line_of(image, plain) == "coco.json, annotation 9"
    assert read.categories == [{"id": 2, "name": "cat"}]
    assert read.events == ()


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


@pytest.mark.parametrize("ids", [(0, 1), (4, 4), (None, 3), ("a", 3), (True, 2)])
def test_annotation_ids_that_pycocotools_cannot_use_are_replaced(tmp_path, ids):
    boxes = [{**BOX, "id": number} for number in ids]
    read = coco.read(coco_file(tmp_path, annotations=boxes))
    assert [o.annotation_id for o in read.images[0].objects] == [1, 2]
    (event,) = read.events
    assert "annotation ids are absent, repeated or below 1" in event.kind
    assert event.location == "coco.json"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, "lists no images"),
        (
            {"images": [*IMAGES, {**IMAGES[0], "file_name": "z.jpg"}]},
            "image id 5 occurs 2 times",
        ),
        ({"images": [{**IMAGES[0], "id": -5}]}, "image id -5 is negative"),
        ({"images": [{**IMAGES[0], "id": [1]}]}, r"images\[0\] has id \[1\]"),
        ({"images": [{"id": 5, "width": 3}]}, r"images\[0\] lacks 'file_name'"),
        ({"images": [{**IMAGES[0], "width": "w"}]}, "width 'w'; expected a number"),
        ({"images": [{**IMAGES[0], "width": float("nan")}]}, "image 5 has width nan"),
        ({"images": ["a.jpg"]}, r"images\[0\] is 'a.jpg'; expected an object"),
        (
            {"categories": [*CATEGORIES, {"id": 2, "name": "dog"}]},
            "category id 2 occurs 2 times",
        ),
        ({"categories": [{"id": 2}]}, r"categories\[0\] lacks 'name'"),
        ({"annotations": [{**BOX, "image_id": 77}]}, "annotation 9 is of image 77"),
        ({"annotations": [{**BOX, "category_id": 3}]}, "unlisted category 3"),
        (
            {"annotations": [{**BOX, "image_id": "5a"}]},
            "image_id '5a'; expected an",
        ),
        (
            {"annotations": [{**BOX, "iscrowd": 2}]},
            "annotation 9 has iscrowd 2; exp",
        ),
        ({"categories": [{"id": 2, "name": None}]}, "has name None; expected a text"),
        ({"annotations": [BOX, {"id": 1}]}, r"annotations\[1\] lacks 'image_id'"),
    ],
)
def test_an_error_names_the_inconsistent_record(tmp_path, changes, message):
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
def test_a_file_that_is_not_coco_is_an_error(tmp_path, content, message):
    path = tmp_path / "coco.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"coco\.json.*{message}"):
        coco.read(str(path))


def objects(tmp_path, *boxes, **changes):
    """Returns the objects of boxes that are BOX with changes, and the events."""
    listed = [{**BOX, "id": i, **box} for i, box in enumerate(boxes, start=1)]
    read = coco.read(coco_file(tmp_path, annotations=listed, **changes))
    return read.images[0].objects, read.events


@pytest.mark.parametrize(
    "value", [1, "1", "true", 1.0, True, 0, "0", "False", None, ""]
)
def test_crowd_flag_may_be_a_text(tmp_path, value):
    (item,), events = objects(tmp_path, {"iscrowd": value})
    assert item.is_crowd == (value in (1, "1", "true"))
    assert events == ()


def test_ids_and_names_may_be_texts_and_numbers(tmp_path):
    read = coco.read(
        coco_file(
            tmp_path,
            images=[{**IMAGES[0], "id": "5", "file_name": 12}],
            annotations=[{**BOX, "image_id": 5.0, "category_id": " 2"}],
            categories=[{"id": "2", "name": 7}],
        )
    )
    (image,) = read.images
    assert (image.image_id, image.file_name) == (5, "12")
    assert image.objects[0].category_id == 2
    assert read.categories == [{"id": 2, "name": "7"}]


def test_ids_that_are_texts_are_numbered(tmp_path):
    images = [{**IMAGES[0], "id": name, "file_name": name} for name in ("b.jpg", "a")]
    listed = [
        {**BOX, "id": i, "image_id": image, "category_id": "dog"}
        for i, image in enumerate(["a", "b.jpg", "a", "gone"], start=1)
    ]
    categories = [{"id": "cat", "name": "Cat"}, {"id": "dog", "name": "Dog"}]
    path = coco_file(tmp_path, images=images, annotations=listed, categories=categories)
    read = coco.read(path)
    assert [(i.image_id, i.file_name) for i in read.images] == [(1, "b.jpg"), (2, "a")]
    objects_of_images = [
        [(o.source_line, o.category_id) for o in i.objects] for i in read.images
    ]
    assert objects_of_images == [[(2, 2)], [(1, 2), (3, 2)]]
    kinds = [event.kind for event in read.events]
    assert [kind.partition(",")[0] for kind in kinds] == [
        "files whose image or category ids are texts",
        "objects of images that are not listed",
    ]


def test_an_image_that_is_listed_twice_is_read_once(tmp_path):
    read = coco.read(coco_file(tmp_path, images=IMAGES * 3))
    assert [image.image_id for image in read.images] == [5]
    assert [f.detail for f in read.events] == [IMAGES[0]["file_name"]]


def test_an_annotation_without_box_gets_the_box_of_its_outline_or_is_dropped(tmp_path):
    polygon = {"segmentation": [[1, 2, 5, 2, 5, 8]]}
    mask = {"segmentation": {"size": [9, 9], "counts": [10, 3, 6, 3, 59]}}
    items, events = objects(
        tmp_path,
        {"bbox": [], **polygon},
        {"bbox": None, **mask},
        {"bbox": [1, 2], "segmentation": []},
        {"bbox": ["1", "2", 3, "4"], **polygon},
        {"bbox": ["a", 2, 3, 4]},
        {"bbox": {"x": 1}},
    )
    assert [(o.source_line, o.box_xywh) for o in items] == [
        (1, (1, 2, 4, 6)),
        (2, (1, 1, 2, 3)),
        (4, (1, 2, 3, 4)),
    ]
    assert [(f.kind.partition(",")[0], f.location, f.detail) for f in events] == [
        ("boxes taken from the outline of the object", "coco.json, annotation 1", ""),
        ("boxes taken from the outline of the object", "coco.json, annotation 2", ""),
        ("objects without box or outline", "coco.json, annotation 3", "bbox [1, 2]"),
        ("objects without box or outline", "coco.json, annotation 5", "bbox "
         "['a', 2, 3, 4]"),
        ("objects without box or outline", "coco.json, annotation 6", "bbox {'x': 1}"),
    ]  # fmt: skip


@pytest.mark.parametrize("area", [0, -5, 1, 1e9, "big", float("nan"), True])
def test_an_area_that_does_not_fit_its_box_is_replaced_by_the_area_of_the_box(
    tmp_path, area
):
    large = {"bbox": [0, 0, 50, 40]}
    items, events = objects(tmp_path, {**large, "area": area}, {**large, "area": 900})
    assert [o.area for o in items] == [2000, 900]
    (event,) = events
    assert "areas that do not fit their box" in event.kind
    assert event.location == "coco.json, annotation 1"
    assert event.detail.endswith("box 2000") and event.image == "a.jpg"


def test_the_area_of_the_outline_is_kept_and_absent_areas_are_no_event(tmp_path):
    areas = [{"area": 5.5}, {"area": "5.5"}, {"area": None}, {}, {"area": ""}]
    items, events = objects(tmp_path, *areas)
    assert [o.area for o in items] == [5.5, 5.5, 12, 12, 12]
    assert events == ()


ROOT = {"id": 0, "name": "zoo", "supercategory": "none"}
CAT = {"id": 2, "name": "cat", "supercategory": "zoo"}
DOG = {"id": 3, "name": "dog", "supercategory": "zoo"}


@pytest.mark.parametrize(
    ("categories", "kept"),
    [
        ([ROOT, CAT, DOG], [2, 3]),
        ([ROOT | {"name": "cat"}, CAT | {"supercategory": "cat"}], [2]),
        ([ROOT | {"supercategory": None}, CAT], [2]),
        ([CAT, DOG, ROOT], [2, 3]),
        (
            [CAT | {"name": "zoo", "supercategory": "none"}, DOG],
            [2, 3],
        ),  # It has a box.
        ([ROOT, CAT, DOG | {"supercategory": "none"}], [0, 2, 3]),
        ([ROOT | {"supercategory": "zoo"}, CAT], [0, 2]),
        ([CAT], [2]),
    ],
)
def test_root_of_roboflow_is_left_out(tmp_path, categories, kept):
    read = coco.read(coco_file(tmp_path, categories=categories))
    assert sorted(c["id"] for c in read.categories) == kept
    assert len(read.events) == len(categories) - len(kept)
    for event in read.events:
        assert "only the supercategory of all others, left out" in event.kind
        assert event.detail.startswith("id 0, ")


def test_categories_that_are_listed_twice_are_read_once(tmp_path):
    read = coco.read(coco_file(tmp_path, categories=CATEGORIES * 3))
    assert [c["id"] for c in read.categories] == [2]
    (event,) = read.events
    assert event[:3] == (
        "categories that are listed more than once",
        "coco.json",
        "cat",
    )


def test_images_that_no_annotated_name_matches_are_reported(tmp_path):
    image_folder = files.ImageFolder("/d", ["x/A.png", "b.png"])
    read = coco.read(coco_file(tmp_path), image_folder=image_folder)
    assert [image.file_name for image in read.images] == ["x/A.png"]
    assert [(f.image, f.detail) for f in read.events] == [
        ("x/A.png", "annotated as a.jpg in coco.json"),
        ("b.png", ""),
    ]
