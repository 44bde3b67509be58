import re

import pytest

import annotation_files
from retinanet_tpu.conversion.formats import files, locating, yolo
from retinanet_tpu.data import annotations

CATEGORIES = [{"id": 0, "name": "cat"}, {"id": 7, "name": "dog"}]


CLASSES = yolo.Classes(CATEGORIES, keypoints=None, is_yaml=False)


def read(folder, image_names=("a.jpg",), classes=CLASSES, **label_files):
    for stem, text in label_files.items():
        (folder / f"{stem}.txt").write_text(text)
    image_folder = files.ImageFolder("images", image_names)
    return yolo.read(str(folder), image_folder=image_folder, classes=classes)


def test_boxes_are_fractions_and_class_numbers_are_the_ids(tmp_path):
    annotated = read(tmp_path, a="7 0.5 0.25 0.5 0.125\n\n0.0 .1 .2 .1 .2\n")
    (image,) = annotated.images
    dog, cat = image.objects
    assert image.is_norm
    assert dog[:3] == (1, 7, (0.25, 0.1875, 0.5, 0.125))
    assert (cat.category_id, cat.source_line) == (0, 3)
    assert annotations.source_line_of(image, cat) == "a.txt, line 3"


def test_polygon_becomes_the_box_around_it(tmp_path):
    classes = CLASSES._replace(is_yaml=True)
    text = "0 .5 .5 .5 .5\n0 0.5 0.25 0.75 0.5 0.25 0.5\n"
    annotated = read(tmp_path, classes=classes, a=text)
    assert annotated.images[0].objects[1].box_xywh == (0.25, 0.25, 0.5, 0.25)
    (event,) = annotated.events
    assert event[:2] == ("polygons stored as the boxes around them", "a.txt, line 2")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 .5 .5 .5", "line 2 is '0 .5 .5 .5'; expected class cx cy width height"),
        ("0 .5 .5 .5 .5 .9", "expected class cx"),
        ("0.5 .5 .5 .5 .5", "expected class cx"),
        ("nan .5 .5 .5 .5", "expected class cx"),
        ("cat .5 .5 .5 .5", "line 2: expected a number, got 'cat'"),
        ("\xff", "not UTF-8 text (line 2"),
    ],
)
def test_unreadable_file_drops_its_image(tmp_path, line, message):
    (tmp_path / "b.txt").write_bytes(f"0 .5 .5 .5 .5\n{line}\n".encode("latin-1"))
    annotated = read(tmp_path, ["a.jpg", "b.jpg"], a="0 .5 .5 .5 .5")
    assert [i.file_name for i in annotated.images] == ["a.jpg"]
    (event,) = annotated.events
    assert event[:2] == (files.UNREADABLE, "b.txt")
    assert message in event.detail


def test_unknown_number_is_an_error_with_its_line(tmp_path):
    message = r"a\.txt, line 1 has class '3'; known are 0, 7"
    with pytest.raises(ValueError, match=message):
        read(tmp_path, a="3 .5 .5 .5 .5")


def test_lists_of_classes_among_the_labels_are_no_labels(tmp_path):
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    annotated = read(tmp_path, a="0 .5 .5 .5 .5")
    assert annotated.events == ()
    (tmp_path / "a.txt").unlink()
    with pytest.raises(ValueError, match="contains no label file"):
        read(tmp_path)


def test_labels_that_match_several_images_are_events(tmp_path):
    annotated = read(tmp_path, ["full/a.jpg", "small/a.jpg"], a="0 .5 .5 1 1")
    (event,) = annotated.events
    assert event.kind == locating.SEVERAL
    assert event.detail.startswith("full/a.jpg or small/a.jpg")


def test_labels_without_any_image_are_an_error(tmp_path):
    message = r"None of the 1 label files.*a\.txt.*--images"
    with pytest.raises(ValueError, match=message):
        read(tmp_path, ["b.jpg"], a="0 .5 .5 .5 .5")


@pytest.mark.parametrize(
    "name", ["data.yaml", "labels/classes.txt", "labels/train/classes.txt"]
)
def test_names_are_found_beside_the_labels_and_above(tmp_path, name):
    labels = tmp_path / "labels" / "train"
    labels.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="with --classes=FILE"):
        yolo.find_classes(str(labels))
    (tmp_path / "coco8.yaml").touch()
    hint = f"with --classes={tmp_path}/coco8.yaml, if it contains them"
    with pytest.raises(FileNotFoundError, match=re.escape(hint)):
        yolo.find_classes(str(labels))
    (tmp_path / name).touch()
    path = yolo.find_classes(f"{labels}/")
    assert (tmp_path / name).samefile(path)


