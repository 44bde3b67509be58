import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import structures
from retinanet_tpu.learning import losses, targets

BACKGROUND, IGNORE = structures.BACKGROUND, structures.IGNORE
ALPHA_GAMMA = [(0.25, 2.0), (0.25, 1.5), (0.5, 0.0), (0.75, 0.7)]


def random_level(seed, num_anchors=3, num_classes=4):
    rng = np.random.default_rng(seed)
    classes = rng.integers(IGNORE, num_classes, (2, num_anchors, 3, 5))
    logits = rng.normal(0, 4, (2, 3, 5, num_anchors * num_classes))
    return np.float32(logits), np.int32(classes)


def by_cell(maps):
    """Returns [B, H, W, A] from [B, A, H, W]."""
    return np.moveaxis(maps, 1, -1)


def plain_focal_loss(logits, classes, alpha, gamma):
    """Returns the paper's equation in float64, with an axis of classes."""
    classes = by_cell(classes)
    num_classes = logits.shape[-1] // classes.shape[-1]
    x = tf.reshape(tf.cast(logits, tf.float64), [*classes.shape, num_classes])
    is_target_class = tf.constant(classes)[..., None] == tf.range(num_classes)
    p = tf.sigmoid(x)
    p_t = tf.where(is_target_class, p, 1 - p)
    alpha_t = tf.where(is_target_class, tf.constant(alpha, p.dtype), 1 - alpha)
    loss = -alpha_t * (1 - p_t) ** gamma * tf.math.log(p_t)
    loss = tf.where(
        tf.constant(classes)[..., None] == IGNORE, tf.zeros([], x.dtype), loss
    )
    return tf.reshape(loss, logits.shape)


