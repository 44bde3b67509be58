import io
import json
import math

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

import annotation_files
from retinanet_tpu.conversion import box_cleaning
from retinanet_tpu.conversion.formats import locating, readers
from retinanet_tpu.data import annotations, tf_example

FORMATS = annotation_files.FORMATS
NAMES_IMAGES = ("coco", "csv", "via", "via_csv", "via_project", "createml", "cvat")
KEEPS_EMPTY = [f for f in FORMATS if f != "openimages"]


def converted(kind, tmp_path, **options):
    """Returns the files that a format's conversion leaves, and what was found."""
    output = tmp_path / f"{kind}_out"
    path = annotation_files.write(kind, tmp_path / kind, **options)
    done = annotation_files.convert(kind, path, tmp_path / "images", output)
    stored = annotations.AnnotatedSet(
        done.images, annotation_files.read(kind, path, tmp_path / "images").categories
    )
    annotations.write_coco(stored, str(output / "train.json"), description="train")
    return {p.name: p.read_bytes() for p in sorted(output.iterdir())}, done


def test_one_data_set_in_each_format_becomes_the_same_bytes(tmp_path):
    annotation_files.draw(tmp_path / "images")
    results = {kind: converted(kind, tmp_path) for kind in FORMATS}
    expected, _ = results["coco"]
    assert sorted(expected) == [
        "train-00000-of-00002.tfrecord",
        "train-00001-of-00002.tfrecord",
        "train.json",
    ]
    for kind, (written, done) in results.items():
        assert written == expected, kind
        assert done.events == [], kind
    paths = [str(tmp_path / "coco_out" / name) for name in expected][:2]
    records = [tf_example.parse(r) for r in tf.data.TFRecordDataset(paths)]
    # Which file an image is in, and where, is the converter's matter.
    found = {tuple(r.category_ids.numpy().tolist()): r for r in records}
    assert sorted(found) == [(1,), (2, 1), (3,)]
    np.testing.assert_array_equal(
        found[2, 1].boxes_yxyx_norm,
        [[0, 0, 1, 1], [6 / 64, 5 / 64, 9 / 64, 7 / 64]],
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_boxes_are_on_the_picture_as_shown(tmp_path, kind):
    upright = PIL.Image.fromarray(np.full([64, 32, 3], 40, np.uint8))
    upright.paste((250, 250, 250), (4, 8, 12, 40))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # Lies on its side; is to be turned clockwise.
    (tmp_path / "images").mkdir()
    lying = upright.transpose(PIL.Image.Transpose.ROTATE_90)
    lying.save(tmp_path / "images/a.png", exif=exif)
    box = annotation_files.Box("cat", 4, 8, 12, 40)
    shown = annotation_files.Picture("a.png", 32, 64, (box,))
    _, done = converted(kind, tmp_path, pictures=[shown], names=["cat"])
    assert [i.objects[0].box_xywh for i in done.images] == [(4, 8, 8, 32)]
    assert [f.kind for f in done.events] == ["images turned upright (EXIF)"]
    path = str(tmp_path / f"{kind}_out" / "train-00000-of-00002.tfrecord")
    record = tf_example.parse(next(iter(tf.data.TFRecordDataset([path]))))
    stored = PIL.Image.open(io.BytesIO(record.encoded.numpy()))
    np.testing.assert_array_equal(np.asarray(stored), np.asarray(upright))


@pytest.mark.parametrize("kind", KEEPS_EMPTY)
def test_annotated_pictures_without_objects_are_kept(tmp_path, kind):
    empty = annotation_files.Picture("empty.png", 32, 32, ())
    pictures = (*annotation_files.PICTURES, empty)
    annotation_files.draw(tmp_path / "images", pictures)
    if kind == "csv":
        path = annotation_files.write(kind, tmp_path / kind)
        with path.open("a") as file:
            file.write(",empty.png,,,,\n")
    else:
        path = annotation_files.write(kind, tmp_path / kind, pictures)
    done = annotation_files.convert(kind, path, tmp_path / "images", tmp_path / "out")
    assert "empty.png" in [image.file_name for image in done.images]
    assert done.counts["images without boxes"] == 1
    assert done.events == []


@pytest.mark.parametrize("kind", FORMATS)
def test_pictures_without_annotation_are_named(tmp_path, kind):
    annotation_files.draw(tmp_path / "images")
    extra = annotation_files.Picture("sub/extra.png", 32, 32, ())
    annotation_files.draw(tmp_path / "images", [extra])
    path = annotation_files.write(kind, tmp_path / kind)
    done = annotation_files.convert(kind, path, tmp_path / "images", tmp_path / "out")
    what = (
        "images without a label file, kept as background"
        if kind == "yolo"
        else "images without annotation, left out"
    )
    name = "sub/extra.png"
    assert done.events == [annotations.ConversionEvent(what, name, image=name)]
    assert len(done.images) == 4 if kind == "yolo" else 3


@pytest.mark.parametrize("kind", FORMATS)
def test_annotations_of_an_absent_picture_are_named(tmp_path, kind):
    annotation_files.draw(tmp_path / "images")
    (tmp_path / "images/b.png").unlink()
    path = annotation_files.write(kind, tmp_path / kind)
    done = annotation_files.convert(kind, path, tmp_path / "images", tmp_path / "out")
    (finding,) = done.events
    assert finding.kind == (
        "annotated images not in the folder, left out"
        if kind == "openimages"
        else "images missing on disk"
    )
    assert finding.location in ("b.png", "b.txt", "b", "0a1b2c3d-b.png")
    assert len(done.images) == 2


@pytest.mark.parametrize("kind", [f for f in FORMATS if f != "openimages"])
def test_set_of_which_most_images_are_missing_is_refused(tmp_path, kind):
    annotation_files.draw(tmp_path / "images")
    for name in ("b.png", "sub/c.jpg"):
        (tmp_path / "images" / name).unlink()
    path = annotation_files.write(kind, tmp_path / kind)
    message = r"^2 of 3 images are missing on disk.* \S*b.*, \S*c.* has Äpfel 1\.jpg"
    with pytest.raises(ValueError, match=message):
        annotation_files.read(kind, path, tmp_path / "images")


@pytest.mark.parametrize("kind", FORMATS)
def test_images_moved_to_other_folders_with_other_endings_are_found(tmp_path, kind):
    drawn = annotation_files.draw(tmp_path / "drawn")
    moves = {"b.png": "x/B.JPG", "sub/c.jpg": "x/sub/c.jpeg"}
    moves["Äpfel 1.jpg"] = "y/A\u0308pfel 1.jpg"  # As macOS writes it.
    for old, new in moves.items():
        path = tmp_path / "images" / new
        path.parent.mkdir(parents=True, exist_ok=True)
        (drawn / old).rename(path)
    path = annotation_files.write(kind, tmp_path / kind)
    done = annotation_files.convert(kind, path, tmp_path / "images", tmp_path / "out")
    assert [i.file_name for i in done.images] == sorted(moves.values())
    assert done.counts["boxes stored"] == 4
    # Formats with a file for each image need not name it, and tasks have other names.
    names = [f.image for f in done.events]
    assert names == (sorted(moves.values()) if kind in NAMES_IMAGES else [])
    assert {f.kind for f in done.events} <= {locating.RENAMED}


@pytest.mark.parametrize("kind", FORMATS)
def test_image_that_may_be_any_of_several_files_is_left_out(tmp_path, kind):
    images = annotation_files.draw(tmp_path / "images")
    (images / "x").mkdir()
    (images / "b.png").rename(images / "x" / "b.png")
    (images / "y").mkdir()
    (images / "y" / "b.png").write_bytes((images / "x" / "b.png").read_bytes())
    path = annotation_files.write(kind, tmp_path / kind)
    done = annotation_files.convert(kind, path, images, tmp_path / "out")
    finding = next(f for f in done.events if f.kind == locating.SEVERAL)
    assert finding.detail.startswith("x/b.png or y/b.png; annotated in ")
    assert len(done.images) == 2


def test_names_of_no_class_are_dropped_in_every_format(tmp_path):
    names = ("__ignore__", "_background_", "cat")
    boxes = tuple(annotation_files.Box(name, 2, 3, 20, 30) for name in names)
    pictures = [annotation_files.Picture("a.png", 32, 32, boxes)]
    annotation_files.draw(tmp_path / "images", pictures)
    for kind in FORMATS:
        path = annotation_files.write(kind, tmp_path / kind, pictures, names)
        annotated = annotation_files.read(kind, path, tmp_path / "images")
        (category,) = annotated.categories
        assert category["name"] == "cat"
        (image,) = annotated.images
        assert [o.category_id for o in image.objects] == [category["id"]]
        assert sorted(f.detail for f in annotated.events) == list(names[:2])
        assert {f.image for f in annotated.events} == {"a.png"}
        if kind in ("voc", "csv", "labelme"):
            assert category["id"] == 1


IN_PIXELS = [f for f in FORMATS if f not in ("yolo", "openimages")]


@pytest.mark.parametrize("kind", IN_PIXELS)
def test_faulty_boxes_are_counted_alike_in_every_format(tmp_path, kind):
    faulty = [
        ("cat", 40, 2, 60, 20),  # Outside.
        ("cat", 2, 2, 50, 20),  # Beyond the edge.
        ("cat", 9, 9, 9, 20),  # Without area.
        ("cat", 2, 2, math.nan, 20),
    ]
    if kind != "labelme":  # Its corners may be in any order.
        faulty.append(("cat", 20, 2, 9, 20))
    good = [("cat", 1, 2 + i, 31, 30) for i in range(6)]
    boxes = tuple(annotation_files.Box(*box) for box in [*good, *faulty])
    pictures = [annotation_files.Picture("a.png", 32, 32, boxes)]
    annotation_files.draw(tmp_path / "images", pictures)
    path = annotation_files.write(kind, tmp_path / kind, pictures, ["cat"])
    done = annotation_files.convert(kind, path, tmp_path / "images", tmp_path / "out")
    assert done.counts["boxes stored"] == 7
    assert sorted(f.kind for f in done.events) == sorted(
        [
            box_cleaning.BoxIssue.OUTSIDE.kind,
            box_cleaning.BoxIssue.FAR_BEYOND.kind,
            box_cleaning.BoxIssue.NO_AREA.kind,
            box_cleaning.BoxIssue.NOT_FINITE.kind,
            *[box_cleaning.BoxIssue.WRONG_ORDER.kind][: len(faulty) - 4],
        ]
    )


@pytest.mark.parametrize("kind", [f for f in FORMATS if f not in ("coco", "yolo")])
def test_a_class_that_is_not_listed_is_refused(tmp_path, kind):
    if kind == "openimages":
        pytest.skip("takes no --names")
    annotation_files.draw(tmp_path / "images")
    path = annotation_files.write(kind, tmp_path / kind)
    pictures = annotation_files.pictures_in(tmp_path / "images")
    with pytest.raises(ValueError, match=r"has class '(ampel|猫 \(cat\))'; known are"):
        readers.read(
            kind.partition("_")[0], str(path), pictures=pictures, names=["Straße"]
        )


@pytest.mark.parametrize("kind", ["via", "createml", "cvat", "labelstudio"])
def test_an_image_that_a_file_lists_twice_is_refused(tmp_path, kind):
    annotation_files.draw(tmp_path / "images")
    picture = annotation_files.PICTURES[0]
    twice = [picture, *annotation_files.PICTURES]
    path = annotation_files.write(kind, tmp_path / kind, twice)
    if kind == "via":  # Its keys are the name and the size of the file.
        content = json.loads(path.read_text())
        content["other"] = content[f"{picture.name}99"]
        path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"b\.png is annotated twice"):
        annotation_files.convert(kind, path, tmp_path / "images", tmp_path / "out")
