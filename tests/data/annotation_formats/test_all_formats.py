import io

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

import annotation_files
from retinanet_tpu.data import annotations, tf_example

FORMATS = annotation_files.FORMATS
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


def test_one_data_set_in_six_formats_becomes_the_same_bytes(tmp_path):
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
        assert done.findings == [], kind
    paths = [str(tmp_path / "coco_out" / name) for name in expected][:2]
    records = [tf_example.parse(r) for r in tf.data.TFRecordDataset(paths)]
    assert [r.category_ids.numpy().tolist() for r in records] == [[3], [2, 1], [1]]
    np.testing.assert_array_equal(
        records[1].boxes_yxyx_norm,
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
    assert [f.what for f in done.findings] == ["images turned upright (EXIF)"]
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
    assert done.findings == []


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
        else "pictures without annotation, left out"
    )
    assert done.findings == [annotations.Finding(what, "sub/extra.png")]
    assert len(done.images) == 4 if kind == "yolo" else 3


@pytest.mark.parametrize("kind", FORMATS)
def test_annotations_of_an_absent_picture_are_named(tmp_path, kind):
    annotation_files.draw(tmp_path / "images")
    (tmp_path / "images/b.png").unlink()
    path = annotation_files.write(kind, tmp_path / kind)
    done = annotation_files.convert(kind, path, tmp_path / "images", tmp_path / "out")
    (finding,) = done.findings
    assert finding.what == "images missing on disk"
    assert finding.where in ("b.png", "b.txt", "b")
    assert len(done.images) == 2
