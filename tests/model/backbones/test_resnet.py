import itertools

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import replicas
from retinanet_tpu.model import activations, layers, stochastic_depth, variable_paths
from retinanet_tpu.model.backbones import resnet


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (50, 70)])
@pytest.mark.parametrize(("depth", "expansion"), [(10, 1), (14, 4)])
def test_features_have_the_strides_of_their_levels(depth, expansion, size):
    backbone = resnet.ResNet(depth=depth, width=4)
    features = backbone(tf.zeros([2, *size, 3]), is_training=False)
    assert list(features) == [2, 3, 4, 5]
    for level, x in features.items():
        height, width = (-(-side // 2**level) for side in size)
        channels = 4 * expansion * 2 ** (level - 2)
        assert x.shape == (2, height, width, channels)
        assert backbone.channels[level] == channels


def test_only_the_first_block_of_a_stage_has_a_projection():
    backbone = resnet.ResNet(depth=18, width=4)
    shortcuts = [
        replicas.variable_path(v) for v in backbone.variables if "/shortcut/" in v.name
    ]
    assert shortcuts == [
        f"backbone/stage{s}/block1/shortcut/kernel" for s in (2, 3, 4, 5)
    ]
    block = backbone.stages[0][1]
    x = tf.random.stateless_uniform([1, 8, 8, 4], [0, 0])
    np.testing.assert_array_equal(block(x, is_training=True), x)


def test_bottleneck_strides_in_its_3x3_convolution():
    block = resnet.ResNet(depth=14, width=4).stages[1][0]
    assert [(c.kernel.shape[0], c.stride) for c in block.convs] == [
        (1, 1),
        (3, 2),
        (1, 1),
    ]
    assert block.shortcut.stride == 2


def test_stride_in_1x1_strides_in_the_first_convolution():
    block = resnet.ResNet(depth=14, width=4, stride_in_1x1=True).stages[1][0]
    assert [conv.stride for conv in block.convs] == [2, 1, 1]
    assert block.shortcut.stride == 2


@pytest.mark.parametrize(("depth", "has_projection"), [(10, False), (14, True)])
def test_identity_first_shortcut_removes_a_needless_projection(depth, has_projection):
    backbone = resnet.ResNet(depth=depth, width=4, identity_first_shortcut=True)
    has_projections = [blocks[0].shortcut is not None for blocks in backbone.stages]
    assert has_projections == [has_projection, True, True, True]
    assert backbone.channels == resnet.ResNet(depth=depth, width=4).channels


def test_stochastic_depth_rises_linearly_and_every_block_drops_independently():
    backbone = resnet.ResNet(depth=18, width=4, drop_rate=0.16)
    blocks = [block for stage in backbone.stages for block in stage]
    np.testing.assert_allclose(
        [block.drop_rate for block in blocks], 0.02 * np.arange(1, 9)
    )
    assert len({block.index for block in blocks}) == len(blocks) == 8


def test_a_dropped_block_passes_its_input_on():
    backbone = resnet.ResNet(depth=10, width=4, drop_rate=0.5)
    for variable in backbone.variables:
        if "/norm2/gamma" in variable.name:  # Blocks start as the identity.
            variable.assign(tf.ones_like(variable))
    images = tf.random.stateless_uniform([32, 16, 16, 3], [0, 0])
    seeds = stochastic_depth.image_seeds(tf.range(32, dtype=tf.int64), tf.constant(0))
    kept = backbone(images, is_training=False)[2]
    dropped = backbone(images, is_training=False, seeds=seeds)[2]
    # The first of four blocks has an eighth of the images dropped.
    is_equal = np.isclose(kept, dropped, atol=1e-6).all((1, 2, 3))
    block = backbone.stages[0][0]
    assert block.drop_rate == 0.125
    factors = stochastic_depth.drop(
        tf.ones([32, 1]), rate=0.125, layer=block.index, seeds=seeds
    )
    assert 0 < (factors.numpy() == 0).sum() < 16
    # The others are divided by the share of those that are kept.
    assert not is_equal.any()


def test_the_activation_follows_the_stem_and_every_block():
    images = tf.random.stateless_uniform([1, 32, 32, 3], [0, 0])
    relu = resnet.ResNet(depth=10, width=4)(images, is_training=False)
    swish = resnet.ResNet(depth=10, width=4, activation_fn=activations.swish)
    for level, x in swish(images, is_training=False).items():
        assert relu[level].numpy().min() >= 0
        assert -0.28 < x.numpy().min() < 0


def test_symmetric_pool_padding_changes_only_images_of_even_sides():
    # The pool's input has half the sides. The padding of 31 and 33 is the same with
    # both settings, that of 32 is not.
    symmetric = resnet.ResNet(depth=10, width=4, symmetric_pool_padding=True)
    plain = resnet.ResNet(depth=10, width=4)
    for size, is_same in (((62, 66), True), ((64, 66), False)):
        x = np.random.default_rng(0).normal(size=(1, *size, 3)).astype(np.float32)
        one, two = (b(x, is_training=False)[2] for b in (symmetric, plain))
        assert one.shape == two.shape
        assert np.allclose(one, two, atol=1e-6) == is_same


@pytest.mark.long
@pytest.mark.parametrize(
    "stride_in_1x1", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_layers_of_published_weights_train_with_xla(stride_in_1x1):
    backbone = resnet.ResNet(
        depth=14,
        width=4,
        stride_in_1x1=stride_in_1x1,
        symmetric_pool_padding=True,
        identity_first_shortcut=True,
    )

    @tf.function(jit_compile=True)
    def gradients(x):
        with tf.GradientTape() as tape:
            features = backbone(x, is_training=True)
            loss = tf.add_n([tf.reduce_mean(f**2) for f in features.values()])
        return tape.gradient(loss, backbone.trainable_variables)

    x = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    for gradient in gradients(tf.constant(x)):
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    "frozen, num_loops",
    [
        ([], 0),
        (["backbone/stage2"], 0),  # The stem before it is trained.
        (["backbone/stem"], 1),
        (["backbone/stem", "backbone/stage2"], 1),
        (["backbone"], 1),
    ],
)
@pytest.mark.parametrize("size", [(64, 64), (50, 70)])
def test_a_loop_over_the_frozen_part_changes_no_feature_and_no_gradient(
    size, frozen, num_loops
):
    images = tf.random.stateless_normal([3, *size, 3], [0, 1])
    seeds = tf.constant([3, 4, 5], tf.uint32)
    results, loops = [], []
    for is_loop in (False, True):
        with variable_paths.frozen(frozen):
            backbone = resnet.ResNet(
                depth=10,
                width=4,
                drop_rate=0.5,
                symmetric_pool_padding=True,
                frozen_image_by_image=is_loop,
            )
        for block in itertools.chain(*backbone.stages):
            block.norms[-1].gamma.assign(tf.ones_like(block.norms[-1].gamma))

        @tf.function
        def train(backbone=backbone):
            with tf.GradientTape() as tape:
                features = backbone(images, is_training=True, seeds=seeds)
                loss = tf.add_n(
                    [tf.reduce_mean(tf.square(x)) for x in features.values()]
                )
            return features, tape.gradient(loss, backbone.trainable_variables)

        results.append(train())
        operations = train.get_concrete_function().graph.get_operations()
        loops.append(sum("While" in operation.type for operation in operations))
    assert loops == [0, num_loops]
    (features, gradients), (features_of_loop, gradients_of_loop) = results
    assert list(features_of_loop) == [2, 3, 4, 5]
    tf.nest.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        (features, gradients),
        (features_of_loop, gradients_of_loop),
    )


def test_evaluation_has_no_loop_over_images():
    with variable_paths.frozen(["backbone"]):
        backbone = resnet.ResNet(depth=10, width=4, frozen_image_by_image=True)
    infer = tf.function(lambda x: backbone(x, is_training=False))
    graph = infer.get_concrete_function(tf.TensorSpec([2, 32, 32, 3])).graph
    assert not [o for o in graph.get_operations() if "While" in o.type]


def test_the_error_of_an_unknown_depth_contains_the_known_ones():
    with pytest.raises(ValueError, match=r"depth 51 .*50, 101"):
        resnet.ResNet(depth=51)


def test_the_stem_over_blocks_equals_the_plain_convolution():
    stem = resnet.ResNet(depth=10, width=8).stem_conv
    x = np.random.default_rng(0).normal(size=(2, 10, 14, 3)).astype(np.float32)
    plain = tf.nn.conv2d(x, stem.kernel, 2, [[0, 0], [3, 3], [3, 3], [0, 0]])
    assert plain.shape == (2, 5, 7, 8)
    np.testing.assert_allclose(stem(x), plain, rtol=1e-5, atol=1e-5)


def test_padding_can_be_that_of_tensorflow():
    network = resnet.ResNet(depth=14, width=4, symmetric_padding=False)
    x = tf.random.stateless_normal([1, 32, 48, 3], [3, 4])
    stem = network.stem_conv
    expected = tf.nn.conv2d(x, stem.kernel, 2, "SAME")
    np.testing.assert_allclose(stem.without_bias(x), expected, atol=1e-5)
    strided = network.stages[1][0].convs[1]
    x = tf.random.stateless_normal([1, 8, 8, strided.kernel.shape[2]], [3, 4])
    expected = tf.nn.conv2d(x, strided.kernel, 2, "SAME")
    np.testing.assert_array_equal(strided(x), expected)


def test_resnext_has_the_parameters_of_torchvision(monkeypatch):
    def make_zeros(initial_value, *, name, trainable):
        zeros = tf.zeros(initial_value.shape)
        return tf.Variable(zeros, name=name, trainable=trainable)

    def zero_kernel(self, rng, shape, init_fn):
        return np.zeros(shape, np.float32)

    monkeypatch.setattr(replicas, "make_variable", make_zeros)
    monkeypatch.setattr(layers.Conv, "_initial_kernel", zero_kernel)
    kwargs = {"num_groups": 32, "group_width": 4, "identity_first_shortcut": True}
    backbone = resnet.ResNet(depth=50, **kwargs)
    classifier = 2048 * 1000 + 1000
    trainable = variable_paths.num_parameters(backbone.trainable_variables)
    # Source: torchvision's resnext50_32x4d.
    assert trainable + classifier == 25_028_904
    assert backbone.channels == {2: 256, 3: 512, 4: 1024, 5: 2048}
    inner = [blocks[-1].convs[1].kernel.shape for blocks in backbone.stages]
    assert inner == [(3, 3, 4 * 2**i, 128 * 2**i) for i in range(4)]


def test_a_small_resnext_has_gradients_in_every_kernel():
    backbone = resnet.ResNet(depth=14, width=16, num_groups=4, group_width=16)
    x = tf.random.stateless_normal([2, 64, 64, 3], [0, 0])
    kernels = [v for v in backbone.trainable_variables if v.name.endswith("kernel:0")]
    for block in [block for blocks in backbone.stages for block in blocks]:
        block.norms[-1].gamma.assign(tf.ones_like(block.norms[-1].gamma))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(backbone(x, is_training=True)[5] ** 2)
    for gradient in tape.gradient(loss, kernels):
        assert np.abs(gradient).max() > 0


@pytest.mark.parametrize("kwargs", [{"num_groups": 32}, {"group_width": 4}])
def test_groups_without_bottlenecks_are_an_error(kwargs):
    with pytest.raises(ValueError, match="ResNet-18 has no bottlenecks"):
        resnet.ResNet(depth=18, **kwargs)
