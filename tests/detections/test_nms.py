import functools

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu.detections import decode, nms

pytestmark = pytest.mark.long

SOFT = {
    nms.linear: lambda iou, threshold: 1 - iou if iou > threshold else 1.0,
    nms.gaussian: lambda iou, threshold: np.exp(-(iou**2) / np.float32(0.5)),
}
ALL = [(name, nms.gaussian) for name in nms.VARIANTS] + [
    (name, nms.linear) for name in nms.VARIANTS if name.endswith("soft")
]
every_variant = pytest.mark.parametrize(
    ("variant", "soft_fn"), ALL, ids=lambda x: getattr(x, "__name__", x)
)


def make_candidates(boxes, scores, classes=None):
    classes = np.zeros(np.shape(scores)) if classes is None else classes
    return decode.Candidates(
        tf.constant(boxes, tf.float32),
        tf.constant(scores, tf.float32),
        tf.constant(classes, tf.int32),
    )


def random_candidates(seed, num=60):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 40, (2, num, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 40, (2, num, 2))], -1)
    scores = rng.permuted(np.linspace(0.01, 0.99, 2 * num)).reshape(2, num)
    scores = -np.sort(-scores, axis=-1)
    return make_candidates(boxes, scores, rng.integers(0, 3, (2, num)))


