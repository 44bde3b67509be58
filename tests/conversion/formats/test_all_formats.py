import io
import json
import math
import re

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
    """Converts a format; returns the output files by name, and the Conversion."""
    output = tmp_path / f"{kind}_out"
    path = annotation_files.write(kind, tmp_path / kind, **options)
    conversion = annotation_files.convert(kind, path, tmp_path / "images", output)
    stored = annotations.AnnotatedSet(
        conversion.images,
        annotation_files.read(kind, path, tmp_path / "images").categories,
    )
    annotations.write_coco(stored, str(output / "train.json"), description="train")
    contents = {p.name: p.read_bytes() for p in sorted(output.iterdir())}
    if kind == "openimages":  # Its classes have a second name, for the metric.
        without = re.sub(rb', "machine_id": "/m/\d"', b"", contents["train.json"])
        assert without != contents["train.json"]
        contents["train.json"] = without
    return contents, conversion


def test_the_test_data_has_each_format_that_the_converter_reads():
    assert {kind.partition("_")[0] for kind in FORMATS} == set(readers.FORMATS)


def test_one_data_set_in_each_format_is_converted_to_the_same_bytes(tmp_path):
    annotation_files.draw(tmp_path / "images")
    results = {kind: converted(kind, tmp_path) for kind in FORMATS}
    expected, _ = results["coco"]
    assert sorted(expected) == [
        "train-00000-of-00002.tfrecord",
        "train-00001-of-00002.tfrecord",
        "train.index.json",
        "train.json",
    ]
    for kind, (written, conversion) in results.items():
        assert written == expected, kind
        assert conversion.events == [], kind
    paths = [str(tmp_path / "coco_out" / name) for name in expected][:2]
    records = [tf_example.parse(r) for r in tf.data.TFRecordDataset(paths)]
    # The order of records is tested with the converter.
    by_classes = {tuple(r.category_ids.numpy().tolist()): r for r in records}
    assert sorted(by_classes) == [(1,), (2, 1), (3,)]
    np.testing.assert_array_equal(
        by_classes[2, 1].boxes_yxyx_norm,
        [[0, 0, 1, 1], [6 / 64, 5 / 64, 9 / 64, 7 / 64]],
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_boxes_are_on_the_image_after_its_exif_rotation(tmp_path, kind):
    upright = PIL.Image.fromarray(np.full([64, 32, 3], 40, np.uint8))
    upright.paste((250, 250, 250), (4, 8, 12, 40))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # Orientation: rotate clockwise for display.
    (tmp_path / "images").mkdir()
    lying = upright.transpose(PIL.Image.Transpose.ROTATE_90)
    lying.save(tmp_path / "images/a.png", exif=exif)
    box = annotation_files.Box("cat", 4, 8, 12, 40)
    sample = annotation_files.SampleImage("a.png", 32, 64, (box,))
    _, conversion = converted(kind, tmp_path, images=[sample], names=["cat"])
    assert [i.objects[0].box_xywh for i in conversion.images] == [(4, 8, 8, 32)]
    assert [event.kind for event in conversion.events] == [
        "images turned upright (EXIF)"
    ]
    path = str(tmp_path / f"{kind}_out" / "train-00000-of-00002.tfrecord")
    record = tf_example.parse(next(iter(tf.data.TFRecordDataset([path]))))
    stored = PIL.Image.open(io.BytesIO(record.encoded.numpy()))
    np.testing.assert_array_equal(np.asarray(stored), np.asarray(upright))


@pytest.mark.parametrize("kind", KEEPS_EMPTY)
def test_annotated_images_without_objects_are_kept(tmp_path, kind):
    empty = annotation_files.SampleImage("empty.png", 32, 32, ())
    images = (*annotation_files.IMAGES, empty)
    annotation_files.draw(tmp_path / "images", images)
    if kind == "csv":
        path = annotation_files.write(kind, tmp_path / kind)
        with path.open("a") as file:
            file.write(",empty.png,,,,\n")
    else:
        path = annotation_files.write(kind, tmp_path / kind, images)
    conversion = annotation_files.convert(
        kind, path, tmp_path / "images", tmp_path / "out"
    )
    assert "empty.png" in [image.file_name for image in conversion.images]
    assert conversion.counts["images without boxes"] == 1
    assert conversion.events == []


@pytest.mark.parametrize("kind", FORMATS)
def test_images_without_annotation_are_reported(tmp_path, kind):
    annotation_files.draw(tmp_path / "images")
    extra = annotation_files.SampleImage("sub/extra.png", 32, 32, ())
    annotation_files.draw(tmp_path / "images", [extra])
    path = annotation_files.write(kind, tmp_path / kind)
    conversion = annotation_files.convert(
        kind, path, tmp_path / "images", tmp_path / "out"
    )
    what = (
        "images without a label file, kept as background"
        if kind == "yolo"
        else "images without annotation, left out"
    )
    name = "sub/extra.png"
    assert conversion.events == [annotations.ConversionEvent(what, name, image=name)]
    assert len(conversion.images) == (4 if kind == "yolo" else 3)


@pytest.mark.parametrize("kind", FORMATS)
def test_annotations_of_a_missing_image_are_reported(tmp_path, kind):
    annotation_files.draw(tmp_path / "images")
    (tmp_path / "images/b.png").unlink()
    path = annotation_files.write(kind, tmp_path / kind)
    conversion = annotation_files.convert(
        kind, path, tmp_path / "images", tmp_path / "out"
    )
    (event,) = conversion.events
    assert event.kind == (
        "annotated images not in the folder, left out"
        if kind == "openimages"
        else "images missing on disk"
    )
    assert event.location in ("b.png", "b.txt", "b", "0a1b2c3d-b.png")
    assert len(conversion.images) == 2


@pytest.mark.parametrize("kind", [f for f in FORMATS if f != "openimages"])
def test_an_error_is_raised_if_most_images_are_missing(tmp_path, kind):
    annotation_files.draw(tmp_path / "images")
    for name in ("b.png", "sub/c.jpg"):
        (tmp_path / "images" / name).unlink()
    path = annotation_files.write(kind, tmp_path / kind)
    message = r"^2 of 3 images are missing on disk.* \S*b.*, \S*c.* has Äpfel 1\.jpg"
    with pytest.raises(ValueError, match=message):
        annotation_files.read(kind, path, tmp_path / "images")


@pytest.mark.parametrize("kind", FORMATS)
def test_images_in_other_folders_with_other_extensions_are_found(tmp_path, kind):
    drawn = annotation_files.draw(tmp_path / "drawn")
    moves = {"b.png": "x/B.JPG", "sub/c.jpg": "x/sub/c.jpeg"}
    moves["Äpfel 1.jpg"] = "y/A\u0308pfel 1.jpg"  # As macOS writes it.
    for old, new in moves.items():
        path = tmp_path / "images" / new
        path.parent.mkdir(parents=True, exist_ok=True)
        (drawn / old).rename(path)
    path = annotation_files.write(kind, tmp_path / kind)
    conversion = annotation_files.convert(
        kind, path, tmp_path / "images", tmp_path / "out"
    )
    assert [i.file_name for i in conversion.images] == sorted(moves.values())
    assert conversion.counts["boxes stored"] == 4
    # Formats with one file per image, and tasks, do not contain the file name.
    names = [event.image for event in conversion.events]
    assert names == (sorted(moves.values()) if kind in NAMES_IMAGES else [])
    assert {event.kind for event in conversion.events} <= {locating.RENAMED}


@pytest.mark.parametrize("kind", FORMATS)
def test_an_image_that_matches_several_files_is_left_out(tmp_path, kind):
    images = annotation_files.draw(tmp_path / "images")
    (images / "x").mkdir()
    (images / "b.png").rename(images / "x" / "b.png")
    (images / "y").mkdir()
    (images / "y" / "b.png").write_bytes((images / "x" / "b.png").read_bytes())
    path = annotation_files.write(kind, tmp_path / kind)
    conversion = annotation_files.convert(kind, path, images, tmp_path / "out")
    event = next(event for event in conversion.events if event.kind == locating.SEVERAL)
    assert event.detail.startswith("x/b.png or y/b.png; annotated in ")
    assert len(conversion.images) == 2


def test_ignored_classes_are_dropped_in_every_format(tmp_path):
    names = ("__ignore__", "_background_", "cat")
    boxes = tuple(annotation_files.Box(name, 2, 3, 20, 30) for name in names)
    images = [annotation_files.SampleImage("a.png", 32, 32, boxes)]
    annotation_files.draw(tmp_path / "images", images)
    for kind in FORMATS:
        path = annotation_files.write(kind, tmp_path / kind, images, names)
        annotated = annotation_files.read(kind, path, tmp_path / "images")
        (category,) = annotated.categories
        assert category["name"] == "cat"
        (image,) = annotated.images
        assert [o.category_id for o in image.objects] == [category["id"]]
        assert sorted(event.detail for event in annotated.events) == list(names[:2])
        assert {event.image for event in annotated.events} == {"a.png"}
        if kind in ("voc", "csv", "labelme"):
            assert category["id"] == 1


IN_PIXELS = [f for f in FORMATS if f not in ("yolo", "openimages")]


@pytest.mark.parametrize("kind", IN_PIXELS)
def test_invalid_boxes_are_counted_equally_in_every_format(tmp_path, kind):
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
    images = [annotation_files.SampleImage("a.png", 32, 32, boxes)]
    annotation_files.draw(tmp_path / "images", images)
    path = annotation_files.write(kind, tmp_path / kind, images, ["cat"])
    conversion = annotation_files.convert(
        kind, path, tmp_path / "images", tmp_path / "out"
    )
    assert conversion.counts["boxes stored"] == 7
    assert sorted(event.kind for event in conversion.events) == sorted(
        [
            box_cleaning.BoxIssue.OUTSIDE.kind,
            box_cleaning.BoxIssue.FAR_BEYOND.kind,
            box_cleaning.BoxIssue.NO_AREA.kind,
            box_cleaning.BoxIssue.NOT_FINITE.kind,
            *[box_cleaning.BoxIssue.WRONG_ORDER.kind][: len(faulty) - 4],
        ]
    )


@pytest.mark.parametrize("kind", [f for f in FORMATS if f not in ("coco", "yolo")])
def test_a_class_that_is_not_in_names_is_an_error(tmp_path, kind):
    if kind == "openimages":
        pytest.skip("takes no --names")
    annotation_files.draw(tmp_path / "images")
    path = annotation_files.write(kind, tmp_path / kind)
    image_folder = annotation_files.image_folder(tmp_path / "images")
    with pytest.raises(ValueError, match=r"has class '(ampel|猫 \(cat\))'; known are"):
        readers.read(
            kind.partition("_")[0],
            str(path),
            image_folder=image_folder,
            names=["Straße"],
        )


@pytest.mark.parametrize("kind", ["via", "createml", "cvat", "labelstudio"])
def test_an_image_that_a_file_lists_twice_is_an_error(tmp_path, kind):
    annotation_files.draw(tmp_path / "images")
    image = annotation_files.IMAGES[0]
    twice = [image, *annotation_files.IMAGES]
    path = annotation_files.write(kind, tmp_path / kind, twice)
    if kind == "via":  # Its keys are the name and the size of the file.
        content = json.loads(path.read_text())
        content["other"] = content[f"{image.name}99"]
        path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"b\.png is annotated twice"):
        annotation_files.convert(kind, path, tmp_path / "images", tmp_path / "out")