def test_the_format_is_read_as_written_by_the_helper(tmp_path):
    annotation_files.draw(tmp_path / "images")
    path = annotation_files.write("yolo", tmp_path / "yolo")
    annotated = annotation_files.read("yolo", path, tmp_path / "images")
    assert [c["name"] for c in annotated.categories] == list(annotation_files.NAMES)


KEYPOINTS = "0 0.3 0.3 0.2 0.2 0.25 0.25 2 0.35 0.35 1\n"


@pytest.mark.parametrize(
    ("keypoints", "line"),
    [((2, 3), KEYPOINTS), ((3, 2), "0 0.3 0.3 0.2 0.2 0.2 0.2 0.4 0.4 0.3 0.3\n")],
)
def test_boxes_with_keypoints_are_stored_without_them(tmp_path, keypoints, line):
    classes = CLASSES._replace(keypoints=keypoints)
    annotated = read(tmp_path, classes=classes, a=line + "0 .5 .5 .5 .5\n")
    first, second = (o.box_xywh for o in annotated.images[0].objects)
    assert first == pytest.approx((0.2, 0.2, 0.2, 0.2))
    assert second == (0.25, 0.25, 0.5, 0.5)
    (event,) = annotated.events
    assert event[:2] == ("keypoints left out, their boxes stored", "a.txt, line 1")


def test_lines_that_may_be_polygons_or_keypoints_are_an_error(tmp_path):
    with pytest.raises(
        ValueError, match=r"a\.txt, line 1.*kpt_shape: \[17, 3\]"
    ) as error:
        read(tmp_path, a=KEYPOINTS)
    assert "kpt_shape: [0, 0] for polygons" in str(error.value)
    polygons = CLASSES._replace(keypoints=(0, 0))
    triangle = "0 0.3 0.3 0.2 0.2 0.25 0.25\n"
    annotated = read(tmp_path, classes=polygons, a=triangle)
    box_xywh = annotated.images[0].objects[0].box_xywh
    assert box_xywh == pytest.approx((0.2, 0.2, 0.1, 0.1))


def test_polygon_with_an_odd_number_of_coordinates_drops_its_image(tmp_path):
    # 0.9 is no visibility, so the line is no box with keypoints either.
    odd = KEYPOINTS.replace(" 2 ", " 0.9 ").replace(" 1\n", " 1 0 0 1\n")
    annotated = read(tmp_path, ["a.jpg", "b.jpg"], a=odd, b="0 .5 .5 .5 .5")
    assert [i.file_name for i in annotated.images] == ["b.jpg"]
    (event,) = annotated.events
    assert event[:2] == (files.UNREADABLE, "a.txt")
    assert event.detail == "line 1 has 13 numbers after the class"


def test_texts_without_an_image_are_no_labels(tmp_path):
    others = {"train": "images/a.jpg\n", "README": "hello there\n"}
    annotated = read(tmp_path, a="0 .5 .5 .5 .5", **others)
    assert [i.file_name for i in annotated.images] == ["a.jpg"]
    assert annotated.events == ()


def test_labels_and_images_may_lie_in_one_tree(tmp_path):
    for split in ("train", "val"):
        (tmp_path / "labels" / split).mkdir(parents=True)
        (tmp_path / "labels" / split / "a.txt").write_text("0 .5 .5 .5 .5")
    names = ["images/train/a.jpg", "images/val/a.jpg", "images/val/b.jpg"]
    annotated = read(tmp_path, names)
    assert {i.file_name: i.source for i in annotated.images} == {
        "images/train/a.jpg": "labels/train/a.txt",
        "images/val/a.jpg": "labels/val/a.txt",
        "images/val/b.jpg": "",
    }


def test_classes_come_with_the_shape_of_keypoints(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text("names: [cat]\nkpt_shape: [17, 3]")
    cat = [{"id": 0, "name": "cat"}]
    assert yolo.read_classes(str(path)) == (cat, (17, 3), True)
    path.write_text("names: [cat]\nkpt_shape: seventeen")
    with pytest.raises(
        ValueError, match=r"kpt_shape seventeen; expected \[number, 2\]"
    ):
        yolo.read_classes(str(path))
    (tmp_path / "classes.txt").write_text("cat")
    assert yolo.read_classes(str(tmp_path / "classes.txt")) == (cat, None, False)


def test_images_of_a_folder_without_any_label_are_no_background(tmp_path):
    names = ["train/a.jpg", "train/b.jpg", "train/x/c.jpg", "val/a.jpg", "d.jpg"]
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.txt").write_text("0 .5 .5 .5 .5")
    annotated = read(tmp_path, names)
    assert [i.file_name for i in annotated.images] == names[:3]
    dropped = [e.image for e in annotated.events if e.kind == annotations.UNANNOTATED]
    assert dropped == ["d.jpg", "val/a.jpg"]
