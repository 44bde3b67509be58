import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import structures
from retinanet_tpu.boxes import adaptive_matcher, anchors, matcher

B, I = structures.BACKGROUND, structures.IGNORE  # noqa: E741
HEIGHT, WIDTH = 128, 256
NINE_PER_CELL = anchors.Anchors(min_level=3, max_level=7, size=2.0)
# Powers of two: float32 is exact, so distances and overlaps can be equal.
ONE_PER_CELL = anchors.Anchors(
    min_level=3, max_level=6, size=2.0, scales=(1,), aspect_ratios=(1,)
)


def make_labels(boxes_yxyx, is_crowd=None):
    boxes = np.float32(boxes_yxyx)
    shape = boxes.shape[:2]
    return structures.Labels(
        tf.constant(boxes),
        tf.zeros(shape, tf.int32),
        tf.constant(np.zeros(shape, bool) if is_crowd is None else is_crowd),
        tf.fill(shape[:1], shape[1]),
    )


def plain_ious(box, boxes):
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    shared = np.prod(np.maximum(sides, 0), -1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], -1) + np.prod(box[2:] - box[:2])
    return shared / (areas - shared)


def plain_match(image, grid, num_cells=9):
    """Applies algorithm 1 of the paper to one box after the other, in float64."""
    cyxhw = np.float64(grid.boxes_cyxhw)
    centers, half = cyxhw[:, :2], cyxhw[:, 2:] / 2
    boxes = np.concatenate([centers - half, centers + half], 1)
    level_of = np.repeat(np.arange(len(grid.sizes)), grid.lengths)
    matches, best = np.full(len(boxes), B), np.zeros(len(boxes))
    for i, box in enumerate(np.float64(image)):
        distances = np.sum((centers - (box[:2] + box[2:]) / 2) ** 2, 1)
        is_candidate = np.zeros(len(boxes), bool)
        for level in range(len(grid.sizes)):
            on_level = level_of == level
            cells = np.sort(distances[on_level])[:: grid.num_per_cell]
            radius = cells[:num_cells][-1] * (1 + 1e-5)
            is_candidate |= on_level & (distances <= radius)
        ious = plain_ious(box, boxes)
        threshold = np.mean(ious[is_candidate]) + np.std(ious[is_candidate], ddof=1)
        is_inside = ((centers > box[:2]) & (centers < box[2:])).all(1)
        wins = is_candidate & is_inside & (ious >= threshold) & (ious > best)
        matches[wins], best[wins] = i, ious[wins]
    for i in reversed(range(len(image))):
        ious = plain_ious(np.float64(image[i]), boxes)
        matches[np.argmax(ious)] = i
    return matches


def assert_equal(actual, image, grid, num_cells=9):
    """Compares matches with those of `plain_match`.

    Of two anchors that overlap equally, either may be the best one of an object.
    """
    is_best = np.zeros(len(actual), bool)
    for box in image:
        ious = plain_ious(np.float64(box), np.float64(grid.boxes_yxyx))
        is_best |= ious > ious.max() - 1e-6
    expected = plain_match(image, grid, num_cells)
    np.testing.assert_array_equal(actual[~is_best], expected[~is_best])
    assert np.mean(is_best) < 0.1


def random_boxes(seed, shortest=24, longest=120, multiple=None):
    rng = np.random.default_rng(seed)
    sides = np.exp(rng.uniform(*np.log([shortest, longest]), (3, 6, 2)))
    start = rng.uniform(0, 1, sides.shape) * ([HEIGHT, WIDTH] - sides)
    if multiple:
        start, sides = (multiple * np.round(x / multiple) for x in (start, sides))
    return np.float32(np.concatenate([start, start + sides], -1))


@pytest.mark.parametrize("num_cells", [1, 4, 9])
@pytest.mark.parametrize("seed", range(4))
def test_matches_agree_with_a_plain_loop(seed, num_cells):
    boxes = random_boxes(seed)
    grid = matcher.make_grid(NINE_PER_CELL, (HEIGHT, WIDTH))
    matches = adaptive_matcher.match_by_atss(
        make_labels(boxes), grid, num_cells=num_cells
    )
    for image, actual in zip(boxes, matches.numpy(), strict=True):
        assert_equal(actual, image, grid, num_cells)
    assert np.sum(matches >= 0) >= 3 * 6 * 2


@pytest.mark.parametrize("multiple", [8, 4])
@pytest.mark.parametrize("seed", range(4))
def test_cells_at_the_same_distance_are_all_candidates(seed, multiple):
    boxes = random_boxes(seed, shortest=16, multiple=multiple)
    grid = matcher.make_grid(ONE_PER_CELL, (HEIGHT, WIDTH))
    matches = adaptive_matcher.match_by_atss(make_labels(boxes), grid).numpy()
    for image, actual in zip(boxes, matches, strict=True):
        assert_equal(actual, image, grid)


@pytest.mark.parametrize("corner", [(0, 0), (0, WIDTH), (HEIGHT, 0), (HEIGHT, WIDTH)])
def test_candidates_at_corners_are_the_nearest_cells_of_the_image(corner):
    center = np.clip(corner, 12, [HEIGHT - 12, WIDTH - 12])
    for offset in np.random.default_rng(0).uniform(-8, 8, (8, 2)):
        y, x = np.clip(center + offset, 0.5, [HEIGHT - 0.5, WIDTH - 0.5])
        boxes = np.float32([[[y - 40, x - 30, y + 40, x + 30]]])
        grid = matcher.make_grid(NINE_PER_CELL, (HEIGHT, WIDTH))
        matches = adaptive_matcher.match_by_atss(make_labels(boxes), grid)
        assert_equal(matches[0].numpy(), boxes[0], grid)


def test_every_object_has_an_anchor():
    boxes = random_boxes(5, shortest=1, longest=6)
    grid = matcher.make_grid(NINE_PER_CELL, (HEIGHT, WIDTH))
    matches = adaptive_matcher.match_by_atss(make_labels(boxes), grid).numpy()
    # Objects may share their best anchor.
    assert all(len(set(image) - {B}) >= 4 for image in matches)


def test_crowds_are_never_matched_and_background_inside_is_ignored():
    boxes = np.float32([[[0, 0, 128, 128], [20, 150, 80, 220]]])
    labels = make_labels(boxes, np.array([[True, False]]))
    grid = matcher.make_grid(NINE_PER_CELL, (HEIGHT, WIDTH))
    matches = adaptive_matcher.match_by_atss(labels, grid).numpy()[0]
    centers = grid.boxes_cyxhw[:, :2]
    is_small = grid.boxes_cyxhw[:, 2:].max(1) < 32
    inside = is_small & (centers > 16).all(1) & (centers < 100).all(1)
    assert set(matches[inside]) == {I}
    assert set(matches[centers[:, 1] > 140]) == {B, 1}


def test_padding_is_never_matched():
    labels = make_labels(random_boxes(6))._replace(num_boxes=tf.zeros([3], tf.int32))
    grid = matcher.make_grid(NINE_PER_CELL, (HEIGHT, WIDTH))
    assert np.all(adaptive_matcher.match_by_atss(labels, grid) == B)
