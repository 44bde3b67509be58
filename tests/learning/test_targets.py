import numpy as np
import pytest
import tensorflow as tf

import box_formulas
from retinanet_tpu import structures
from retinanet_tpu.boxes import adaptive_matcher, anchors, matcher
from retinanet_tpu.learning import (
    aligned_matcher,
    box_losses,
    class_losses,
    losses,
    targets,
)

CODERS = box_formulas.CODERS
IMAGE_SIZE = 64, 128
ANCHORS = anchors.Anchors(min_level=4, max_level=6)


def make_labels(seed=0, num_images=3, num_boxes=5):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 40, (num_images, num_boxes, 2))
    sizes = rng.uniform(16, 60, (num_images, num_boxes, 2))
    return structures.Labels(
        tf.constant(np.concatenate([corners, corners + sizes], -1), tf.float32),
        tf.constant(rng.integers(0, 90, (num_images, num_boxes)), tf.int32),
        tf.constant(rng.random((num_images, num_boxes)) < 0.2),
        tf.constant([num_boxes, 0, 2]),
    )


def by_anchor(assigned):
    """Returns classes [B, n] and values [B, n, 4], in the order of the anchors."""
    classes = [by_cell(level) for level in assigned.classes]
    values = [np.reshape(level, [3, -1, 4]) for level in assigned.box_values]
    return np.concatenate(classes, 1), np.concatenate(values, 1)


def by_cell(maps):
    return np.moveaxis(maps, 1, -1).reshape(3, -1)


def split(matches):
    """Returns [B, A, H_l, W_l] of each level from [B, all anchors]."""
    grid = matcher.make_grid(ANCHORS, IMAGE_SIZE)
    levels = tf.split(matches, grid.lengths, axis=1)
    return [np.reshape(x, [3, 9, *s]) for x, s in zip(levels, grid.sizes, strict=True)]


@pytest.mark.parametrize(
    ("match_fn", "coder"),
    [
        (matcher.match_by_iou, CODERS["offsets"]),
        (adaptive_matcher.match_by_atss, CODERS["distances"]),
        (aligned_matcher.match_by_task_alignment, CODERS["distributions"]),
    ],
)
def test_targets_contain_class_and_box_of_the_match(match_fn, coder):
    labels = make_labels()
    assigned = tf.function(targets.assign_targets, jit_compile=True, autograph=False)(
        labels,
        anchors.Anchors(min_level=4, max_level=6, box_coder=coder),
        IMAGE_SIZE,
        match_fn=match_fn,
    )
    anchors_cyxhw = np.concatenate(ANCHORS.boxes_cyxhw(IMAGE_SIZE))
    maps = match_fn(labels, matcher.make_grid(ANCHORS, IMAGE_SIZE))
    matches = np.concatenate([by_cell(x) for x in split(maps)], axis=1)
    classes, values = by_anchor(assigned)
    decoded = box_formulas.decode(coder, values, anchors_cyxhw).numpy()
    for image in range(3):
        for anchor, match in enumerate(matches[image]):
            if match < 0:
                assert classes[image, anchor] == match
                assert not values[image, anchor].any()
            else:
                assert classes[image, anchor] == labels.classes[image, match]
                np.testing.assert_allclose(
                    decoded[image, anchor], labels.boxes_yxyx[image, match], atol=1e-3
                )
    assert assigned.num_positives.numpy() == (matches >= 0).sum() > 5


def make_predictions(num_classes=90):
    """Returns random predictions for `make_labels`."""
    rng = np.random.default_rng(1)
    sizes = matcher.make_grid(ANCHORS, IMAGE_SIZE).sizes

    def levels(depth):
        arrays = [rng.normal(0, 0.3, (3, *size, depth)) for size in sizes]
        return tuple(tf.constant(x, tf.float32) for x in arrays)

    return structures.Predictions(levels(9 * num_classes), levels(9 * 4))


def test_predictions_are_those_that_the_match_function_reads():
    labels, predictions = make_labels(), make_predictions()
    assigned = targets.assign_targets(
        labels,
        ANCHORS,
        IMAGE_SIZE,
        match_fn=aligned_matcher.match_by_task_alignment,
        predictions=predictions,
    )
    grid = matcher.make_grid(ANCHORS, IMAGE_SIZE)
    matches = aligned_matcher.match_by_task_alignment(labels, grid, predictions)
    np.testing.assert_array_equal(assigned.matches, matches)
    untrained = aligned_matcher.match_by_task_alignment(labels, grid)
    assert (matches != untrained).numpy().any()


