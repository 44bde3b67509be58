import numpy as np
import pytest
import tensorflow as tf

import box_formulas
from retinanet_tpu import structures
from retinanet_tpu.boxes import anchors
from retinanet_tpu.detections import decode

IMAGE_SIZE = 32, 64
ANCHORS = anchors.Anchors(min_level=3, max_level=5, scales=(1,))
NUM_CLASSES = 4
NUM_PAIRS = (32 + 8 + 2) * 3 * NUM_CLASSES


def make_anchors(coder):
    return anchors.Anchors(min_level=3, max_level=5, scales=(1,), box_coder=coder)


def random_predictions(seed, is_tied=False, coder=ANCHORS.box_coder):
    rng = np.random.default_rng(seed)
    grids = [(2, *grid) for grid in ANCHORS.grid_sizes(IMAGE_SIZE)]
    logits = [rng.normal(0, 2, (*grid, 3 * NUM_CLASSES)) for grid in grids]
    depth = 3 * coder.num_channels
    outputs = [rng.normal(0, 0.3, (*grid, depth)) for grid in grids]
    if is_tied:
        logits = [np.round(level) + 0.0 for level in logits]  # No -0.0.
    return structures.Predictions(
        tuple(tf.constant(level, tf.float32) for level in logits),
        tuple(tf.constant(level, tf.float32) for level in outputs),
    )


def plain_decode(predictions, num_candidates, coder=ANCHORS.box_coder):
    """Returns candidates by sorting all pairs of all anchors and classes."""
    depths = NUM_CLASSES, coder.num_channels
    logits, outputs = (
        np.concatenate([np.reshape(level, (2, -1, d)) for level in levels], 1)
        for levels, d in zip(predictions, depths, strict=True)
    )
    anchors_cyxhw = np.concatenate(ANCHORS.boxes_cyxhw(IMAGE_SIZE))
    boxes = box_formulas.boxes(coder, outputs, anchors_cyxhw)
    boxes = np.clip(boxes, 0, [32, 64, 32, 64])
    pairs = logits.reshape(2, -1)
    best = np.argsort(-pairs, axis=-1, kind="stable")[:, :num_candidates]
    rows = np.arange(2)[:, None]
    scores = 1 / (1 + np.exp(-pairs[rows, best]))
    return boxes[rows, best // NUM_CLASSES], scores, best % NUM_CLASSES


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("num_candidates", [1, 7, 100, 10**4])
def test_candidates_equal_those_of_a_full_sort(num_candidates, is_tied):
    predictions = random_predictions(0, is_tied)
    actual = tf.function(decode.decode, jit_compile=True)(
        predictions,
        ANCHORS,
        IMAGE_SIZE,
        num_classes=NUM_CLASSES,
        num_candidates=num_candidates,
    )
    boxes, scores, classes = plain_decode(predictions, num_candidates)
    assert actual.scores.shape == (2, min(num_candidates, NUM_PAIRS))
    np.testing.assert_array_equal(actual.classes, classes)
    np.testing.assert_allclose(actual.scores, scores, rtol=1e-5)
    np.testing.assert_allclose(actual.boxes_yxyx, boxes, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("coder", box_formulas.CODERS.values())
def test_boxes_are_those_of_the_representation(coder):
    predictions = random_predictions(3, coder=coder)
    arguments = predictions, make_anchors(coder), IMAGE_SIZE
    best = decode.decode(*arguments, num_classes=NUM_CLASSES, num_candidates=60)
    expected, *_ = plain_decode(predictions, 60, coder)
    np.testing.assert_allclose(best.boxes_yxyx, expected, rtol=1e-5, atol=1e-4)
    every, logits = decode.every_box(*arguments, num_classes=NUM_CLASSES)
    anchor = np.argmax(np.max(logits, axis=-1), axis=-1)  # That of the best candidate.
    np.testing.assert_allclose(
        every.numpy()[[0, 1], anchor], expected[:, 0], rtol=1e-5, atol=1e-4
    )


def test_candidates_of_half_precision_predictions_are_float32():
    half = structures.Predictions(
        *(
            tuple(tf.cast(level, tf.bfloat16) for level in levels)
            for levels in random_predictions(1)
        )
    )
    single = structures.Predictions(
        *(tuple(tf.cast(level, tf.float32) for level in levels) for levels in half)
    )
    arguments = dict(num_classes=NUM_CLASSES, num_candidates=50)
    actual = decode.decode(half, ANCHORS, IMAGE_SIZE, **arguments)
    expected = decode.decode(single, ANCHORS, IMAGE_SIZE, **arguments)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_a_batch_of_unknown_size_can_be_traced():
    specs = structures.Predictions(
        *(
            tuple(tf.TensorSpec([None, *level.shape[1:]]) for level in levels)
            for levels in random_predictions(2)
        )
    )

    @tf.function(input_signature=[specs.class_logits, specs.box_outputs])
    def run(logits, outputs):
        return decode.decode(
            structures.Predictions(logits, outputs),
            ANCHORS,
            IMAGE_SIZE,
            num_classes=NUM_CLASSES,
            num_candidates=9,
        )

    predictions = random_predictions(2)
    np.testing.assert_array_equal(
        run(*predictions).classes, plain_decode(predictions, 9)[2]
    )


def test_boxes_are_scaled_and_clipped_to_the_original_image():
    boxes = tf.constant([[[10, 20, 30, 90.0]], [[10, 20, 30, 40.0]]])
    scales = tf.constant([[0.5, 2], [0, 0.0]])
    sizes = tf.constant([[50, 40], [0, 0]])
    original = decode.to_original(boxes, scales, sizes)
    np.testing.assert_array_equal(original, [[[20, 10, 50, 40]], [[0, 0, 0, 0]]])


def test_the_candidates_of_a_level_can_be_limited():
    predictions = random_predictions(5)
    limited = tf.function(decode.decode, jit_compile=True)(
        predictions,
        ANCHORS,
        IMAGE_SIZE,
        num_classes=NUM_CLASSES,
        num_candidates=40,
        num_per_level=16,
    )
    scores, boxes = [], []
    for i in range(3):
        # One level has a chance if the others have no score.
        logits = [
            level if i == j else tf.fill(level.shape, -100.0)
            for j, level in enumerate(predictions.class_logits)
        ]
        of_level = plain_decode(predictions._replace(class_logits=logits), 16)
        boxes.append(of_level[0])
        scores.append(of_level[1])
    scores, boxes = np.concatenate(scores, 1), np.concatenate(boxes, 1)
    rows, best = np.arange(2)[:, None], np.argsort(-scores, kind="stable")[:, :40]
    np.testing.assert_allclose(limited.scores, scores[rows, best], rtol=1e-5)
    np.testing.assert_allclose(
        limited.boxes_yxyx, boxes[rows, best], rtol=1e-5, atol=1e-4
    )
