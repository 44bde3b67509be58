"""Compares task-aligned matches with a plain loop in float64."""

import re
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

import box_formulas
from retinanet_tpu import structures
from retinanet_tpu.boxes import anchors, box_ops, matcher
from retinanet_tpu.learning import aligned_matcher

B, I = structures.BACKGROUND, structures.IGNORE  # noqa: E741
IMAGE_SIZE = HEIGHT, WIDTH = 64, 128
# Areas are exact in float32: anchors that overlap a small object equally do so in the
# plain loop, too.
ANCHORS = anchors.Anchors(
    min_level=3, max_level=4, size=2.0, scales=(1.0, 1.5), aspect_ratios=(0.25, 1.0)
)
GRID = matcher.make_grid(ANCHORS, IMAGE_SIZE)
NUM_CLASSES = 3
NUM_IMAGES, NUM_BOXES = 4, 6


class Case(NamedTuple):
    labels: structures.Labels
    predictions: structures.Predictions


match = aligned_matcher.match_by_task_alignment
compiled_match = tf.function(
    lambda labels, predictions: match(labels, GRID, predictions),
    jit_compile=True,
    autograph=False,
)


def make_predictions(rng, spread=0.3, share_of_far=0.2):
    """Returns random predictions; some boxes are far outside of the image."""
    logits, deltas = [], []
    for size in GRID.sizes:
        shape = NUM_IMAGES, *size, GRID.num_per_cell
        logits.append(rng.normal(-3, 2, (*shape, NUM_CLASSES)))
        offsets = rng.normal(0, spread, (*shape, 4))
        offsets[rng.random(shape) < share_of_far, 0] = 100
        deltas.append(offsets)
    flat = [
        tuple(tf.constant(x.reshape(*x.shape[:3], -1), tf.float32) for x in levels)
        for levels in (logits, deltas)
    ]
    return structures.Predictions(*flat)


def make_case(seed, **kwargs):
    """Returns labels with crowds, padding, equal boxes and very small boxes."""
    rng = np.random.default_rng(seed)
    shape = NUM_IMAGES, NUM_BOXES
    sides = np.exp(rng.uniform(*np.log([12, 60]), (*shape, 2)))
    sides[:, 2] = rng.uniform(1, 4, (NUM_IMAGES, 2))
    corners = rng.uniform(0, 1, sides.shape) * ([HEIGHT, WIDTH] - sides)
    # Between the centers of all cells.
    corners[0, 2] = 24 + rng.uniform(5, 6, 2)
    boxes = np.concatenate([corners, corners + sides], -1)
    classes = rng.integers(0, NUM_CLASSES, shape)
    boxes[:, 4], classes[::2, 4] = boxes[:, 3], classes[::2, 3]
    labels = structures.Labels(
        tf.constant(boxes, tf.float32),
        tf.constant(classes, tf.int32),
        tf.constant(rng.random(shape) < 0.2),
        tf.constant([NUM_BOXES, 5, 0, 3]),
    )
    return Case(labels, make_predictions(rng, **kwargs))


def plain_ious(box, boxes):
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    shared = np.prod(np.maximum(sides, 0), -1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], -1) + np.prod(box[2:] - box[:2])
    return shared / (areas - shared)


def by_anchor(levels, image, depth):
    """Returns float64 [A, depth] of an image, in the order of the grid."""
    rows = []
    for level in levels:
        cells = level[image].numpy().astype(np.float64)
        cells = cells.reshape(-1, GRID.num_per_cell, depth)
        rows.append(cells.swapaxes(0, 1).reshape(-1, depth))
    return np.concatenate(rows)


def plain_match(case, image, num_candidates=13, class_power=1.0, iou_power=6.0):
    """Applies the docstring's rules to one object after the other."""
    labels, predictions = case
    y, x, h, w = np.float64(GRID.boxes_cyxhw).T
    grid = np.stack([y - h / 2, x - w / 2, y + h / 2, x + w / 2], -1)
    dy, dx, dh, dw = by_anchor(predictions.box_outputs, image, 4).T
    py, px, ph, pw = y + dy * h, x + dx * w, h * np.exp(dh), w * np.exp(dw)
    predicted = np.stack([py - ph / 2, px - pw / 2, py + ph / 2, px + pw / 2], -1)
    scores = 1 / (1 + np.exp(-by_anchor(predictions.class_logits, image, NUM_CLASSES)))

    count = int(labels.num_boxes[image])
    is_crowd = labels.is_crowd[image].numpy()
    boxes = labels.boxes_yxyx[image].numpy().astype(np.float64)
    objects = [i for i in range(count) if not is_crowd[i]]
    matches = np.full(len(grid), B)
    for i in np.flatnonzero(is_crowd[:count]):
        shared = np.minimum(grid[:, 2:], boxes[i, 2:])
        shared -= np.maximum(grid[:, :2], boxes[i, :2])
        matches[np.prod(np.maximum(shared, 0), -1) > 0.5 * h * w] = I
    best = np.full(len(grid), -np.inf)
    for i in objects:
        ious, anchor_ious = plain_ious(boxes[i], predicted), plain_ious(boxes[i], grid)
        t = scores[:, int(labels.classes[image, i])] ** class_power * ious**iou_power
        is_inside = (boxes[i, 0] < y) & (y < boxes[i, 2])
        is_inside &= (boxes[i, 1] < x) & (x < boxes[i, 3])
        order = np.lexsort([-anchor_ious * (t == 0), -t, ~is_inside])
        for a in order[: min(num_candidates, is_inside.sum())]:
            quality = ious[a] if ious[a] > 0 else anchor_ious[a] - 1
            if quality > best[a]:
                matches[a], best[a] = i, quality
    for i in reversed([i for i in objects if i not in matches]):
        matches[np.argmax(plain_ious(boxes[i], grid))] = i
    return matches


