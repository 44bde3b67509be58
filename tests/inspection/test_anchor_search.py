import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu.boxes import anchors, box_ops
from retinanet_tpu.inspection import anchor_search

IMAGE_SIZE = (256, 384)


def boxes_like(shapes, count, *, spread=0.0, seed=0):
    """Draws boxes of the shapes of some anchors, anywhere in the image."""
    rng = np.random.default_rng(seed)
    sizes = np.concatenate(shapes.boxes_cyxhw(IMAGE_SIZE))[:, 2:]
    sizes = sizes[(sizes < IMAGE_SIZE).all(axis=-1)]
    sizes = sizes[rng.integers(len(sizes), size=count)]
    sizes = sizes * np.exp(rng.normal(0, spread, sizes.shape))
    corners = rng.random((count, 2)) * np.maximum(np.array(IMAGE_SIZE) - sizes, 0)
    return np.concatenate([corners, corners + sizes], axis=-1).astype(np.float32)


def any_boxes(count, seed=0):
    corners = np.random.default_rng(seed).uniform(-20, 300, (count, 2, 2))
    return np.sort(corners, axis=1).reshape(-1, 4).astype(np.float32)


@pytest.mark.parametrize(
    "shapes",
    [
        anchors.Anchors(),
        anchors.Anchors(max_level=5, scales=(1, 3.1), aspect_ratios=(0.2,), size=1.3),
        anchors.Anchors(center=0.0),
        anchors.Anchors(center=0.0, whole_pixels=True, size=3.3),
    ],
)
def test_best_iou_is_that_of_the_whole_grid(shapes):
    boxes = any_boxes(300)
    grid = box_ops.cyxhw_to_yxyx(np.concatenate(shapes.boxes_cyxhw(IMAGE_SIZE)))
    expected = tf.reduce_max(box_ops.iou(boxes, grid), axis=-1)
    fitted = anchor_search.best_iou(boxes, shapes, IMAGE_SIZE)
    np.testing.assert_allclose(fitted, expected, atol=1e-5)


def test_a_box_without_area_has_an_iou_of_0():
    boxes = np.array([[10, 10, 10, 40], [30, 30, 20, 20]], np.float32)
    assert not anchor_search.best_iou(boxes, anchors.Anchors(), IMAGE_SIZE).any()


def test_recall_counts_ious_of_at_least_a_half():
    fitted = anchor_search.coverage(np.array([0.2, 0.5, 0.8, 0.9]))
    assert fitted == pytest.approx((4, 0.75, 0.6))
    assert anchor_search.coverage(np.zeros([0])) == (0, 0.0, 0.0)


def test_k_means_finds_clusters():
    rng = np.random.default_rng(0)
    clusters = [rng.normal(center, 0.1, 200) for center in (-2.0, 0.5, 3.0)]
    fitted = anchor_search.k_means(np.concatenate(clusters), 3)
    np.testing.assert_allclose(fitted, [-2.0, 0.5, 3.0], atol=0.05)


def test_known_anchors_are_recovered_from_boxes_of_their_shapes():
    known = anchors.Anchors(scales=(1, 1.5), aspect_ratios=(0.4, 1.6), size=3.0)
    start = anchors.Anchors(scales=(1, 1.2), aspect_ratios=(1.0, 4.0), size=4.0)
    boxes = boxes_like(known, 400, spread=0.02)
    fitted = anchor_search.fit(boxes, start, IMAGE_SIZE)
    np.testing.assert_allclose(fitted.aspect_ratios, known.aspect_ratios, rtol=0.15)
    reached, ideal, before = (
        anchor_search.coverage(anchor_search.best_iou(boxes, a, IMAGE_SIZE))
        for a in (fitted, known, start)
    )
    assert reached.mean_iou > ideal.mean_iou - 0.01 > before.mean_iou + 0.1
    assert reached.recall > before.recall


@pytest.mark.parametrize("seed", range(3))
def test_fitted_anchors_are_never_worse(seed):
    # Of so few candidates, evaluated on a sample of the boxes, not all are better.
    start = anchors.Anchors()
    boxes = boxes_like(start, 4000, spread=0.3, seed=seed)
    groups = (boxes[:, 2] - boxes[:, 0] > 64).astype(int)
    fitted = anchor_search.fit(
        boxes, start, IMAGE_SIZE, groups=groups, generations=8, seed=seed
    )
    before, after = (
        anchor_search.best_iou(boxes, a, IMAGE_SIZE) for a in (start, fitted)
    )
    assert anchor_search.coverage(after).recall >= anchor_search.coverage(before).recall
    assert (
        anchor_search.coverage(after).mean_iou
        >= anchor_search.coverage(before).mean_iou
    )
    for group in (0, 1):
        then, now = (
            anchor_search.coverage(i[groups == group]) for i in (before, after)
        )
        assert now.recall + now.mean_iou >= then.recall + then.mean_iou


def test_optimal_anchors_stay():
    known = anchors.Anchors(scales=(1.0,), aspect_ratios=(1.0,), size=4.0, max_level=4)
    grid = np.concatenate(known.boxes_cyxhw(IMAGE_SIZE))
    boxes = box_ops.cyxhw_to_yxyx(grid[::7]).numpy()
    assert anchor_search.fit(boxes, known, IMAGE_SIZE, generations=20) is known


def test_equal_seeds_give_equal_anchors():
    boxes = any_boxes(200)
    first, again = (
        anchor_search.fit(boxes, anchors.Anchors(), IMAGE_SIZE, generations=10, seed=3)
        for _ in range(2)
    )
    assert vars(first) == vars(again)


def test_other_counts_are_fitted_on_the_same_levels():
    start = anchors.Anchors(min_level=4, max_level=6)
    boxes = any_boxes(200)
    fitted = anchor_search.fit(boxes, start, IMAGE_SIZE, counts=(1, 2), generations=10)
    assert (len(fitted.scales), len(fitted.aspect_ratios)) == (1, 2)
    assert fitted.levels == start.levels


def test_no_boxes_or_no_scales_are_refused():
    with pytest.raises(ValueError, match="0 boxes"):
        anchor_search.fit(np.zeros([0, 4]), anchors.Anchors(), IMAGE_SIZE)
    with pytest.raises(ValueError, match="0 scales"):
        anchor_search.fit(any_boxes(3), anchors.Anchors(), IMAGE_SIZE, counts=(0, 3))


def test_fitted_anchors_keep_their_places_in_the_cells():
    start = anchors.Anchors(center=0.0, whole_pixels=True)
    boxes = boxes_like(anchors.Anchors(size=2.5), 60)
    fitted = anchor_search.fit(boxes, start, IMAGE_SIZE, generations=5)
    assert fitted is not start
    assert (fitted.center, fitted.whole_pixels) == (0.0, True)
