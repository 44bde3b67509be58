import itertools
import os

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from retinanet_tpu.conversion import converter
from retinanet_tpu.data import annotations, record_files, tf_example
from shard_files import contents, write

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


def left_out(folder, image=IMAGE):
    """Returns the only event of an image that is not stored."""
    conversion, parsed = convert(folder, image)
    assert parsed is None and conversion.images == []
    (event,) = conversion.events
    assert event.location == image.file_name
    return event


def test_a_valid_jpeg_is_stored_unchanged(tmp_path):
    pixels = save(tmp_path)
    conversion, parsed = convert(tmp_path)
    assert parsed.encoded.numpy() == pixels
    assert conversion == ([IMAGE], [])
    assert conversion.counts["boxes stored"] == 1


def test_clipped_boxes_are_the_same_in_record_and_result(tmp_path):
    save(tmp_path)
    boxes = [(-5.0, 10.0, 20.0, 50.0), (3.0, 4.0, 0.0, 9.0), (1.0, 2.0, 3.0, 4.0)]
    objects = tuple(BOX._replace(box_xywh=box) for box in boxes)
    conversion, parsed = convert(tmp_path, IMAGE._replace(objects=objects))
    stored = [item.box_xywh for item in conversion.images[0].objects]
    assert stored == [(0.0, 10.0, 15.0, 14.0), (1.0, 2.0, 3.0, 4.0)]
    np.testing.assert_allclose(
        parsed.boxes_yxyx_norm * [24, 30, 24, 30], [[10, 0, 24, 15], [2, 1, 6, 4]]
    )
    assert conversion.counts["boxes far beyond the edge, clipped"] == 1
    assert conversion.counts["boxes without area, dropped"] == 1


def test_an_image_without_remaining_boxes_is_kept(tmp_path):
    save(tmp_path)
    flat = BOX._replace(box_xywh=(3.0, 4.0, 0.0, 9.0))
    conversion, parsed = convert(tmp_path, IMAGE._replace(objects=(flat,)))
    assert parsed.category_ids.shape == (0,)
    assert conversion.counts["images without boxes"] == 1
    assert conversion.counts["images stored"] == 1


def test_a_crowd_remains_a_crowd(tmp_path):
    save(tmp_path)
    crowd = IMAGE._replace(objects=(BOX._replace(is_crowd=True),))
    conversion, parsed = convert(tmp_path, crowd)
    assert parsed.is_crowd.numpy().tolist() == [True]
    assert conversion.counts["boxes of crowds"] == 1