def plain_ious(a, boxes):
    """Returns the IoU of a box with each of several boxes."""
    low, high = np.maximum(a[:2], boxes[:, :2]), np.minimum(a[2:], boxes[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    union = np.prod(a[2:] - a[:2]) + np.prod(boxes[:, 2:] - boxes[:, :2], 1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def plain_nms(boxes, scores, classes, variant, soft_fn, iou_threshold=0.5):
    """Selects boxes of one image one at a time, in float32 as the device does."""

    def factor(iou):
        if variant.endswith("soft"):
            return np.float32(SOFT[soft_fn](iou, iou_threshold))
        return np.float32(iou <= iou_threshold)

    scores, selected = scores.copy(), []
    while len(selected) < 20 and scores.max() > 0.05:
        best = int(scores.argmax())
        selected.append((best, scores[best]))
        scores[best] = 0
        ious = plain_ious(boxes[best], boxes)
        for i in range(len(scores)):
            if variant.startswith("global") or classes[i] == classes[best]:
                scores[i] *= factor(ious[i])
    return selected


@functools.cache
def compiled(variant, soft_fn):
    """Returns NMS that is compiled once for each number of candidates."""
    nms_fn = nms.NMS(variant=variant, soft_fn=soft_fn, max_detections=20)
    return tf.function(nms_fn.__call__, jit_compile=True)


def check(candidates, variant, soft_fn):
    detections = compiled(variant, soft_fn)(candidates)
    assert detections.boxes_yxyx.shape == (len(candidates.scores), 20, 4)
    for image, candidate in enumerate(zip(*candidates, strict=True)):
        boxes, scores, classes = (x.numpy() for x in candidate)
        selected = plain_nms(boxes, scores, classes, variant, soft_fn)
        index, count = [i for i, _ in selected], len(selected)
        assert detections.num_detections[image] == count
        np.testing.assert_array_equal(
            detections.boxes_yxyx[image, :count], boxes[index]
        )
        np.testing.assert_array_equal(detections.classes[image, :count], classes[index])
        np.testing.assert_allclose(
            detections.scores[image, :count],
            [score for _, score in selected],
            rtol=1e-5,
        )
        assert not np.any(detections.boxes_yxyx[image, count:])
        assert not np.any(detections.scores[image, count:])
        assert not np.any(detections.classes[image, count:])
    return detections


@every_variant
def test_random_boxes_agree_with_a_plain_loop(variant, soft_fn):
    detections = check(random_candidates(0), variant, soft_fn)
    assert (np.diff(detections.scores, axis=-1) <= 0).all()


@every_variant
def test_dense_boxes_of_several_tiles_agree_with_a_plain_loop(variant, soft_fn):
    boxes, scores, classes = random_candidates(1, 700)
    # Nearly all boxes overlap: the few selected ones are spread over all tiles.
    boxes -= tf.tile(boxes[..., :2], [1, 1, 2])
    detections = check(decode.Candidates(boxes, scores, classes), variant, soft_fn)
    if variant == "global_hard":
        # Scores below 0.8 are in the second tile: the loop did not end at the first.
        last = detections.num_detections[0] - 1
        assert last < 19 and detections.scores[0, last] < 0.8


def test_every_second_box_of_an_overlapping_chain_is_kept():
    tops = np.arange(300.0)
    boxes = np.stack([tops, 0 * tops, tops + 2.5, 0 * tops + 1], axis=-1)
    scores = np.linspace(0.9, 0.1, 300)
    detections = nms.NMS(iou_threshold=0.4)(make_candidates([boxes], [scores]))
    np.testing.assert_array_equal(detections.boxes_yxyx[0, :, 0], tops[::2][:100])


@every_variant
def test_tied_identical_and_degenerate_boxes_agree_with_a_plain_loop(variant, soft_fn):
    same, point, line = [0, 0, 8, 8], [3, 3, 3, 3], [0, 0, 8, 0]
    boxes = [same, line, [0, 0, 8, 4], same, same, point, same, point, same]
    scores = [0.9, 0.7, 0.7, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    classes = [[1, 1, 0, 0, 1, 0, 1, 0, 1], [0] * 9]
    check(make_candidates([boxes] * 2, [scores] * 2, classes), variant, soft_fn)


@every_variant
def test_images_without_candidates_have_no_detections(variant, soft_fn):
    boxes, scores, classes = random_candidates(1)
    scores = tf.stack([tf.zeros_like(scores[0]), scores[1]])
    detections = check(decode.Candidates(boxes, scores, classes), variant, soft_fn)
    assert detections.num_detections[0] == 0 < detections.num_detections[1]
    nothing = decode.Candidates(boxes, tf.zeros_like(scores), classes)
    assert not np.any(check(nothing, variant, soft_fn).num_detections)


@every_variant
def test_candidates_with_a_score_of_zero_may_be_anywhere(variant, soft_fn):
    boxes, scores, classes = random_candidates(6, 700)
    is_removed = classes == 1
    remaining = tf.where(is_removed, 0.0, scores)
    detections = check(decode.Candidates(boxes, remaining, classes), variant, soft_fn)
    assert set(np.unique(detections.classes)) == {0, 2}


@pytest.mark.parametrize("variant", ["combined", "per_class_hard"])
@pytest.mark.parametrize("iou_threshold", [0.3, 0.5, 0.8])
def test_hard_nms_per_class_agrees_with_tensorflow(variant, iou_threshold):
    boxes, scores, classes = random_candidates(2, 600)
    detections = nms.NMS(variant=variant, iou_threshold=iou_threshold)(
        decode.Candidates(boxes, scores, classes)
    )
    expected = tf.image.combined_non_max_suppression(
        boxes[:, :, None],
        tf.where(tf.one_hot(classes, 3) > 0, scores[..., None], 0.0),
        max_output_size_per_class=100,
        max_total_size=100,
        iou_threshold=iou_threshold,
        score_threshold=0.05,
        clip_boxes=False,
    )
    np.testing.assert_array_equal(detections.num_detections, expected.valid_detections)
    np.testing.assert_array_equal(detections.boxes_yxyx, expected.nmsed_boxes)
    np.testing.assert_array_equal(detections.scores, expected.nmsed_scores)
    np.testing.assert_array_equal(detections.classes, expected.nmsed_classes)
    assert 10 < detections.num_detections.numpy().min() < 600


def test_a_box_with_an_overlap_of_exactly_the_threshold_is_kept():
    candidates = make_candidates([[[0, 0, 2, 2], [0, 0, 2, 1]]], [[0.9, 0.8]])
    assert nms.NMS(iou_threshold=0.5)(candidates).num_detections.numpy() == 2
    assert nms.NMS(iou_threshold=0.49)(candidates).num_detections.numpy() == 1


def test_a_box_with_a_score_of_exactly_the_threshold_is_dropped():
    candidates = make_candidates([[[0, 0, 1, 1], [5, 5, 6, 6]]], [[0.5, 0.25]])
    detections = nms.NMS(score_threshold=0.25)(candidates)
    assert detections.num_detections.numpy() == 1


def test_soft_scores_equal_values_computed_by_hand():
    boxes = [[[0, 0, 2, 2], [0, 0, 2, 1.5], [0, 0, 2, 0.5]]]
    candidates = make_candidates(boxes, [[0.8, 0.6, 0.5]])
    detections = nms.NMS(variant="per_class_soft", soft_fn=nms.linear)(candidates)
    np.testing.assert_allclose(detections.scores[0, :3], [0.8, 0.5, 0.15], rtol=1e-6)
    np.testing.assert_array_equal(detections.boxes_yxyx[0, 1], boxes[0][2])
    detections = nms.NMS(
        variant="per_class_soft", soft_fn=functools.partial(nms.gaussian, sigma=1.0)
    )(candidates)
    second = 0.5 * np.exp(-(0.25**2))
    third = 0.6 * np.exp(-(0.75**2)) * np.exp(-((1 / 3) ** 2))
    np.testing.assert_allclose(
        detections.scores[0, :3], [0.8, second, third], rtol=1e-5
    )


def test_max_detections_limits_the_detections():
    candidates = random_candidates(3)
    few = nms.NMS(max_detections=3)(candidates)
    many = nms.NMS(max_detections=50)(candidates)
    assert few.num_detections.numpy().tolist() == [3, 3]
    np.testing.assert_array_equal(few.boxes_yxyx, many.boxes_yxyx[:, :3])


def test_a_batch_of_unknown_size_can_be_traced():
    specs = decode.Candidates(
        tf.TensorSpec([None, 60, 4]),
        tf.TensorSpec([None, 60]),
        tf.TensorSpec([None, 60], tf.int32),
    )
    traced = tf.function(nms.NMS().__call__, input_signature=[specs])
    candidates = random_candidates(4)
    for a, b in zip(traced(candidates), nms.NMS()(candidates), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_negative_score_threshold_is_rejected():
    with pytest.raises(ValueError, match="must be >= 0"):
        nms.NMS(score_threshold=-0.1)


def test_the_error_of_an_unknown_variant_contains_all_variants():
    with pytest.raises(ValueError, match="'gentle'; choose one of combined, per_class"):
        nms.NMS(variant="gentle")