def value_and_gradient(fn, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = fn(x)
    return y.numpy(), tape.gradient(y, x).numpy()


@pytest.mark.parametrize("num_anchors", [1, 3])
@pytest.mark.parametrize(("alpha", "gamma"), ALPHA_GAMMA)
def test_focal_loss_and_gradient_agree_with_the_paper(alpha, gamma, num_anchors):
    logits, classes = random_level(0, num_anchors)
    loss, gradient = value_and_gradient(
        lambda x: losses.focal_loss(x, classes, alpha=alpha, gamma=gamma),
        tf.constant(logits),
    )
    expected, expected_gradient = value_and_gradient(
        lambda x: plain_focal_loss(x, classes, alpha, gamma),
        tf.constant(logits, tf.float64),
    )
    assert loss.dtype == np.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


def test_compiled_focal_loss_agrees():
    logits, classes = random_level(1)
    compiled = tf.function(losses.focal_loss, jit_compile=True)(logits, classes)
    np.testing.assert_allclose(
        compiled, losses.focal_loss(logits, classes), rtol=1e-5, atol=1e-7
    )


def test_gamma_zero_is_weighted_cross_entropy():
    logits, classes = random_level(2)
    classes = np.maximum(classes, BACKGROUND)
    one_hot = tf.reshape(tf.one_hot(by_cell(classes), 4), logits.shape)
    cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits(one_hot, logits)
    np.testing.assert_allclose(
        losses.focal_loss(logits, classes, alpha=0.5, gamma=0.0),
        0.5 * cross_entropy,
        rtol=1e-5,
    )


def test_losses_at_one_half_equal_values_computed_by_hand():
    loss = losses.focal_loss(tf.zeros([1, 1, 1, 2]), tf.constant([[[[1]]]]))
    expected = np.log(2) * 0.25 * np.array([0.75, 0.25])
    np.testing.assert_allclose(loss[0, 0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_extreme_logits_have_finite_losses_and_gradients(gamma):
    logits = tf.constant([[[[-1e4, 1e4, -1e4, 1e4, 0, 0]]]])
    classes = np.reshape([0, BACKGROUND, 0], [1, 3, 1, 1])
    loss, gradient = value_and_gradient(
        lambda x: losses.focal_loss(x, classes, gamma=gamma), logits
    )
    half = np.log(2) * 0.5**gamma
    slope = 0.5**gamma * (0.5 * gamma * np.log(2) + 0.5)
    np.testing.assert_allclose(
        loss[0, 0, 0], [2500, 7500, 0, 7500, 0.25 * half, 0.75 * half], rtol=1e-5
    )
    np.testing.assert_allclose(
        gradient[0, 0, 0],
        [-0.25, 0.75, 0, 0.75, -0.25 * slope, 0.75 * slope],
        rtol=1e-5,
        atol=1e-7,
    )


def test_ignored_anchors_carry_no_loss():
    logits, classes = random_level(3)
    classes[0, :, 0, 0], classes[0, :, 0, 1] = IGNORE, BACKGROUND
    loss, gradient = value_and_gradient(
        lambda x: losses.focal_loss(x, classes), tf.constant(logits)
    )
    assert not loss[0, 0, 0].any() and not gradient[0, 0, 0].any()
    assert loss[0, 0, 1].all() and gradient[0, 0, 1].all()


def test_label_smoothing_changes_only_the_cross_entropy():
    logits, classes = random_level(4)
    classes = np.maximum(classes, BACKGROUND)
    s, x = 0.2, np.float64(logits)
    one_hot = np.reshape(tf.one_hot(by_cell(classes), 4), x.shape)
    p = 1 / (1 + np.exp(-x))
    smooth = one_hot * (1 - s) + 0.5 * s
    cross_entropy = -smooth * np.log(p) - (1 - smooth) * np.log(1 - p)
    p_t = np.where(one_hot, p, 1 - p)
    expected = np.where(one_hot, 0.25, 0.75) * (1 - p_t) ** 2 * cross_entropy
    np.testing.assert_allclose(
        losses.focal_loss(logits, classes, label_smoothing=s),
        expected,
        rtol=1e-4,
        atol=1e-7,
    )


def test_losses_of_half_precision_logits_are_computed_in_float32():
    logits, classes = random_level(5)
    half = tf.cast(logits, tf.bfloat16)
    np.testing.assert_array_equal(
        losses.focal_loss(half, classes),
        losses.focal_loss(tf.cast(half, tf.float32), classes),
    )


def test_huber_loss_equals_values_computed_by_hand():
    errors = tf.constant([0, 0.05, -0.1, 0.3, -2])
    loss, gradient = value_and_gradient(
        lambda x: losses.huber_loss(x, tf.zeros(5), delta=0.1), errors
    )
    np.testing.assert_allclose(loss, [0, 0.00125, 0.005, 0.025, 0.195], rtol=1e-5)
    np.testing.assert_allclose(gradient, [0, 0.05, -0.1, 0.1, -0.1], rtol=1e-5)


@pytest.mark.parametrize("delta", [0.1, 1.0])
def test_huber_loss_and_gradient_agree_with_the_plain_formula(delta):
    rng = np.random.default_rng(6)
    x, y = rng.normal(0, delta, (2, 100))

    def plain(x):
        error = x - y
        size = tf.abs(error)
        return tf.where(size <= delta, error**2 / 2, delta * size - delta**2 / 2)

    loss, gradient = value_and_gradient(
        lambda x: losses.huber_loss(x, tf.constant(y, tf.float32), delta=delta),
        tf.constant(x, tf.float32),
    )
    expected, expected_gradient = value_and_gradient(plain, tf.constant(x))
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


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


def test_detection_losses_agree_with_plain_numpy():
    predictions, assigned = make_batch(7)
    actual = losses.detection_losses(
        predictions, assigned, normalizer=tf.constant(7.0), gamma=1.5, class_weight=2.0
    )
    class_loss = box_loss = 0
    for level in range(2):
        classes = assigned.classes[level].numpy()
        logits = predictions.class_logits[level]
        class_loss += plain_focal_loss(logits, classes, 0.25, 1.5).numpy().sum()
        error = predictions.box_deltas[level] - assigned.deltas[level]
        size = np.abs(np.reshape(error, [2, 3, 5, 3, 4]).astype(np.float64))
        huber = np.where(size <= 0.1, size**2 / 2, 0.1 * size - 0.005)
        box_loss += huber[by_cell(classes) >= 0].sum() / 4
    np.testing.assert_allclose(actual.class_loss, class_loss / 7, rtol=1e-5)
    np.testing.assert_allclose(actual.box_loss, box_loss / 7, rtol=1e-5)
    np.testing.assert_allclose(
        actual.weighted_loss, (2 * class_loss + 50 * box_loss) / 7, rtol=1e-5
    )


def test_image_without_objects_has_zero_box_loss():
    predictions, assigned = make_batch(8)
    empty = tuple(tf.minimum(level, BACKGROUND) for level in assigned.classes)
    actual = losses.detection_losses(
        predictions, assigned._replace(classes=empty), normalizer=tf.constant(1.0)
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
    actual = losses.detection_losses(predictions, assigned, normalizer=tf.constant(1.0))
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
