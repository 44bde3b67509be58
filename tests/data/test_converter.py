import io
import os

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from retinanet_tpu.data import annotations, converter, record_files, tf_example

NAMES = {1: "cat", 2: "dog"}
BOX = annotations.AnnotatedObject(1, 2, (3.0, 4.0, 12.0, 9.0), 100.0, False)
IMAGE = annotations.AnnotatedImage(5, "a.jpg", 24, 30, (BOX,))


def save(folder, name="a.jpg", *, size=(30, 24), image_format="JPEG", **options):
    x = np.linspace(0, 255, size[0], dtype=np.uint8)
    pixels = np.tile(x[None, :, None], [size[1], 1, 3])
    PIL.Image.fromarray(pixels).save(folder / name, image_format, **options)
    return (folder / name).read_bytes()


def convert(folder, image=IMAGE):
    conversion, serialized = converter.convert_image(image, str(folder), NAMES)
    parsed = None if serialized is None else tf_example.parse(tf.constant(serialized))
    return conversion, parsed


def boxes_after(folder, *boxes):
    objects = tuple(BOX._replace(box_xywh=box) for box in boxes)
    conversion, parsed = convert(folder, IMAGE._replace(objects=objects))
    stored = [item.box_xywh for item in conversion.images[0].objects]
    assert len(parsed.category_ids) == len(stored)
    return stored, conversion.counts


def test_sound_jpeg_is_stored_byte_for_byte(tmp_path):
    pixels = save(tmp_path)
    conversion, parsed = convert(tmp_path)
    assert parsed.encoded.numpy() == pixels
    assert conversion.images == [IMAGE]
    assert conversion.affected == {}
    assert conversion.counts["boxes stored"] == 1


def test_box_beyond_the_edge_is_clipped_in_both_records(tmp_path):
    save(tmp_path)
    stored, counts = boxes_after(tmp_path, (-5.0, 10.0, 20.0, 50.0))
    assert stored == [(0.0, 10.0, 15.0, 14.0)]
    assert counts["boxes beyond the edge, clipped"] == 1


def test_box_beyond_the_edge_by_rounding_stays_as_annotated(tmp_path):
    save(tmp_path)
    box = (20.0, 10.0, 10.02, 5.0)
    stored, counts = boxes_after(tmp_path, box)
    assert stored == [box]
    assert counts["boxes beyond the edge, clipped"] == 0


@pytest.mark.parametrize(
    "box",
    [(3.0, 4.0, 0.0, 9.0), (3.0, 4.0, 5.0, -1.0), (40.0, 4.0, 9.0, 9.0),
     (float("nan"), 1.0, 2.0, 3.0)],
)  # fmt: skip
def test_box_without_area_is_dropped_and_its_image_kept(tmp_path, box):
    save(tmp_path)
    stored, counts = boxes_after(tmp_path, box)
    assert stored == []
    assert counts["boxes without area, dropped"] == 1
    assert counts["images without boxes"] == 1
    assert counts["images stored"] == 1


def test_crowd_stays_a_crowd(tmp_path):
    save(tmp_path)
    crowd = IMAGE._replace(objects=(BOX._replace(is_crowd=True),))
    conversion, parsed = convert(tmp_path, crowd)
    assert parsed.is_crowd.numpy().tolist() == [True]
    assert conversion.counts["boxes of crowds"] == 1


def test_missing_image_is_named(tmp_path):
    conversion, parsed = convert(tmp_path)
    assert parsed is None and conversion.images == []
    assert conversion.affected == {"images missing on disk": ["a.jpg"]}


@pytest.mark.parametrize("content", [b"", b"no picture", "half"])
def test_broken_image_is_named(tmp_path, content):
    whole = save(tmp_path)
    broken = whole[: len(whole) * 3 // 4] if content == "half" else content
    (tmp_path / "a.jpg").write_bytes(broken)
    conversion, parsed = convert(tmp_path)
    assert parsed is None and conversion.images == []
    assert conversion.affected == {"images unreadable": ["a.jpg"]}


def test_true_size_counts_and_a_different_annotation_is_reported(tmp_path):
    save(tmp_path, size=(60, 48))
    conversion, parsed = convert(tmp_path)
    assert (conversion.images[0].height, conversion.images[0].width) == (48, 60)
    np.testing.assert_allclose(
        parsed.boxes_yxyx_norm[0], [4 / 48, 3 / 60, 13 / 48, 15 / 60]
    )
    assert "images of another size than annotated" in conversion.affected


def test_unknown_annotated_size_is_no_difference(tmp_path):
    save(tmp_path)
    conversion, _ = convert(tmp_path, IMAGE._replace(height=0, width=0))
    assert conversion.affected == {}


@pytest.mark.parametrize("image_format", ["BMP", "TIFF", "WEBP", "GIF"])
def test_other_formats_are_stored_as_png(tmp_path, image_format):
    save(tmp_path, image_format=image_format)
    conversion, parsed = convert(tmp_path)
    assert parsed.encoded.numpy().startswith(b"\x89PNG")
    assert list(conversion.affected) == [f"images stored as PNG, were {image_format}"]


def test_rotation_that_the_annotation_obeys_is_applied(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    save(tmp_path, size=(24, 30), exif=exif)
    conversion, parsed = convert(tmp_path)
    picture = np.asarray(PIL.Image.open(io.BytesIO(parsed.encoded.numpy())))
    assert picture.shape == (24, 30, 3)
    assert picture[0].mean() < 20 and picture[-1].mean() > 235
    assert list(conversion.affected) == ["images turned upright (EXIF)"]


def many(folder, count):
    images = []
    for i in range(count):
        save(folder, f"{i}.jpg", size=(30 + i, 24))
        images.append(IMAGE._replace(image_id=i, file_name=f"{i}.jpg", width=30 + i))
    categories = [{"id": i, "name": name} for i, name in NAMES.items()]
    return annotations.AnnotatedSet(images, categories)


def write(annotated, folder, output, **options):
    return converter.write_shards(
        annotated,
        images_dir=str(folder),
        output_dir=str(output),
        split="train",
        **options,
    )


def test_files_are_the_same_whatever_the_number_of_workers(tmp_path):
    annotated = many(tmp_path, 7)
    contents = []
    for workers in (1, 4):
        output = tmp_path / str(workers)
        write(annotated, tmp_path, output, num_shards=3, num_workers=workers)
        names = sorted(os.listdir(output))
        contents.append([(name, (output / name).read_bytes()) for name in names])
    assert contents[0] == contents[1]
    assert [name for name, _ in contents[0]] == [
        record_files.file_name("train", index, 3) for index in range(3)
    ]


def test_every_image_is_in_one_shard_and_the_result_keeps_their_order(tmp_path):
    annotated = many(tmp_path, 7)
    os.remove(tmp_path / "3.jpg")
    done = []
    conversion = write(
        annotated, tmp_path, tmp_path / "out", num_shards=3,
        progress_fn=lambda: done.append(1),
    )  # fmt: skip
    kept = [image for image in annotated.images if image.image_id != 3]
    assert conversion.images == kept
    assert conversion.affected == {"images missing on disk": ["3.jpg"]}
    assert len(done) == 7
    paths = record_files.find(str(tmp_path / "out"), "train")
    stored = [
        tf_example.parse(s).image_id.numpy() for s in tf.data.TFRecordDataset(paths)
    ]
    assert sorted(stored) == [0, 1, 2, 4, 5, 6]
