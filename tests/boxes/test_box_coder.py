"""Compares the representations of boxes with plain float64 formulas."""

import numpy as np
import pytest
import tensorflow as tf

import box_formulas
import gradients
from retinanet_tpu.boxes import box_coder, box_ops
from retinanet_tpu.boxes.box_coder import (
    AnchorOffsets,
    SideDistances,
    SideDistributions,
)

CODERS = list(box_formulas.CODERS.values())
every_coder = pytest.mark.parametrize("coder", CODERS, ids=list(box_formulas.CODERS))
ANCHOR = [8, 8, 4, 2.0]


def random_pair(seed):
    """Returns boxes and anchors, cyxhw. Most centers are outside of the box."""
    rng = np.random.default_rng(seed)
    boxes = np.concatenate(
        [rng.uniform(0, 600, (40, 2)), rng.uniform(2, 300, (40, 2))], -1
    )
    anchors = np.concatenate(
        [rng.uniform(0, 600, (40, 2)), rng.uniform(16, 600, (40, 2))], -1
    )
    return boxes, anchors


def columns(rows):
    return tf.unstack(tf.constant(rows), axis=-1)


def encode(coder, boxes_cyxhw, anchors_cyxhw):
    return np.stack(coder.encode(columns(boxes_cyxhw), columns(anchors_cyxhw)), -1)


def decode(coder, values, anchors_cyxhw):
    """Returns yxyx boxes."""
    decoded = coder.decode(columns(values), columns(anchors_cyxhw))
    return box_ops.cyxhw_to_yxyx(tf.stack(decoded, axis=-1)).numpy()


def predict(coder, outputs, anchors_cyxhw):
    """Returns yxyx boxes."""
    values = np.stack(coder.activate(tf.constant(outputs, tf.float32)), -1)
    return decode(coder, values, np.float32(anchors_cyxhw))


def random_outputs(coder, seed, shape=(40,), scale=1.0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, scale, (*shape, coder.num_channels)).astype(np.float32)


def test_offsets_agree_with_plain_numpy():
    boxes, anchors = random_pair(0)
    expected = np.concatenate(
        [
            (boxes[:, :2] - anchors[:, :2]) / anchors[:, 2:],
            np.log(boxes[:, 2:] / anchors[:, 2:]),
        ],
        -1,
    )
    actual = encode(AnchorOffsets(), boxes, anchors)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("coder", CODERS[1:])
def test_distances_agree_with_plain_numpy(coder):
    boxes, anchors = random_pair(0)
    ymin, xmin, ymax, xmax = box_ops.cyxhw_to_yxyx(boxes).numpy().T
    y, x, h, w = anchors.T
    expected = [(y - ymin) / h, (x - xmin) / w, (ymax - y) / h, (xmax - x) / w]
    actual = encode(coder, boxes, anchors)
    np.testing.assert_allclose(actual.T, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("coder", "expected"),
    [
        (AnchorOffsets(), [1, 0.5, np.log(2), np.log(4)]),
        (SideDistances(), [0, 1.5, 2, 2.5]),
        (SideDistributions(), [0, 1.5, 2, 2.5]),
    ],
)
def test_one_box_equals_values_computed_by_hand(coder, expected):
    # The box (10, 20, 30, 100) in corners.
    values = encode(coder, [20, 60, 20, 80.0], [10, 50, 10, 20.0])
    np.testing.assert_allclose(values, expected, rtol=1e-6)


@every_coder
def test_decoding_is_the_inverse_of_encoding(coder):
    boxes, anchors = (x.astype(np.float32) for x in random_pair(1))
    values = encode(coder, boxes, anchors)
    decoded, expected = decode(coder, values, anchors), box_ops.cyxhw_to_yxyx(boxes)
    np.testing.assert_allclose(decoded, expected, rtol=1e-5, atol=1e-3)
    plain = box_formulas.decode(coder, values, anchors)
    np.testing.assert_allclose(plain, expected, rtol=1e-5, atol=1e-3)


@every_coder
def test_predicted_boxes_agree_with_plain_formulas(coder):
    _, anchors = random_pair(2)
    outputs = random_outputs(coder, 2)
    expected = box_formulas.boxes(coder, outputs, anchors)
    actual = predict(coder, outputs, anchors)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-2)


@every_coder
def test_gradients_of_predicted_values_agree_with_plain_formulas(coder):
    outputs = random_outputs(coder, 3)
    weights = np.random.default_rng(3).normal(0, 1, (40, 4)).astype(np.float32)
    _, gradient = gradients.value_and_gradient(
        lambda x: tf.stack(coder.activate(x), axis=-1) * weights, tf.constant(outputs)
    )
    _, expected = gradients.value_and_gradient(
        lambda x: box_formulas.values(coder, x) * weights,
        tf.constant(outputs, tf.float64),
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


@every_coder
@pytest.mark.parametrize("axis", [0, 2, -2])
def test_channels_may_be_along_any_axis(coder, axis):
    outputs = random_outputs(coder, 4, (3, 2, 5))
    expected = coder.activate(tf.constant(outputs))
    actual = coder.activate(tf.constant(np.moveaxis(outputs, -1, axis)), axis=axis)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("coder", [AnchorOffsets(), SideDistances()])
def test_zero_outputs_are_the_anchor(coder):
    decoded = predict(coder, [[0.0] * 4], [ANCHOR])
    np.testing.assert_array_equal(decoded, [[6, 7, 10, 9]])


def test_equal_logits_are_the_middle_of_the_bins():
    coder = SideDistributions(num_bins=4, reach=1.5)
    assert coder.num_channels == 20
    decoded = predict(coder, [[9.0] * 20], [ANCHOR])
    np.testing.assert_array_equal(decoded, [[5, 6.5, 11, 9.5]])


def test_a_distribution_of_two_bins_is_any_distance_within_reach():
    coder = SideDistributions(num_bins=4, reach=2.0)
    distances = [0.2, 1.0, 1.9, 2.0]
    share_of_bins = [
        [0.6, 0.4, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 0.2, 0.8],
        [0, 0, 0, 0, 1],
    ]
    outputs = np.log(np.maximum(share_of_bins, 1e-30)).reshape([1, -1])
    values = coder.activate(tf.constant(outputs, tf.float32))
    np.testing.assert_allclose(np.ravel(values), distances, rtol=1e-6)


@pytest.mark.parametrize("coder", CODERS[1:])
def test_predicted_distances_are_not_negative(coder):
    outputs = random_outputs(coder, 5, scale=30.0)
    assert np.min(coder.activate(tf.constant(outputs))) >= 0


@every_coder
def test_extreme_outputs_decode_to_finite_boxes(coder):
    rng = np.random.default_rng(6)
    outputs = rng.choice([-1e4, 0, 1e4], (30, coder.num_channels))
    assert np.isfinite(predict(coder, outputs, [ANCHOR] * 30)).all()


def test_extreme_offsets_are_limited():
    decoded = predict(
        AnchorOffsets(),
        [[0, 0, 1e4, 1e4], [0, 0, -1e4, -1e4]],
        [[8, 8, 16, 16.0]] * 2,
    )
    np.testing.assert_allclose(decoded[0], [-492, -492, 508, 508], rtol=1e-4)
    np.testing.assert_array_equal(decoded[1], [8, 8, 8, 8])


def test_checkpoints_of_different_representations_have_different_variables():
    assert len({coder.output_name for coder in CODERS}) == 3
    assert box_coder.AnchorOffsets.output_name == "deltas"  # As in old checkpoints.
