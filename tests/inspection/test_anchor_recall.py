import numpy as np
import pytest
import tensorflow as tf

import toy_data
from retinanet_tpu import structures
from retinanet_tpu.boxes import box_ops
from retinanet_tpu.data import category_map, examples, pipeline
from retinanet_tpu.inspection import anchor_recall, anchor_search, dataset_stats

CATEGORIES = category_map.from_coco(toy_data.CATEGORIES)
IMAGE_SIZE = (128, 192)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return toy_data.write(tmp_path_factory.mktemp("data"))


def sides(boxes):
    values = np.asarray(boxes[:, 2:] - boxes[:, :2])
    return values[np.lexsort(values.T)]


@pytest.mark.long
def test_whole_images_have_the_boxes_of_the_evaluation_input(data_dir):
    split = dataset_stats.read(data_dir, "val", CATEGORIES)
    augmented = anchor_recall.augment_boxes(split, examples.OutputSpec(IMAGE_SIZE, 8))
    spec = pipeline.DatasetSpec(data_dir, "val", CATEGORIES, IMAGE_SIZE, max_boxes=8)
    batches = pipeline.make_eval_dataset(spec, batch_size=toy_data.NUM_VAL)
    _, labels = next(iter(batches))
    expected = np.concatenate(
        [labels.boxes_yxyx[i, : labels.num_boxes[i]] for i in range(toy_data.NUM_VAL)]
    )
    np.testing.assert_allclose(augmented.boxes_yxyx, expected, atol=1e-3)
    assert augmented.box_indices.tolist() == list(range(len(expected)))


@pytest.mark.long
def test_augmented_boxes_are_distributed_as_in_the_training_input(data_dir):
    split = dataset_stats.read(data_dir, "train", CATEGORIES)
    output = examples.OutputSpec(IMAGE_SIZE, 2)
    jitter = examples.Augmentation(scale_jitter=(0.5, 2.0), horizontal_flip=False)
    augmented = anchor_recall.augment_boxes(
        split, output, augmentation=jitter, passes=40, seed=1
    )
    spec = pipeline.DatasetSpec(data_dir, "train", CATEGORIES, IMAGE_SIZE, max_boxes=2)
    dataset = pipeline.make_train_dataset(
        spec, batch_size=toy_data.NUM_TRAIN * 40, augmentation=jitter
    )
    _, labels = next(iter(dataset))
    is_valid = tf.sequence_mask(labels.num_boxes, 2)
    expected = tf.boolean_mask(labels.boxes_yxyx, is_valid).numpy()
    # Other random numbers, the same distribution.
    assert len(augmented.boxes_yxyx) == pytest.approx(len(expected), rel=0.1)
    for share in (0.1, 0.5, 0.9):
        np.testing.assert_allclose(
            np.quantile(sides(augmented.boxes_yxyx), share, axis=0),
            np.quantile(sides(expected), share, axis=0),
            rtol=0.15,
        )


def test_crowds_and_boxes_beyond_max_boxes_are_left_out(data_dir):
    split = dataset_stats.read(data_dir, "train", CATEGORIES)
    is_crowd = split.images == 0
    augmented = anchor_recall.augment_boxes(
        split._replace(is_crowd=is_crowd), examples.OutputSpec(IMAGE_SIZE, 1)
    )
    assert len(augmented.box_indices) == toy_data.NUM_TRAIN - 1
    assert not is_crowd[augmented.box_indices].any()


def test_sizes_are_those_of_the_annotated_image(data_dir):
    split = dataset_stats.read(data_dir, "train", CATEGORIES)
    augmented = anchor_recall.augment_boxes(split, examples.OutputSpec((512, 512), 8))
    ious = np.linspace(0, 1, len(augmented.box_indices))
    coverages = anchor_recall.by_size(ious, augmented, split)
    areas = split.sides.prod(axis=-1)[augmented.box_indices]
    assert coverages["small"] == anchor_search.coverage(ious[areas < 32**2])
    assert coverages["medium"] == anchor_search.coverage(ious[areas >= 32**2])
    assert coverages["large"].num_boxes == 0 < coverages["medium"].num_boxes
    assert coverages["all"] == anchor_search.coverage(ious)


def test_assigned_anchors_are_those_of_assign_fn(data_dir):
    run = toy_data.make_run(None, data_dir, "match_by_iou.negative_iou_threshold = 0.4")
    recipe = run.recipe
    boxes = np.zeros([2, 4, 4], np.float32)
    boxes[0, :2] = [[8, 8, 40, 40], [60, 50, 100, 120]]
    labels = structures.Labels(
        tf.constant(boxes),
        tf.zeros([2, 4], tf.int32),
        tf.zeros([2, 4], tf.bool),
        tf.constant([2, 0]),
    )
    first, empty = anchor_recall.assigned_anchors(
        recipe.assign(labels),
        anchors=recipe.anchors,
        image_size=recipe.image_size,
    )
    grid = np.concatenate(recipe.anchors.boxes_cyxhw(recipe.image_size))
    ious = box_ops.iou(box_ops.cyxhw_to_yxyx(grid), boxes[0, :2]).numpy()
    is_positive = (ious.max(axis=-1) >= 0.5) | (ious == ious.max(axis=0)).any(axis=-1)
    expected = box_ops.cyxhw_to_yxyx(grid[is_positive]).numpy()
    np.testing.assert_allclose(first.anchors_yxyx, expected, atol=1e-4)
    assert first.box_indices.tolist() == ious[is_positive].argmax(axis=-1).tolist()
    is_ignored = (ious.max(axis=-1) >= 0.4) & ~is_positive
    assert first.num_ignored == is_ignored.sum() > 0
    assert len(empty.anchors_yxyx) == len(empty.box_indices) == empty.num_ignored == 0