def test_the_assignment_has_no_gradient():
    labels, predictions = make_labels(), make_predictions()

    def assign():
        return targets.assign_targets(
            labels,
            ANCHORS,
            IMAGE_SIZE,
            match_fn=aligned_matcher.match_by_task_alignment,
            predictions=predictions,
        )

    def gradients(assigned):
        """Returns the gradients of the loss; assigned is targets, or makes them."""
        with tf.GradientTape() as tape:
            tape.watch(predictions)
            result = assigned() if callable(assigned) else assigned
            loss = losses.detection_losses(
                predictions,
                result,
                ANCHORS,
                normalizer=losses.loss_normalizer(result.num_positives),
                class_loss_fn=class_losses.quality_focal_loss,
                box_loss_fn=box_losses.giou_loss,
            )
        return tf.nest.flatten(tape.gradient(loss.weighted_loss, predictions))

    got, expected = gradients(assign), gradients(assign())
    assert sum(np.any(gradient) for gradient in expected) > len(expected) / 2
    for gradient, value in zip(got, expected, strict=True):
        np.testing.assert_array_equal(gradient, value)


def test_values_have_the_layout_of_predictions_and_classes_one_map_per_anchor():
    assigned = targets.assign_targets(make_labels(), ANCHORS, IMAGE_SIZE)
    grids = [(4, 8), (2, 4), (1, 2)]
    assert [level.shape for level in assigned.classes] == [(3, 9, *g) for g in grids]
    assert [level.shape for level in assigned.box_values] == [
        (3, *g, 36) for g in grids
    ]


def test_matches_are_those_of_the_maps():
    labels = make_labels()
    assigned = targets.assign_targets(labels, ANCHORS, IMAGE_SIZE)
    matches = assigned.matches.numpy()
    classes = np.concatenate([np.reshape(x, [3, -1]) for x in assigned.classes], 1)
    is_positive = matches >= 0
    np.testing.assert_array_equal(matches[~is_positive], classes[~is_positive])
    images, _ = np.nonzero(is_positive)
    matched_classes = labels.classes.numpy()[images, matches[is_positive]]
    np.testing.assert_array_equal(matched_classes, classes[is_positive])


def test_a_box_equal_to_an_anchor_is_the_target_of_its_cell():
    small = anchors.Anchors(
        min_level=4, max_level=5, scales=(1,), aspect_ratios=(1, 2), size=1.0
    )
    labels = structures.Labels(
        tf.constant([[[32, 64, 64, 96.0]]]),
        tf.constant([[7]]),
        tf.constant([[False]]),
        tf.constant([1]),
    )
    assigned = targets.assign_targets(labels, small, IMAGE_SIZE)
    positives = np.argwhere(assigned.classes[1].numpy() >= 0).tolist()
    assert [0, 0, 1, 2] in positives
    assert assigned.classes[1][0, 0, 1, 2] == 7
    np.testing.assert_array_equal(assigned.box_values[1][0, 1, 2, :4], [0, 0, 0, 0])


def test_padding_images_are_ignored_everywhere():
    labels = make_labels()
    is_valid = tf.constant([False, True, True])
    assigned = targets.assign_targets(labels, ANCHORS, IMAGE_SIZE, is_valid=is_valid)
    all_valid = targets.assign_targets(labels, ANCHORS, IMAGE_SIZE)
    (classes, values), (all_classes, _) = by_anchor(assigned), by_anchor(all_valid)
    assert (classes[0] == structures.IGNORE).all()
    np.testing.assert_array_equal(classes[1:], all_classes[1:])
    assert not values[0].any()
    assert assigned.num_positives.numpy() == (all_classes[1:] >= 0).sum()


@pytest.mark.parametrize("num_boxes", [0, 3])
def test_targets_of_any_number_of_boxes_are_finite(num_boxes):
    labels = make_labels()._replace(num_boxes=tf.fill([3], num_boxes))
    assigned = targets.assign_targets(labels, ANCHORS, IMAGE_SIZE)
    assert np.isfinite(by_anchor(assigned)[1]).all()
    assert (assigned.num_positives.numpy() > 0) == (num_boxes > 0)
