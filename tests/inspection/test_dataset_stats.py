import json

import numpy as np
import pytest

import edited_records
import toy_data
from retinanet_tpu.data import category_map
from retinanet_tpu.inspection import dataset_stats

CATEGORIES = category_map.from_coco(toy_data.CATEGORIES)


@pytest.fixture
def data_dir(tmp_path):
    return toy_data.write(tmp_path / "data")


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """A data directory that no test changes, and its annotations to train on."""
    folder = toy_data.write(tmp_path_factory.mktemp("data"))
    with open(f"{folder}/train.json") as file:
        return folder, json.load(file)


def read(data_dir, split="train", **options):
    return dataset_stats.read(data_dir, split, CATEGORIES, **options)


def test_measures_are_those_of_the_annotation_file(valid):
    data_dir, truth = valid
    split = read(data_dir)
    images = {image["id"]: image for image in truth["images"]}
    assert sorted(split.image_ids.tolist()) == sorted(images)
    assert len(split.boxes_yxyx) == len(truth["annotations"])
    for index, image_id in enumerate(split.image_ids):
        image = images[image_id]
        assert split.image_sizes[index].tolist() == [image["height"], image["width"]]
        assert split.file_names[index] == image["file_name"]
        expected = [a for a in truth["annotations"] if a["image_id"] == image_id]
        is_here = split.images == index
        assert split.boxes_per_image[index] == len(expected) == is_here.sum()
        x, y, w, h = np.transpose([a["bbox"] for a in expected])
        np.testing.assert_allclose(
            split.boxes_yxyx[is_here], np.stack([y, x, y + h, x + w], -1), atol=1e-3
        )
        ids = [a["category_id"] for a in expected]
        assert split.category_ids[is_here].tolist() == ids
    assert split.is_usable.all() and not split.is_outside.any()


def test_classes_are_counted_by_box_and_by_image(valid):
    data_dir, truth = valid
    counts = dataset_stats.class_counts(read(data_dir), CATEGORIES)
    for category in CATEGORIES.categories:
        of_class = [
            a["image_id"]
            for a in truth["annotations"]
            if a["category_id"] == category.id
        ]
        expected = [len(of_class), len(set(of_class))]
        assert counts[category.index].tolist() == expected


def test_a_sample_reads_from_all_files(valid):
    data_dir, _ = valid
    sample = read(data_dir, num_images=4)
    whole = read(data_dir)
    assert len(sample.image_ids) == 4
    # Two files, half of the images each.
    indices = [whole.image_ids.tolist().index(i) for i in sample.image_ids]
    assert min(indices) < 6 <= max(indices)


def test_boxes_over_the_edge_and_boxes_without_a_pixel_differ(data_dir):
    def edit(number, features):
        if number < 2:
            edited_records.add_to_boxes([2.0, -0.45][number])(number, features)
        if number == 2:  # Corners in the wrong order.
            for side in "yx":
                low, high = (
                    features[f"{edited_records.BOX}{side}{end}"].float_list
                    for end in ("min", "max")
                )
                low.value[:], high.value[:] = list(high.value), list(low.value)
        if number == 3:
            values = features[f"{edited_records.BOX}ymin"].float_list.value
            values[:] = [np.nan] * len(values)

    edited_records.edit(data_dir, "train", edit)
    split = read(data_dir)
    assert not split.is_usable[np.isin(split.images, [0, 2, 3])].any()
    assert split.is_outside[split.images == 1].any()
    assert split.is_usable[split.images > 3].all()
    assert not split.is_outside[split.images > 3].any()


def test_sizes_are_those_of_coco():
    sides = np.array([31.9, 32, 95.9, 96], np.float32)
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], axis=-1)
    split = dataset_stats.Split("x", *[None] * 4, boxes, *[None] * 3)
    assert split.size_indexes.tolist() == [0, 1, 1, 2]


def test_equal_files_are_detected_under_other_names(data_dir):
    train, val = read(data_dir), read(data_dir, "val")
    assert not dataset_stats.duplicates(train)
    assert not len(dataset_stats.shared_images(train, val))
    encoded = []

    def copy_first(number, features):
        value = features["image/encoded"].bytes_list.value
        encoded.append(value[0])
        if number == 3:
            value[0] = encoded[0]

    def copy_to_val(number, features):
        if number == 1:
            features["image/encoded"].bytes_list.value[0] = encoded[5]

    edited_records.edit(data_dir, "train", copy_first)
    edited_records.edit(data_dir, "val", copy_to_val)
    train, val = read(data_dir), read(data_dir, "val")
    assert dataset_stats.duplicates(train) == [[0, 3]]
    assert dataset_stats.shared_images(train, val).tolist() == [1]


def test_has_object_ignores_crowds(data_dir):
    assert dataset_stats.has_object(data_dir, "train", [3])
    assert not dataset_stats.has_object(data_dir, "train", [4])

    def crowd(_, features):
        values = features["image/object/is_crowd"].int64_list.value
        values[:] = [1] * len(values)

    edited_records.edit(data_dir, "train", crowd)
    assert not dataset_stats.has_object(data_dir, "train", [3, 7])


def test_a_split_without_boxes_can_be_measured(data_dir):
    edited_records.edit(data_dir, "train", edited_records.clear_boxes)
    split = read(data_dir)
    assert split.boxes_per_image.tolist() == [0] * toy_data.NUM_TRAIN
    assert split.boxes_yxyx.shape == (0, 4) and split.sides.shape == (0, 2)
    assert dataset_stats.class_counts(split, CATEGORIES).tolist() == [[0, 0], [0, 0]]


def test_a_damaged_record_is_named(data_dir):
    def break_second(number, features):
        if number == 1:
            features["image/source_id"].bytes_list.value[0] = b"seven"

    edited_records.edit(data_dir, "train", break_second)
    with pytest.raises(ValueError, match=r"Record 1 of .*seven"):
        read(data_dir)


def test_a_picture_is_recognized_by_name_size_and_boxes(valid):
    data_dir, truth = valid
    annotated = dataset_stats.annotated_images(f"{data_dir}/train.json")
    assert sorted(annotated.values()) == sorted(i["id"] for i in truth["images"])
    val = dataset_stats.annotated_images(f"{data_dir}/val.json")
    assert not set(annotated) & set(val)


@pytest.mark.parametrize(
    ("text", "pattern"), [("{", "JSON"), ('{"images": []}', "lacks")]
)
def test_a_file_of_another_format_is_refused(tmp_path, text, pattern):
    path = tmp_path / "val.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=pattern):
        dataset_stats.read_annotations(str(path))