@pytest.mark.parametrize("seed", range(6))
def test_matches_agree_with_a_plain_loop(seed):
    case = make_case(seed, share_of_far=[0.0, 0.2, 0.9][seed % 3])
    expected = [plain_match(case, image) for image in range(NUM_IMAGES)]
    np.testing.assert_array_equal(match(case.labels, GRID, case.predictions), expected)
    np.testing.assert_array_equal(compiled_match(*case), expected)
    assert {B, 0, 1, 2, 3} <= set(np.ravel(expected))


@pytest.mark.parametrize(
    "settings",
    [
        {"num_candidates": 1, "class_power": 1.0, "iou_power": 1.0},
        {"num_candidates": 4, "class_power": 0.0, "iou_power": 2.0},
        {"num_candidates": 4, "class_power": 0.5, "iou_power": 0.0},
        {"num_candidates": 99, "class_power": 1.0, "iou_power": 6.0},
    ],
)
def test_settings_agree_with_a_plain_loop(settings):
    case = make_case(7)
    expected = [plain_match(case, image, **settings) for image in range(NUM_IMAGES)]
    actual = match(case.labels, GRID, case.predictions, **settings)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("coder", [*box_formulas.CODERS.values()][1:])
def test_predicted_boxes_are_those_of_the_representation(coder):
    labels, predictions = make_case(9)
    rng = np.random.default_rng(9)
    shape = NUM_IMAGES, sum(GRID.lengths), coder.num_channels
    outputs = np.float32(rng.normal(0, 0.3, shape))  # In the order of the grid.
    boxes_yxyx = box_formulas.boxes(coder, outputs, GRID.boxes_cyxhw).numpy()
    cyxhw, anchors_cyxhw = box_ops.yxyx_to_cyxhw(boxes_yxyx), GRID.boxes_cyxhw
    offsets = GRID.box_coder.encode(
        tf.unstack(cyxhw, axis=-1), np.float64(anchors_cyxhw).T
    )

    def by_level(values):
        """Returns [B, H_l, W_l, A * C] for each level."""
        parts = np.split(np.float32(values), np.cumsum(GRID.lengths)[:-1], axis=1)
        cells = [
            x.reshape(NUM_IMAGES, GRID.num_per_cell, *size, -1).transpose(0, 2, 3, 1, 4)
            for x, size in zip(parts, GRID.sizes, strict=True)
        ]
        return tuple(tf.constant(x.reshape(*x.shape[:3], -1)) for x in cells)

    matches = [
        match(labels, grid, predictions._replace(box_outputs=by_level(values)))
        for grid, values in (
            (GRID._replace(box_coder=coder), outputs),
            (GRID, np.stack(offsets, -1)),
        )
    ]
    np.testing.assert_array_equal(*matches)
    assert len(np.unique(matches[0])) > 3


def test_half_precision_predictions_are_those_rounded():
    case = make_case(8)
    half = tf.nest.map_structure(lambda x: tf.cast(x, tf.bfloat16), case.predictions)
    rounded = tf.nest.map_structure(lambda x: tf.cast(x, tf.float32), half)
    np.testing.assert_array_equal(
        match(case.labels, GRID, half), match(case.labels, GRID, rounded)
    )


def test_every_object_has_an_anchor():
    case = make_case(9)
    matches = match(case.labels, GRID, case.predictions).numpy()
    labels = case.labels
    for image, count in enumerate(labels.num_boxes.numpy()):
        is_object = ~labels.is_crowd[image].numpy() & (np.arange(NUM_BOXES) < count)
        assert set(matches[image]) - {B, I} == set(np.flatnonzero(is_object))


