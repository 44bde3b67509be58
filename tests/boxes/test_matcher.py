import re

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import structures
from retinanet_tpu.boxes import adaptive_matcher, anchors, box_ops, matcher
from retinanet_tpu.boxes.box_coder import AnchorOffsets

B, I = structures.BACKGROUND, structures.IGNORE  # noqa: E741
GRID = matcher.make_grid(anchors.Anchors(min_level=4, max_level=6), (128, 128))
MATCH_FNS = [matcher.match_by_iou, adaptive_matcher.match_by_atss]


def make_labels(images, num_padded=6):
    """Returns padded lists of (ymin, xmin, ymax, xmax, is_crowd)."""
    # The padding has a size: it must not match all the same.
    boxes = np.tile(np.float32([0, 0, 64, 64]), (len(images), num_padded, 1))
    is_crowd = np.zeros((len(images), num_padded), bool)
    for i, image in enumerate(images):
        for j, (*box, crowd) in enumerate(image):
            boxes[i, j], is_crowd[i, j] = box, crowd
    return structures.Labels(
        tf.constant(boxes),
        tf.zeros(is_crowd.shape, tf.int32),
        tf.constant(is_crowd),
        tf.constant([len(image) for image in images], tf.int32),
    )


def make_grid(anchors_yxyx):
    """Returns anchors that are no grid; only their boxes count."""
    cyxhw = box_ops.yxyx_to_cyxhw(tf.constant(anchors_yxyx, tf.float32)).numpy()
    return matcher.AnchorGrid(cyxhw, ((len(cyxhw), 1),), 1, AnchorOffsets())


def match(labels, anchors_yxyx, **kwargs):
    return matcher.match_by_iou(labels, make_grid(anchors_yxyx), **kwargs)


def plain_iou(a, b):
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = np.prod(np.maximum(sides, 0))
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared
    return shared / union, shared


def plain_match(image, anchors_yxyx, positive_iou_threshold, negative_iou_threshold):
    """Applies the docstring's rules to one anchor and box at a time, in float64."""
    objects = [i for i, box in enumerate(image) if not box[4]]
    boxes = [np.float64(box[:4]) for box in image]
    matches = []
    for anchor in np.float64(anchors_yxyx):
        overlaps = [(plain_iou(anchor, boxes[i])[0], -i) for i in objects]
        best_iou, best = max(overlaps, default=(0, 0))
        area = np.prod(anchor[2:] - anchor[:2])
        crowded = any(
            plain_iou(anchor, boxes[i])[1] > 0.5 * area
            for i in range(len(image))
            if image[i][4]
        )
        if best_iou >= positive_iou_threshold:
            matches.append(-best)
        else:
            matches.append(I if best_iou >= negative_iou_threshold or crowded else B)
    for i in reversed(objects):
        ious = [plain_iou(np.float64(a), boxes[i])[0] for a in anchors_yxyx]
        if max(ious) > 0:
            matches[int(np.argmax(ious))] = i
    return matches


def random_image(rng, num_boxes):
    corners = rng.uniform(0, 90, (num_boxes, 2))
    sizes = rng.uniform(8, 80, (num_boxes, 2))
    is_crowd = rng.random(num_boxes) < 0.3
    return [(*c, *(c + s), k) for c, s, k in zip(corners, sizes, is_crowd, strict=True)]


@pytest.mark.long
@pytest.mark.parametrize("thresholds", [(0.5, 0.4), (0.5, 0.5), (0.7, 0.3)])
def test_matches_agree_with_a_plain_loop(thresholds):
    rng = np.random.default_rng(0)
    images = [random_image(rng, n) for n in (6, 0, 1, 4)]
    images[3][1:3] = [images[3][0]] * 2
    labels = make_labels(images)

    @tf.function(jit_compile=True)
    def compiled():
        return matcher.match_by_iou(
            labels,
            GRID,
            positive_iou_threshold=thresholds[0],
            negative_iou_threshold=thresholds[1],
        )

    actual = compiled()
    expected = [
        plain_match(image, GRID.boxes_yxyx.numpy(), *thresholds) for image in images
    ]
    np.testing.assert_array_equal(actual, expected)
    assert {B, 0, 3} <= set(np.ravel(expected))


@pytest.mark.parametrize("match_fn", MATCH_FNS)
def test_compiled_and_eager_matches_agree(match_fn):
    rng = np.random.default_rng(1)
    labels = make_labels([random_image(rng, 5), random_image(rng, 3)])
    compiled = tf.function(lambda: match_fn(labels, GRID), jit_compile=True)()
    np.testing.assert_array_equal(compiled, match_fn(labels, GRID))


def test_thresholds_agree_with_matches_by_hand():
    anchors_yxyx = tf.constant([[0, 0, 10, w] for w in (10, 5, 4, 3.5, 9)], tf.float32)
    labels = make_labels([[(0, 0, 10, 10, False)]])
    assert match(labels, anchors_yxyx).numpy().tolist() == [[0, 0, I, B, 0]]
    equal = match(labels, anchors_yxyx, negative_iou_threshold=0.5)
    assert equal.numpy().tolist() == [[0, 0, B, B, 0]]


