import functools

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import replicas
from retinanet_tpu.learning import optimizers
from retinanet_tpu.model import group_norm, heads, retinanet, variable_paths
from retinanet_tpu.model.backbones import resnet
from retinanet_tpu.model.necks import fpn

pytestmark = pytest.mark.long

STEM_AND_C2 = ("backbone/stem", "backbone/stage2")
# depth: (weights, parameters) with 91 classes, from the specification's architecture.
COUNTS = {
    10: (165, 14_805_015),
    14: (177, 18_599_063),
    18: (189, 21_075_735),
    26: (213, 24_529_303),
    34: (237, 31_183_895),
    50: (285, 34_091_159),
    101: (438, 53_083_287),
    152: (591, 68_726_935),
    200: (735, 73_207_959),
}
# depth: blocks of stage 2
BOTTLENECKS = {14: 1, 26: 2, 50: 3, 101: 3, 152: 3, 200: 3}
BASIC_BLOCKS = {10: 1, 18: 2, 34: 3}


def _full_size(monkeypatch, depth, **kwargs):
    """Returns a network of full size whose weights are zeros."""
    monkeypatch.setattr(replicas, "make_variable", _make_zeros)
    backbone_fn = functools.partial(resnet.ResNet, depth=depth)
    return retinanet.RetinaNet(backbone_fn=backbone_fn, **kwargs)


def _make_zeros(initial_value, *, name, trainable):
    return tf.Variable(tf.zeros(initial_value.shape), name=name, trainable=trainable)


def _tiny(**kwargs):
    """Returns a network of 2 classes for images of 128 px."""
    parts = {
        "num_classes": 2,
        "backbone_fn": functools.partial(resnet.ResNet, depth=10, width=8),
        "neck_fn": functools.partial(fpn.FPN, num_channels=16),
        "heads_fn": functools.partial(heads.Heads, num_convs=1, num_channels=16),
    }
    return retinanet.RetinaNet(**{**parts, **kwargs})


def _images(size=(128, 128)):
    return np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)


def _frozen_by_arithmetic(depth):
    """Returns the numbers of weights and parameters of stem and C2, computed."""
    if depth in BOTTLENECKS:
        num_blocks, out = BOTTLENECKS[depth], 256
        kernels = num_blocks * (9 * 64 * 64 + 64 * 256)
        kernels += 64 * 64 + (num_blocks - 1) * 256 * 64  # first convolutions
        channels = num_blocks * (64 + 64 + 256)
    else:
        num_blocks, out = BASIC_BLOCKS[depth], 64
        kernels = num_blocks * 2 * 9 * 64 * 64
        channels = num_blocks * (64 + 64)
    kernels += 7 * 7 * 3 * 64 + 64 * out  # stem and projection
    channels += 64 + out
    convs = 2 + num_blocks * (3 if depth in BOTTLENECKS else 2)
    return 3 * convs, kernels + 2 * channels


@pytest.mark.parametrize(
    "depth",
    [pytest.param(d, marks=pytest.mark.slow) if d > 50 else d for d in sorted(COUNTS)],
)
def test_counts_equal_those_of_the_specification(monkeypatch, depth):
    network = _full_size(monkeypatch, depth, num_classes=91, frozen=STEM_AND_C2)
    num_weights, num_parameters = COUNTS[depth]
    assert len(network.weights) == num_weights
    assert variable_paths.num_parameters(network.weights) == num_parameters
    frozen_weights, frozen_parameters = _frozen_by_arithmetic(depth)
    trainable = network.trainable_variables
    assert len(trainable) == num_weights - frozen_weights
    assert (
        variable_paths.num_parameters(trainable) == num_parameters - frozen_parameters
    )


def test_resnet50_has_the_counts_of_the_specifications_log(monkeypatch):
    network = _full_size(monkeypatch, 50, num_classes=91, frozen=STEM_AND_C2)
    assert len(network.trainable_variables) == 252
    assert variable_paths.num_parameters(network.trainable_variables) == 33_865_815
    network = _full_size(monkeypatch, 50, num_classes=80, frozen=STEM_AND_C2)
    assert variable_paths.num_parameters(network.trainable_variables) == 33_637_620