def test_background_in_crowds_is_ignored_and_padding_is_never_matched():
    labels, predictions = make_case(14)
    boxes = np.tile(np.float32([[0, 0, 64, 64], [8, 72, 56, 120]]), (NUM_IMAGES, 1, 1))
    labels = structures.Labels(
        tf.constant(boxes),
        tf.zeros([NUM_IMAGES, 2], tf.int32),
        tf.constant([[True, False]] * 3 + [[False, False]]),
        tf.constant([1, 2, 0, 2]),
    )
    matches = match(labels, GRID, predictions).numpy()
    expected = [{I, B}, {I, B, 1}, {B}, {B, 0, 1}]
    assert [set(image) for image in matches] == expected
    is_small = GRID.boxes_cyxhw[:, 2:].max(1) <= 16
    is_left = (GRID.boxes_cyxhw[:, :2] > 8).all(1) & (GRID.boxes_cyxhw[:, 1] < 56)
    assert (matches[:2, is_small & is_left] == I).all()


def test_an_object_has_at_most_the_candidates_inside_it():
    case = make_case(10)
    matches = match(case.labels, GRID, case.predictions, num_candidates=5).numpy()
    y, x = GRID.boxes_cyxhw[:, :2].T
    for image in range(NUM_IMAGES):
        for i in set(matches[image]) - {B, I}:
            ymin, xmin, ymax, xmax = case.labels.boxes_yxyx[image, i].numpy()
            is_inside = (ymin < y) & (y < ymax) & (xmin < x) & (x < xmax)
            is_matched = matches[image] == i
            assert is_matched.sum() <= 5
            assert is_inside[is_matched].all() or is_matched.sum() == 1


@pytest.mark.parametrize("value", [100.0, np.nan])
def test_anchors_decide_where_no_predicted_box_overlaps(value):
    labels, predictions = make_case(11)
    far = predictions._replace(
        box_outputs=tuple(tf.fill(x.shape, value) for x in predictions.box_outputs)
    )
    np.testing.assert_array_equal(match(labels, GRID, far), match(labels, GRID))


def test_no_predictions_are_those_of_an_untrained_network():
    labels, predictions = make_case(12)
    untrained = tf.nest.map_structure(tf.zeros_like, predictions)
    np.testing.assert_array_equal(match(labels, GRID), match(labels, GRID, untrained))


def test_the_score_of_the_class_of_the_object_decides():
    predictions = make_case(13).predictions
    one = structures.Labels(
        tf.constant([[[8, 40, 56, 88.0]]]),
        tf.constant([[2]]),
        tf.constant([[False]]),
        tf.constant([1]),
    )
    logits = [np.zeros([1, *x.shape[1:]], np.float32) for x in predictions.class_logits]
    deltas = tuple(tf.zeros([1, *x.shape[1:]]) for x in predictions.box_outputs)

    def chosen(anchor, class_index):
        """Returns whether a raised score makes an anchor of cell (3, 7) of P3 win."""
        raised = [x.copy() for x in logits]
        raised[0][0, 3, 7, anchor * NUM_CLASSES + class_index] = 9
        predicted = structures.Predictions(tuple(map(tf.constant, raised)), deltas)
        matches = match(one, GRID, predicted, num_candidates=1, iou_power=0.0)
        rows, columns = GRID.sizes[0]
        return matches[0, (anchor * rows + 3) * columns + 7] == 0

    assert all(chosen(anchor, 2) for anchor in range(GRID.num_per_cell))
    assert not chosen(0, 0) and not chosen(1, 1)


def test_no_matrix_of_numbers_has_the_anchors_of_all_levels():
    case = make_case(0)
    hlo = compiled_match.experimental_get_compiler_ir(*case)(stage="optimized_hlo")
    # Results of instructions outside of fusions are buffers. Masks may be written.
    sizes = [
        np.prod([int(d) for d in shape.split(",")])
        for block in hlo.split("\n\n")
        if not block.lstrip().startswith("%fused") and "ENTRY" in block
        for shape in re.findall(r"= \(?[fs]32\[([\d,]+)\]", block)
    ]
    finest = GRID.lengths[0] * NUM_IMAGES * NUM_BOXES
    assert finest in sizes
    assert max(sizes) < sum(GRID.lengths) * NUM_IMAGES * NUM_BOXES


def test_boxes_that_share_all_anchors_are_all_matched():
    boxes = tf.constant([[[10, 10, 50, 60.0]] * 2])
    labels = structures.Labels(
        boxes, tf.zeros([1, 2], tf.int32), tf.fill([1, 2], False), tf.constant([2])
    )
    matches = match(labels, GRID).numpy()[0]
    assert (matches == 0).sum() == 12
    ious = box_ops.iou(boxes[0, :1], GRID.boxes_yxyx)[0].numpy()
    assert np.flatnonzero(matches == 1).tolist() == [np.argmax(ious)]