def test_best_anchor_of_a_box_is_positive_at_any_overlap():
    anchors_yxyx = tf.constant([[0, 0, 10, 10], [20, 20, 60, 60], [0, 30, 10, 40.0]])
    labels = make_labels([[(30, 30, 35, 35, False)]])
    assert match(labels, anchors_yxyx).numpy().tolist() == [[B, 0, B]]


def test_box_without_an_overlapping_anchor_has_no_match():
    anchors_yxyx = tf.constant([[0, 0, 10, 10], [20, 20, 60, 60.0]])
    labels = make_labels([[(70, 70, 80, 80, False), (5, 5, 5, 5, False)]])
    assert match(labels, anchors_yxyx).numpy().tolist() == [[B, B]]


def test_first_of_boxes_that_share_a_best_anchor_wins():
    anchors_yxyx = tf.constant([[0, 0, 40, 40], [60, 60, 90, 90.0]])
    boxes = [(70, 70, 75, 75, False), (2, 2, 8, 8, False), (0, 0, 40, 38, False)]
    labels = make_labels([boxes])
    assert match(labels, anchors_yxyx).numpy().tolist() == [[1, 0]]


def test_padding_is_never_matched():
    anchors_yxyx = tf.constant([[0, 0, 64, 64.0]])
    assert match(make_labels([[]]), anchors_yxyx).numpy().tolist() == [[B]]


def test_background_in_crowds_is_ignored_and_crowds_are_never_matched():
    anchors_yxyx = tf.constant(
        [[0, 0, 10, 10], [0, 5, 10, 15], [0, 4, 10, 14], [0, 40, 10, 50.0]]
    )
    labels = make_labels([[(0, 0, 64, 10, True), (0, 0, 10, 9, False)]])
    assert match(labels, anchors_yxyx).numpy().tolist() == [[1, B, I, B]]


def test_crowds_that_are_objects_are_matched_like_them():
    rng = np.random.default_rng(4)
    images = [random_image(rng, num) for num in (6, 3)]
    objects = [[(*box[:4], False) for box in image] for image in images]
    as_objects = matcher.match_by_iou(
        make_labels(images), GRID, crowds_are_objects=True
    )
    np.testing.assert_array_equal(
        as_objects, matcher.match_by_iou(make_labels(objects), GRID)
    )
    assert (as_objects != matcher.match_by_iou(make_labels(images), GRID)).numpy().any()


@pytest.mark.parametrize("thresholds", [(0.4, 0.5), (0.5, 0.0), (1.1, 0.5)])
def test_thresholds_out_of_order_are_rejected(thresholds):
    with pytest.raises(
        ValueError, match="negative_iou_threshold <= positive_iou_threshold"
    ):
        match(
            make_labels([[]]),
            [[0, 0, 8, 8]],
            positive_iou_threshold=thresholds[0],
            negative_iou_threshold=thresholds[1],
        )


def test_gathered_rows_are_exact_and_negative_indices_give_zeros():
    values = np.float32(np.random.default_rng(2).uniform(0, 1e4, (2, 5, 3)))
    rows = matcher.gather_by_one_hot(
        tf.constant(values), tf.constant([[4, 0, B], [I, 2, 2]])
    )
    np.testing.assert_array_equal(rows[0], [values[0, 4], values[0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(rows[1], [[0, 0, 0], values[1, 2], values[1, 2]])


@pytest.mark.parametrize("match_fn", MATCH_FNS)
def test_the_iou_matrix_is_never_written_to_memory(match_fn):
    # A buffer is the result of an instruction outside of all fusions.
    num_boxes = 13  # XLA for CPU splits longer reductions and writes parts.
    # No level is as small as the window of cells that is searched for candidates.
    grid = matcher.make_grid(anchors.Anchors(min_level=3, max_level=4), (256, 256))

    @tf.function(jit_compile=True)
    def compiled(boxes, classes, is_crowd, num):
        return match_fn(structures.Labels(boxes, classes, is_crowd, num), grid)

    hlo = compiled.experimental_get_compiler_ir(
        tf.TensorSpec([2, num_boxes, 4]),
        tf.TensorSpec([2, num_boxes], tf.int32),
        tf.TensorSpec([2, num_boxes], tf.bool),
        tf.TensorSpec([2], tf.int32),
    )(stage="optimized_hlo")
    written = [
        line
        for block in hlo.split("\n\n")
        if not block.lstrip().startswith("%fused") and "ENTRY" in block
        for line in block.splitlines()
    ]
    assert len(written) > 5
    dimensions = [
        sorted(int(d) for d in shape.split(","))
        for line in written
        for shape in re.findall(r"= \(?\w+\[([\d,]+)\]", line)
    ]
    assert sorted([2, num_boxes]) in dimensions
    for count in (*grid.lengths, sum(grid.lengths)):
        assert sorted([2, num_boxes, count]) not in dimensions
