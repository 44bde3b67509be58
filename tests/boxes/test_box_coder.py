import numpy as np
import tensorflow as tf

from retinanet_tpu.boxes import box_coder, box_ops


def random_pair(seed):
    rng = np.random.default_rng(seed)
    boxes = np.concatenate(
        [rng.uniform(0, 600, (40, 2)), rng.uniform(2, 300, (40, 2))], -1
    )
    anchors = np.concatenate(
        [rng.uniform(0, 600, (40, 2)), rng.uniform(16, 600, (40, 2))], -1
    )
    return boxes, anchors


def test_encoding_agrees_with_plain_numpy():
    boxes, anchors = random_pair(0)
    expected = np.concatenate(
        [
            (boxes[:, :2] - anchors[:, :2]) / anchors[:, 2:],
            np.log(boxes[:, 2:] / anchors[:, 2:]),
        ],
        -1,
    )
    boxes_yxyx = box_ops.cyxhw_to_yxyx(tf.constant(boxes))
    actual = box_coder.encode(boxes_yxyx, tf.constant(anchors))
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


def test_one_box_equals_values_computed_by_hand():
    deltas = box_coder.encode(
        tf.constant([10, 20, 30, 100.0]), tf.constant([10, 50, 10, 20.0])
    )
    np.testing.assert_allclose(deltas, [1, 0.5, np.log(2), np.log(4)], rtol=1e-6)


def test_decoding_is_the_inverse_of_encoding():
    boxes, anchors = (x.astype(np.float32) for x in random_pair(1))
    boxes_yxyx = box_ops.cyxhw_to_yxyx(boxes)
    deltas = box_coder.encode(boxes_yxyx, anchors)
    np.testing.assert_allclose(
        box_coder.decode(deltas, anchors), boxes_yxyx, rtol=1e-5, atol=1e-3
    )


def test_zero_deltas_decode_to_the_anchor():
    decoded = box_coder.decode(tf.zeros([1, 4]), tf.constant([[8, 8, 4, 2.0]]))
    np.testing.assert_array_equal(decoded, [[6, 7, 10, 9]])


def test_extreme_deltas_decode_to_finite_boxes():
    decoded = box_coder.decode(
        tf.constant([[0, 0, 1e4, 1e4], [0, 0, -1e4, -1e4]]),
        tf.constant([[8, 8, 16, 16.0]] * 2),
    )
    np.testing.assert_allclose(decoded[0], [-492, -492, 508, 508], rtol=1e-4)
    np.testing.assert_array_equal(decoded[1], [8, 8, 8, 8])
