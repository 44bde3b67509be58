import numpy as np
import pytest

from retinanet_tpu.serving import merging


def random_candidates(seed, count=40):
    """Returns candidates with many overlaps and equal scores."""
    rng = np.random.default_rng(seed)
    corners = rng.choice(20.0 * rng.random([6, 2]), count)
    corners += rng.normal(0, 1.5, [count, 2])
    boxes = np.concatenate([corners, corners + rng.uniform(6, 12, [count, 2])], axis=1)
    boxes[0, 2:] = boxes[0, :2]  # A box without area.
    scores = np.round(rng.random(count), 1) + 0.05
    return merging.Candidates(
        boxes.astype(np.float32),
        -np.sort(-scores).astype(np.float32),
        rng.integers(0, 2, count).astype(np.int32),
        rng.integers(0, 4, count).astype(np.int32),
        rng.integers(1, 5, count).astype(np.int32),
        rng.random(count) < 0.5,
        rng.integers(0, 2, count).astype(np.int32),
    )


def shared_area(a, b):
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    return max(height, 0.0) * max(width, 0.0)


def iou(a, b):
    shared = shared_area(a, b)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return shared / (areas - shared) if shared else 0.0


def overlapping(rows, best, threshold):
    """Returns the rows of the best row's class and of other views, most overlap first.

    A row is box, score, class, view, num_views, is_part and window, in float64.
    """
    pairs = [
        (iou(row[0], best[0]), row)
        for row in rows
        if row[2] == best[2] and row[3] != best[3]
    ]
    pairs = [pair for pair in pairs if pair[0] > threshold]
    return [row for _, row in sorted(pairs, key=lambda pair: -pair[0])]


def rows_of(candidates):
    rows = zip(*(x.tolist() for x in candidates), strict=True)
    return list(map(list, rows))


def naive_nms(candidates, threshold, maximum):
    rows, kept = rows_of(candidates), []
    while rows:
        best = rows.pop(0)
        kept.append(best[:3])
        removed = overlapping(rows, best, threshold)
        rows = [row for row in rows if row not in removed]
    return kept[:maximum]


def naive_fusion(candidates, threshold, maximum):
    rows, fused = rows_of(candidates), []
    while rows:
        members = [rows.pop(0)]
        for row in overlapping(rows, members[0], threshold):
            if row[3] not in [member[3] for member in members]:
                members.append(row)
                rows.remove(row)
        total = sum(member[1] for member in members)
        box = [
            sum(member[1] * member[0][side] for member in members) / total
            for side in range(4)
        ]
        score = total / max(members[0][4], len(members))
        fused.append([box, score, members[0][2]])
    return sorted(fused, key=lambda row: -np.float32(row[1]))[:maximum]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("maximum", [1, 7, 100])
@pytest.mark.parametrize("name", ["nms", "fusion"])
def test_merging_is_that_of_a_simple_loop_in_float64(name, maximum, seed):
    candidates = random_candidates(seed)
    naive_fn = {"nms": naive_nms, "fusion": naive_fusion}[name]
    merged = getattr(merging, name)(candidates, 0.4, maximum)
    boxes, scores, classes = zip(*naive_fn(candidates, 0.4, maximum), strict=True)
    assert 1 <= len(scores) < len(candidates.scores)
    np.testing.assert_allclose(merged.boxes_yxyx, boxes, rtol=1e-6)
    np.testing.assert_allclose(merged.scores, scores, rtol=1e-6)
    np.testing.assert_array_equal(merged.classes, classes)
    assert (np.diff(merged.scores) <= 0).all()
    assert [x.dtype for x in merged] == [np.float32, np.float32, np.int32]


@pytest.mark.parametrize("seed", range(3))
def test_a_part_is_removed_if_a_better_box_of_another_window_covers_half_of_it(seed):
    candidates = random_candidates(seed)
    kept = []
    for row in rows_of(candidates):
        box = row[0]
        size = (box[2] - box[0]) * (box[3] - box[1])
        covering = [
            other
            for other in kept
            if other[2] == row[2] and other[6] != row[6]
            if shared_area(other[0], box) > 0.5 * size
        ]
        if not (row[5] and covering):
            kept.append(row)
    assert 1 < len(kept) < 40
    assert rows_of(merging.without_parts(candidates)) == kept


@pytest.mark.parametrize("merge_fn", [merging.nms, merging.fusion])
def test_one_view_is_unchanged(merge_fn):
    candidates = random_candidates(1)
    candidates = candidates._replace(
        views=np.zeros(40, np.int32), num_views=np.ones(40, np.int32)
    )
    for actual, expected in zip(
        merge_fn(candidates, 0.4, 40), candidates, strict=False
    ):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("merge_fn", [merging.nms, merging.fusion])
def test_no_candidates_have_no_detections(merge_fn):
    empty = merging.Candidates(*(x[:0] for x in random_candidates(1)))
    merged = merge_fn(empty, 0.5, 3)
    assert merged.boxes_yxyx.shape == (0, 4) and merged.scores.shape == (0,)
    assert merged.classes.dtype == np.int32