def test_initial_l2_of_resnet50_equals_that_of_its_initializers():
    network = retinanet.RetinaNet(num_classes=91, frozen=STEM_AND_C2)
    assert len(network.kernels()) == 60
    l2 = 1e-4 * sum(tf.nn.l2_loss(kernel).numpy() for kernel in network.kernels())
    assert l2 == pytest.approx(1.402, abs=0.01)


@pytest.mark.parametrize("size", [(128, 128), (64, 192), (100, 132)])
def test_predictions_cover_the_grid_of_every_level(size):
    predictions = _tiny()(_images(size), is_training=False)
    grids = [[-(-side // 2**level) for side in size] for level in (3, 4, 5, 6, 7)]
    assert [x.shape for x in predictions.class_logits] == [(2, *g, 18) for g in grids]
    assert [x.shape for x in predictions.box_outputs] == [(2, *g, 36) for g in grids]


def test_untrained_network_predicts_one_percent_for_every_class():
    for logits in _tiny()(_images(), is_training=True).class_logits:
        np.testing.assert_allclose(tf.sigmoid(logits), 0.01, rtol=0.02)


def test_uint8_and_float_images_have_the_same_predictions():
    network = _tiny()
    predictions = [
        network(images, is_training=False).class_logits[0]
        for images in (_images(), _images().astype(np.float32))
    ]
    np.testing.assert_array_equal(*predictions)


def test_normalizing_subtracts_the_mean_of_imagenet():
    pixel = [[0.485 * 255, 0.456 * 255, 0.406 * 255], [0, 0, 0], [255, 255, 255]]
    expected = [
        [0, 0, 0],
        [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225],
        [0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225],
    ]
    np.testing.assert_allclose(retinanet.normalize(pixel), expected, atol=1e-6)


def test_only_kernels_decay_in_both_optimizers():
    norms = {"own_norm_fn": functools.partial(group_norm.GroupNorm, num_groups=4)}
    heads_fn = functools.partial(heads.Heads, num_convs=1, num_channels=16, **norms)
    network = _tiny(heads_fn=heads_fn)
    expected = {
        replicas.variable_path(v)
        for v in network.trainable_variables
        # Vectors are biases, and gammas and betas of both normalizations.
        if v.shape.rank > 1
    }
    # SGD: the L2 loss contains these.
    assert {replicas.variable_path(v) for v in network.kernels()} == expected
    optimizer = optimizers.AdamW(lambda step: tf.constant(0.5), weight_decay=0.2)
    variables = network.trainable_variables
    assert len(expected) < len(variables) / 2
    slots = optimizer.create_slots(variables)
    before = [variable.numpy() for variable in variables]
    zeros = [tf.zeros(variable.shape) for variable in variables]
    optimizer.apply(zeros, variables, slots, tf.constant(0))
    for variable, value in zip(variables, before, strict=True):
        factor = 0.9 if replicas.variable_path(variable) in expected else 1.0
        np.testing.assert_allclose(variable, factor * value, rtol=1e-6)


def test_paths_are_unique_and_contain_the_layers():
    paths = [replicas.variable_path(v) for v in _tiny().variables]
    assert len(set(paths)) == len(paths)
    assert {
        "backbone/stem/conv/kernel",
        "backbone/stem/norm/moving_mean",
        "backbone/stage2/block1/conv1/kernel",
        "backbone/stage5/block1/norm_shortcut/beta",
        "fpn/lateral3/bias",
        "fpn/norm7/gamma",
        "heads/class/norm1_level3/gamma",
        "heads/class/logits/bias",
        "heads/box/deltas/kernel",
    } <= set(paths)


def test_second_network_has_the_paths_and_weights_of_the_first():
    one, two = _tiny(seed=3), _tiny(seed=3)
    for a, b in zip(one.variables, two.variables, strict=True):
        assert replicas.variable_path(a) == replicas.variable_path(b)
        np.testing.assert_array_equal(a, b)


def test_all_kernels_have_different_first_values():
    kernels = [k.numpy().ravel() for k in _tiny().kernels()]
    first_values = [tuple(k[:4] / np.abs(k[:4]).max()) for k in kernels]
    assert len(set(first_values)) == len(kernels)


def _gradients(network, images, jit_compile):
    @tf.function(jit_compile=jit_compile)
    def gradients(images):
        with tf.GradientTape() as tape:
            predictions = network(images, is_training=True)
            loss = tf.add_n(
                [
                    tf.reduce_mean(tf.square(tf.cast(x, tf.float32) - 1))
                    for level in predictions
                    for x in level
                ]
            )
        return tape.gradient(loss, network.trainable_variables)

    return gradients(tf.constant(images)), gradients


_SLOW_FLOAT32 = pytest.param("float32", marks=pytest.mark.slow)


@pytest.mark.parametrize("compute_dtype", ["bfloat16", _SLOW_FLOAT32])
def test_training_compiles_with_xla(compute_dtype):
    network = _tiny(compute_dtype=compute_dtype)
    gradients, _ = _gradients(network, _images(), jit_compile=True)
    for variable, gradient in zip(network.trainable_variables, gradients, strict=True):
        assert gradient.shape == variable.shape
        assert gradient.dtype == tf.float32
        assert np.isfinite(gradient).all(), replicas.variable_path(variable)
    assert not np.allclose(network.heads.class_tower.norms[0][0].moving_mean, 0)


@pytest.mark.parametrize(
    "compute_dtype",
    ["bfloat16", pytest.param("float16", marks=pytest.mark.slow), _SLOW_FLOAT32],
)
def test_training_stays_in_the_compute_dtype_and_inference_ends_in_float32(
    compute_dtype,
):
    network = _tiny(compute_dtype=compute_dtype)
    step = tf.function(network, jit_compile=True)
    for is_training, dtype in ((True, compute_dtype), (False, "float32")):
        for levels in step(tf.constant(_images((64, 64))), is_training=is_training):
            assert all(x.dtype == dtype for x in levels)


def test_frozen_stages_have_no_backward_pass():
    network = _tiny(frozen=STEM_AND_C2)
    before = {replicas.variable_path(v): v.numpy() for v in network.variables}
    _, gradients = _gradients(network, _images(), jit_compile=False)
    graph = gradients.get_concrete_function(tf.constant(_images())).graph
    operations = [
        operation.type
        for operation in graph.get_operations()
        if operation.name.startswith("gradient_tape")
    ]
    # The heads' kernels have a gradient from each of the five levels.
    num_kernels = len(network.kernels()) + 4 * 4
    assert operations.count("Conv2DBackpropFilter") == num_kernels
    assert "MaxPoolGrad" not in operations
    for variable in network.variables:
        is_frozen = replicas.variable_path(variable).startswith(STEM_AND_C2)
        is_same = np.array_equal(variable, before[replicas.variable_path(variable)])
        if is_frozen:
            assert is_same
            assert not variable.trainable
        elif "/moving_" in replicas.variable_path(variable):
            assert not is_same


def test_two_replicas_predict_as_one_with_the_whole_batch():
    images = _images()
    expected = _tiny()(images, is_training=True)
    # Collectives, the default, number exchanges per process: two strategies clash.
    reduction = tf.distribute.ReductionToOneDevice()
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], reduction)
    with strategy.scope():
        network = _tiny()
    halves = strategy.experimental_distribute_values_from_function(
        lambda context: images[context.replica_id_in_sync_group][None]
    )
    step = tf.function(lambda x: network(x, is_training=True))
    predictions = strategy.run(step, [halves])
    for actual, other in zip(
        predictions.box_outputs, expected.box_outputs, strict=True
    ):
        actual = tf.concat(strategy.experimental_local_results(actual), 0)
        np.testing.assert_allclose(actual, other, atol=1e-4 * np.abs(other).max())


def test_everything_can_be_frozen_but_the_last_layers():
    network = _tiny(frozen=["backbone", "fpn", "heads/*conv*", "*/norm*"])
    assert {replicas.variable_path(v) for v in network.trainable_variables} == {
        f"heads/{name}/{kind}"
        for name in ("class/logits", "box/deltas")
        for kind in ("kernel", "bias")
    }


def test_a_checkpoint_restores_every_variable(tmp_path):
    saved, restored = _tiny(seed=1), _tiny(seed=2)
    file = tf.train.Checkpoint(network=saved).write(str(tmp_path / "network"))
    tf.train.Checkpoint(network=restored).read(file).assert_consumed()
    for a, b in zip(saved.variables, restored.variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_unknown_dtype_is_an_error():
    with pytest.raises(ValueError, match="compute_dtype 'half'"):
        _tiny(compute_dtype="half")