def test_the_event_of_a_missing_image_contains_the_annotation_file(tmp_path):
    event = left_out(tmp_path, IMAGE._replace(source="a.xml"))
    assert event.kind == "images missing on disk"
    assert event.detail == "annotated in a.xml"


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"", "images of 0 bytes"), (b"no image", "images unreadable"),
     ("half", "images unreadable")],
)  # fmt: skip
def test_a_broken_image_is_left_out_with_its_kind(tmp_path, content, kind):
    whole = save(tmp_path)
    broken = whole[: len(whole) * 3 // 4] if content == "half" else content
    (tmp_path / "a.jpg").write_bytes(broken)
    event = left_out(tmp_path)
    assert event.kind == kind and event.detail


def test_a_folder_in_place_of_an_image_is_left_out(tmp_path):
    (tmp_path / "a.jpg").mkdir()
    assert left_out(tmp_path).kind == "images unreadable"


@pytest.mark.parametrize(
    "path",
    ["../a.jpg", "sub/../../a.jpg", "..\\a.jpg", "{}/a.jpg", "file://{}/a.jpg", "",
     "a.jpg\0", ".."],
)  # fmt: skip
def test_a_path_that_leaves_the_folder_is_not_read(tmp_path, path):
    save(tmp_path)
    (tmp_path / "images" / "sub").mkdir(parents=True)
    image = IMAGE._replace(file_name=path.format(tmp_path))
    event = left_out(tmp_path / "images", image)
    assert event.kind == "images whose path leaves the folder, left out"


def test_an_image_of_another_size_than_annotated_is_left_out(tmp_path):
    save(tmp_path, size=(60, 48))
    event = left_out(tmp_path)
    assert event.kind == "images of another size than annotated, left out"
    assert event.detail == "30 x 24 annotated, is 60 x 48"


def test_an_unknown_annotated_size_is_not_compared(tmp_path):
    save(tmp_path)
    for unknown in ({"height": 0, "width": 0}, {"width": 0}):
        conversion, _ = convert(tmp_path, IMAGE._replace(**unknown))
        assert conversion == ([IMAGE], [])


@pytest.mark.parametrize("image_format", ["BMP", "TIFF", "WEBP", "GIF"])
def test_other_formats_are_stored_as_png(tmp_path, image_format):
    save(tmp_path, image_format=image_format)
    conversion, parsed = convert(tmp_path)
    assert parsed.encoded.numpy().startswith(b"\x89PNG")
    kind = f"images stored as PNG, were {image_format}"
    assert conversion.events == [annotations.ConversionEvent(kind, "a.jpg")]


@pytest.mark.parametrize("size", [(24, 30), (0, 0), (30, 24)])
def test_rotation_is_applied_to_pixels_and_to_boxes_of_the_stored_frame(tmp_path, size):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # Stored 24 px wide, shown rotated clockwise.
    save(tmp_path, size=(24, 30), exif=exif, quality=95)
    width, height = size
    # Black at the left of the file, so at the top of the upright image.
    box = (0.0, 20.0, 4.0, 10.0) if size == (24, 30) else (0.0, 0.0, 10.0, 4.0)
    annotated = IMAGE._replace(
        width=width, height=height, objects=(BOX._replace(box_xywh=box),)
    )
    conversion, parsed = convert(tmp_path, annotated)
    assert conversion.images[0].objects[0].box_xywh == (0.0, 0.0, 10.0, 4.0)
    assert (conversion.images[0].height, conversion.images[0].width) == (24, 30)
    pixels = tf.io.decode_image(parsed.encoded).numpy()
    assert pixels.shape == (24, 30, 3)
    assert pixels[:2].mean() < 20 and pixels[-2:].mean() > 235
    kinds = {event.kind for event in conversion.events}
    rotated_boxes = (
        {"boxes rotated with their image (EXIF)"} if size == (24, 30) else set()
    )
    assert kinds == {"images turned upright (EXIF)"} | rotated_boxes


def many(folder, count):
    images = []
    for i in range(count):
        save(folder, f"{i}.jpg", size=(30 + i, 24))
        images.append(IMAGE._replace(image_id=i, file_name=f"{i}.jpg", width=30 + i))
    categories = [{"id": i, "name": name} for i, name in NAMES.items()]
    return annotations.AnnotatedSet(images, categories)


def test_files_are_the_same_for_any_number_of_workers(tmp_path):
    annotated = many(tmp_path, 7)
    results = []
    for workers in (1, 4):
        output = tmp_path / str(workers)
        write(annotated, tmp_path, output, num_workers=workers)
        results.append(contents(output))
    assert results[0] == results[1]
    assert sorted(results[0]) == [
        *(record_files.file_name("train", index, 3) for index in range(3)),
        "train.index.json",
    ]


def test_every_image_is_in_one_shard_and_results_keep_the_order(tmp_path):
    annotated = many(tmp_path, 7)
    os.remove(tmp_path / "3.jpg")
    done = []
    conversion = write(
        annotated, tmp_path, tmp_path / "out", progress_fn=lambda: done.append(1)
    )
    kept = [image for image in annotated.images if image.image_id != 3]
    missing = annotations.ConversionEvent("images missing on disk", "3.jpg")
    assert conversion == (kept, [missing])
    assert len(done) == 7
    paths = record_files.find(str(tmp_path / "out"), "train")
    stored = [
        tf_example.parse(s).image_id.numpy() for s in tf.data.TFRecordDataset(paths)
    ]
    assigned = converter.assign_to_shards(annotated.images, 3)
    assert stored == [index for indexes in assigned for index in indexes if index != 3]


def named(names):
    return [IMAGE._replace(file_name=name) for name in names]


def test_the_shard_of_an_image_depends_only_on_the_names():
    names = ["b/1.jpg", "a/1.jpg", "a/2.jpg", "b/2.jpg", "\udce9.jpg"]
    assert converter.assign_to_shards(named(names), 2) == [[3, 1, 4], [2, 0]]
    other = converter.assign_to_shards(named(reversed(names)), 2)
    assert other == [[4 - index for index in shard] for shard in [[3, 1, 4], [2, 0]]]


@pytest.mark.parametrize("num_shards", [1, 7, 64])
def test_each_part_of_a_shard_has_images_of_all_classes(num_shards):
    images = named(f"class_{i // 1000}/{i}.jpg" for i in range(10_000))
    assigned = converter.assign_to_shards(images, num_shards)
    assert sorted(itertools.chain.from_iterable(assigned)) == list(range(10_000))
    sizes = [len(indexes) for indexes in assigned]
    assert max(sizes) - min(sizes) <= 1
    for indexes in assigned:
        parts = np.array_split(np.array(indexes) // 1000, len(indexes) // 100)
        assert min(len(set(part)) for part in parts) >= 9


def test_an_invalid_image_id_is_an_error_before_any_image_is_read(tmp_path):
    annotated = many(tmp_path, 2)
    annotated.images[1] = annotated.images[1]._replace(image_id=10**19)
    with pytest.raises(ValueError, match=r"1\.jpg has the id 10000000000000000000"):
        write(annotated, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failed_conversion_leaves_no_files(tmp_path):
    annotated = many(tmp_path, 3)
    with pytest.raises(ValueError, match=r"None of the 3 images.*0\.jpg"):
        write(annotated, tmp_path / "elsewhere", tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []


def test_an_image_with_more_boxes_than_training_uses_is_counted(tmp_path):
    save(tmp_path)
    conversion, _ = convert(tmp_path, IMAGE._replace(objects=(BOX,) * 101))
    kind = "images with more than 100 boxes"
    assert conversion.events == [annotations.ConversionEvent(kind, "a.jpg", "101")]
    assert conversion.counts[kind] == 1


def test_few_images_are_in_memory_at_any_time(tmp_path, monkeypatch):
    started, convert_fn = [], converter.convert_image

    def spy(image, *arguments):
        started.append(image)
        return convert_fn(image, *arguments)

    monkeypatch.setattr(converter, "convert_image", spy)
    annotated = many(tmp_path, 2)
    images = [annotated.images[i % 2]._replace(image_id=i) for i in range(300)]
    ahead, written = [], itertools.count(1)
    write(
        annotated._replace(images=images),
        tmp_path,
        tmp_path / "out",
        num_workers=2,
        progress_fn=lambda: ahead.append(len(started) - next(written)),
    )
    assert len(ahead) == 300 and max(ahead) <= 2 * 4 + 1
