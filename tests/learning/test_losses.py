import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import structures
from retinanet_tpu.boxes import anchors, box_coder
from retinanet_tpu.learning import box_losses, class_losses, losses, targets

ANCHORS = anchors.Anchors(min_level=3, max_level=4, scales=(1,))
ONE_ANCHOR = anchors.Anchors(min_level=3, max_level=3, scales=(1,), aspect_ratios=(1,))
CLASS_LOSSES = [
    class_losses.focal_loss,
    class_losses.quality_focal_loss,
    class_losses.varifocal_loss,
]
BOX_LOSSES = [box_losses.huber_loss, box_losses.giou_loss, box_losses.ciou_loss]


def make_batch(seed):
    rng = np.random.default_rng(seed)
    levels = [random_level(seed), random_level(seed + 1)]
    deltas, target_deltas = rng.normal(0, 0.2, (2, 2, 2, 3, 5, 12)).astype(np.float32)
    predictions = structures.Predictions(
        tuple(tf.constant(logits) for logits, _ in levels),
        tuple(tf.constant(level) for level in deltas),
    )
    assigned = targets.Targets(
        tuple(tf.constant(classes) for _, classes in levels),
        tuple(tf.constant(level) for level in target_deltas),
        num_positives=tf.constant(0.0),
        matches=tf.zeros([2, 0], tf.int32),
    )
    return predictions, assigned


def random_level(seed, num_anchors=3, num_classes=4):
    rng = np.random.default_rng(seed)
    classes = rng.integers(structures.IGNORE, num_classes, (2, num_anchors, 3, 5))
    logits = rng.normal(0, 4, (2, 3, 5, num_anchors * num_classes))
    return np.float32(logits), np.int32(classes)


@pytest.mark.parametrize("class_loss_fn", CLASS_LOSSES)
@pytest.mark.parametrize("box_loss_fn", BOX_LOSSES)
def test_detection_losses_are_weighted_sums_over_levels(class_loss_fn, box_loss_fn):
    predictions, assigned = make_batch(7)
    actual = losses.detection_losses(
        predictions,
        assigned,
        ANCHORS,
        normalizer=tf.constant(7.0),
        class_loss_fn=class_loss_fn,
        box_loss_fn=box_loss_fn,
        class_weight=2.0,
        box_weight=5.0,
    )
    class_loss = box_loss = 0
    for level in range(2):
        classes = assigned.classes[level]
        boxes = predictions.box_outputs[level], assigned.box_values[level], classes
        boxes = *boxes, ANCHORS.sizes_hw(ANCHORS.levels[level]), ANCHORS.box_coder
        ious = box_losses.predicted_ious(*boxes)
        logits = predictions.class_logits[level]
        class_loss += np.sum(class_loss_fn(logits, classes, ious))
        box_loss += float(box_loss_fn(*boxes))
    np.testing.assert_allclose(actual.class_loss, class_loss / 7, rtol=1e-5)
    np.testing.assert_allclose(actual.box_loss, box_loss / 7, rtol=1e-5)
    np.testing.assert_allclose(
        actual.weighted_loss, (2 * class_loss + 5 * box_loss) / 7, rtol=1e-5
    )


def test_distributions_have_the_distribution_focal_loss_too():
    coder = box_coder.SideDistributions(num_bins=3)
    grid = anchors.Anchors(min_level=3, max_level=4, scales=(1,), box_coder=coder)
    (logits, _), assigned = make_batch(9)
    rng = np.random.default_rng(9)
    outputs = rng.normal(0, 1, (2, 2, 3, 5, 3 * 16)).astype(np.float32)
    actual = losses.detection_losses(
        structures.Predictions(logits, tuple(outputs)),
        assigned,
        grid,
        normalizer=tf.constant(7.0),
        box_loss_fn=box_losses.giou_loss,
        box_weight=2.0,
    )
    expected = sum(
        float(box_losses.distribution_focal_loss(*level, coder))
        for level in zip(outputs, assigned.box_values, assigned.classes, strict=True)
    )
    np.testing.assert_allclose(actual.distribution_loss, expected / 7, rtol=1e-5)
    np.testing.assert_allclose(
        actual.weighted_loss,
        actual.class_loss + 2 * actual.box_loss + 0.25 * expected / 7,
        rtol=1e-5,
    )


def test_image_without_objects_has_zero_box_loss():
    predictions, assigned = make_batch(8)
    empty = tuple(
        tf.minimum(level, structures.BACKGROUND) for level in assigned.classes
    )
    actual = losses.detection_losses(
        predictions,
        assigned._replace(classes=empty),
        ANCHORS,
        normalizer=tf.constant(1.0),
    )
    assert actual.box_loss.numpy() == 0
    assert actual.class_loss.numpy() > 0
    assert actual.weighted_loss.numpy() == actual.class_loss.numpy()


def test_a_target_of_exactly_zero_has_a_loss():
    assigned = targets.Targets(
        (tf.constant([[[[0]]]]),),
        (tf.zeros([1, 1, 1, 4]),),
        num_positives=tf.constant(1.0),
        matches=tf.zeros([1, 1], tf.int32),
    )
    predictions = structures.Predictions(
        (tf.zeros([1, 1, 1, 2]),), (tf.fill([1, 1, 1, 4], 1.0),)
    )
    actual = losses.detection_losses(
        predictions, assigned, ONE_ANCHOR, normalizer=tf.constant(1.0)
    )
    np.testing.assert_allclose(actual.box_loss, 0.1 - 0.005, rtol=1e-6)


def test_one_replica_is_normalized_by_its_own_positives():
    assert losses.loss_normalizer(tf.constant(12.0)).numpy() == 12
    assert losses.loss_normalizer(tf.constant(0.0)).numpy() == 1


@pytest.mark.parametrize(
    ("counts", "expected"), [((3, 8), 5.5), ((0, 0), 0.5), ((0, 1), 0.5)]
)
def test_replicas_share_the_mean_of_at_least_one_positive(counts, expected):
    # Collectives, the default, number exchanges per process: two strategies clash.
    exchange = tf.distribute.ReductionToOneDevice()
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], exchange)

    @tf.function
    def run(values):
        return strategy.run(losses.loss_normalizer, args=(values,))

    values = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(
            counts[context.replica_id_in_sync_group], tf.float32
        )
    )
    normalizers = strategy.experimental_local_results(run(values))
    assert [float(value) for value in normalizers] == [expected, expected]


def test_l2_loss_is_half_the_sum_of_squares():
    kernels = [tf.constant([[1.0, 2], [3, 4]]), tf.constant([2.0], tf.bfloat16)]
    assert losses.l2_loss(kernels, 0.5).numpy() == 0.5 * 0.5 * (30 + 4)
    assert losses.l2_loss([], 0.5).numpy() == 0
