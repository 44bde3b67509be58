import json

import pytest

from retinanet_tpu.data import annotations

IMAGES = [{"id": 5, "file_name": "a.jpg", "height": 40, "width": 60}]
CATEGORIES = [{"id": 2, "name": "cat", "supercategory": "animal"}]
BOX = {"id": 9, "image_id": 5, "category_id": 2, "bbox": [1, 2, 3, 4]}


def coco_file(tmp_path, **changes):
    content = {"images": IMAGES, "annotations": [BOX], "categories": CATEGORIES}
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({**content, **changes}))
    return str(path)


def voc_file(folder, stem, objects=(("cat", 1, 2, 4, 6),)):
    boxes = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin>"
        f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for name, x, y, right, bottom in objects
    )
    (folder / f"{stem}.xml").write_text(
        f"<annotation><filename>{stem}.jpg</filename><size><width>60</width>"
        f"<height>40</height></size>{boxes}</annotation>"
    )


def test_coco_boxes_come_as_written(tmp_path):
    crowd = {**BOX, "id": 10, "iscrowd": 1, "area": 5.5}
    read = annotations.read_coco(coco_file(tmp_path, annotations=[BOX, crowd]))
    plain = annotations.AnnotatedObject(9, 2, (1.0, 2.0, 3.0, 4.0), 12.0, False)
    same_as_crowd = plain._replace(annotation_id=10, area=5.5, is_crowd=True)
    image = annotations.AnnotatedImage(5, "a.jpg", 40, 60, (plain, same_as_crowd))
    assert read.images == [image]
    assert read.categories == [{"id": 2, "name": "cat"}]


def test_written_coco_file_reads_back_and_has_info(tmp_path):
    read = annotations.read_coco(coco_file(tmp_path))
    path = str(tmp_path / "again.json")
    annotations.write_coco(read, path, description="again")
    assert annotations.read_coco(path) == read
    assert "info" in json.loads((tmp_path / "again.json").read_text())


@pytest.mark.parametrize("ids", [(0, 1), (4, 4), (None, 3)])
def test_annotation_ids_that_pycocotools_cannot_use_are_replaced(tmp_path, ids):
    boxes = [{**BOX, "id": number} for number in ids]
    read = annotations.read_coco(coco_file(tmp_path, annotations=boxes))
    assert [o.annotation_id for o in read.images[0].objects] == [1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, "lists no images"),
        ({"images": IMAGES * 2}, "image id 5 comes 2 times"),
        ({"annotations": [{**BOX, "image_id": 77}]}, "annotation 9 is of image 77"),
        ({"annotations": [{**BOX, "category_id": 3}]}, "unlisted category 3"),
        ({"annotations": [{**BOX, "bbox": [1, 2]}]}, r"annotation 9 has bbox \[1, 2\]"),
    ],
)
def test_inconsistent_coco_file_is_named_with_the_id(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        annotations.read_coco(coco_file(tmp_path, **changes))


@pytest.mark.parametrize("content", ["[]", '{"images": [], "annotations": []}', "oops"])
def test_file_that_is_not_coco_says_so(tmp_path, content):
    path = tmp_path / "coco.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"lacks .*categories|not JSON"):
        annotations.read_coco(str(path))


def test_voc_classes_are_those_of_the_folder_whatever_the_split(tmp_path):
    voc_file(tmp_path, "b", [("dog", 1, 2, 4, 6)])
    voc_file(tmp_path, "a", [("cat", 0.5, 2, 4, 6)])
    (tmp_path / "train.txt").write_text("b\n")
    read = annotations.read_voc(
        str(tmp_path), image_names=["b.png"], split_file=str(tmp_path / "train.txt")
    )
    assert read.categories == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    dog = annotations.AnnotatedObject(1, 2, (1.0, 2.0, 3.0, 4.0), 12.0, False)
    assert read.images == [annotations.AnnotatedImage(1, "b.png", 40, 60, (dog,))]


def test_voc_annotation_ids_run_on_and_image_ids_follow_the_stems(tmp_path):
    for stem in ("c", "a", "b"):
        voc_file(tmp_path, stem, [("cat", 1, 2, 4, 6)] * 2)
    read = annotations.read_voc(str(tmp_path), image_names=[])
    assert [(i.image_id, i.file_name) for i in read.images] == [
        (1, "a.jpg"),
        (2, "b.jpg"),
        (3, "c.jpg"),
    ]
    ids = [o.annotation_id for i in read.images for o in i.objects]
    assert ids == [1, 2, 3, 4, 5, 6]


def test_voc_stems_of_digits_are_the_image_ids(tmp_path):
    for stem in ("000030", "000004"):
        voc_file(tmp_path, stem)
    read = annotations.read_voc(str(tmp_path), image_names=[])
    assert [i.image_id for i in read.images] == [4, 30]


def test_voc_names_give_the_order_of_ids(tmp_path):
    voc_file(tmp_path, "a", [("cat", 1, 2, 4, 6)])
    read = annotations.read_voc(str(tmp_path), image_names=[], names=["dog", "cat"])
    assert read.images[0].objects[0].category_id == 2


def test_voc_list_of_a_class_leaves_out_images_without_it(tmp_path):
    for stem in ("a", "b", "c"):
        voc_file(tmp_path, stem)
    (tmp_path / "cat_train.txt").write_text("a  1\nb -1\nc  0\n")
    read = annotations.read_voc(
        str(tmp_path), image_names=[], split_file=str(tmp_path / "cat_train.txt")
    )
    assert [i.file_name for i in read.images] == ["a.jpg", "c.jpg"]


def test_unknown_voc_class_is_named_with_its_file(tmp_path):
    voc_file(tmp_path, "a", [("cow", 1, 2, 4, 6)])
    with pytest.raises(ValueError, match=r"a\.xml has an object of class 'cow'"):
        annotations.read_voc(str(tmp_path), image_names=[], names=["cat"])


def test_voc_errors_name_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"holds no \.xml"):
        annotations.read_voc(str(tmp_path), image_names=[])
    voc_file(tmp_path, "a")
    (tmp_path / "train.txt").write_text("a\nzebra\n")
    with pytest.raises(FileNotFoundError, match=r"names zebra"):
        annotations.read_voc(
            str(tmp_path), image_names=[], split_file=str(tmp_path / "train.txt")
        )
    (tmp_path / "b.xml").write_text("<annotation>")
    with pytest.raises(ValueError, match=r"b\.xml is not XML"):
        annotations.read_voc(str(tmp_path), image_names=[])
