import functools

import pytest
import tensorflow as tf

import repository
from retinanet_tpu import replicas
from retinanet_tpu.estimator import gin_files
from retinanet_tpu.model import flops, heads, retinanet, variable_paths
from retinanet_tpu.model.backbones import resnet
from retinanet_tpu.model.necks import fpn
from retinanet_tpu.task import configurables

# (parameters, multiply-adds) with 90 classes. The published multiply-adds are half of
# all floating point operations, so they contain normalizations and activations.
# Source: the tests of the public TensorFlow code.
PUBLISHED = {
    "d0_512": (3_880_067, 2_535_978_423),
    "d1_640": (6_625_898, 6_102_772_568),
    "d2_768": (8_097_039, 10_997_043_492),
    "d3_896": (12_032_296, 24_890_171_439),
    "d4_1024": (20_723_675, 55_185_040_717),
}
# With 80 classes.
PARAMETERS_OF_80_CLASSES = {
    "d0_512": 3_874_217,
    "d1_640": 6_617_888,
    "d2_768": 8_086_869,
    "d3_896": 12_017_806,
    "d4_1024": 20_703_425,
}


@pytest.fixture
def zeros(monkeypatch):
    """Makes variables of zeros."""

    def make(initial_value, *, name, trainable):
        return tf.Variable(
            tf.zeros(initial_value.shape), name=name, trainable=trainable
        )

    monkeypatch.setattr(replicas, "make_variable", make)


def _network(run, num_classes):
    path = repository.ROOT / f"gin_configs/coco_efficientdet_{run}.gin"
    gin_files.parse(
        [str(path)],
        [f"NUM_CLASSES = {num_classes}"],
        known=configurables.CONFIGURABLES,
    )
    parts = configurables.make_run(None, strategy_fn=tf.distribute.get_strategy)
    return parts.network_fn(num_classes=num_classes)


def _products_by_hand():
    """Returns the products of the network below for 128 px."""
    stem = 64 * 64 * 4 * 4 * 12 * 8  # With zeros; see ResNet.
    blocks, previous = 0, 8
    for channels, side in ((8, 32), (16, 16), (32, 8), (64, 4)):
        shortcut = side**2 * previous * channels
        blocks += side**2 * 9 * channels * (previous + channels) + shortcut
        previous = channels
    laterals = 16 * (16**2 * 16 + 8**2 * 32 + 4**2 * 64)
    cells = 16**2 + 8**2 + 4**2 + 2**2 + 1
    outputs = cells * 9 * 16 * 16
    towers = cells * 9 * 16 * (2 * 16 + 9 * 2 + 9 * 4)
    return stem + blocks + laterals + outputs + towers


def test_multiply_adds_equal_those_computed_by_hand():
    network = retinanet.RetinaNet(
        num_classes=2,
        backbone_fn=functools.partial(resnet.ResNet, depth=10, width=8),
        neck_fn=functools.partial(fpn.FPN, num_channels=16),
        heads_fn=functools.partial(heads.Heads, num_convs=1, num_channels=16),
    )
    assert flops.multiply_adds(network, (128, 128)) == _products_by_hand()


def test_matrix_multiplications_and_depthwise_convolutions_count(monkeypatch):
    def network(images, is_training):
        x = tf.cast(images, tf.float32)
        x = tf.nn.depthwise_conv2d(x, tf.zeros([5, 5, 3, 1]), [1, 2, 2, 1], "SAME")
        x = tf.reshape(x, [16, 12])
        x = tf.matmul(tf.zeros([16, 7]), x, transpose_a=True)
        return tf.matmul(x[None], tf.zeros([1, 12, 2]))

    depthwise = 8 * 8 * 3 * 25
    expected = depthwise + 7 * 12 * 16 + 7 * 2 * 12
    assert flops.multiply_adds(network, (16, 16)) == expected


@pytest.mark.usefixtures("zeros")
@pytest.mark.parametrize(
    "run",
    [
        run if run == "d0_512" else pytest.param(run, marks=pytest.mark.slow)
        for run in PUBLISHED
    ],
)
def test_efficientdets_have_the_published_counts(run):
    num_parameters, multiply_adds = PUBLISHED[run]
    network = _network(run, 90)
    assert variable_paths.num_parameters(network.trainable_variables) == num_parameters
    size = int(run.partition("_")[2])
    count = flops.multiply_adds(network, (size, size))
    assert count == pytest.approx(multiply_adds, rel=0.02)


@pytest.mark.slow
@pytest.mark.usefixtures("zeros")
@pytest.mark.parametrize("run", PARAMETERS_OF_80_CLASSES)
def test_fewer_classes_only_have_smaller_heads(run):
    trainable = _network(run, 80).trainable_variables
    assert variable_paths.num_parameters(trainable) == PARAMETERS_OF_80_CLASSES[run]


def _mlperf_products(*, kernel_of_stem, channels_of_group):
    """Returns the products of MLPerf's RetinaNet for 800 px, from its published table.

    Args:
      kernel_of_stem: The products of one output of the stem.
      channels_of_group: A function of the channels of a grouped convolution; returns
        the inputs of one output.
    """
    backbone, size, previous = 400 * 400 * 64 * kernel_of_stem, 200, 64
    widths = zip((3, 4, 6, 3), (128, 256, 512, 1024), strict=True)
    for stage, (num_blocks, inner) in enumerate(widths):
        for block in range(num_blocks):
            before, outer = size, 2 * inner
            if stage and not block:
                size //= 2
            backbone += before**2 * previous * inner
            backbone += size**2 * 9 * channels_of_group(inner) * inner
            backbone += size**2 * inner * outer
            backbone += 0 if block else size**2 * previous * outer
            previous = outer
    cells = [100**2, 50**2, 25**2, 13**2, 7**2]
    neck = sum(a * b * 256 for a, b in zip(cells, (512, 1024, 2048), strict=False))
    neck += sum(cells) * 9 * 256**2
    heads_products = sum(cells) * 9 * 256 * (8 * 256 + 9 * (264 + 4))
    return backbone + neck + heads_products


def test_the_mlperf_network_has_the_published_parameters_and_multiply_adds(zeros):
    path = repository.ROOT / "gin_configs/openimages_mlperf_rx50_800.gin"
    gin_files.parse([str(path)], [], known=configurables.CONFIGURABLES)
    run = configurables.make_run(None, strategy_fn=tf.distribute.get_strategy)
    network = run.make_network()
    # torchvision publishes 25,028,904 for ResNeXt-50 32x4d, classifier included.
    backbone = 25_028_904 - 2049 * 1000
    conv = 9 * 256 * 256 + 256
    neck = (512 + 1024 + 2048 + 3) * 256 + 5 * conv
    towers = 8 * conv + (9 * 256 + 1) * 9 * (264 + 4)
    parameters = variable_paths.num_parameters(network.weights)
    assert parameters == backbone + neck + towers
    assert round(parameters / 1e6) == 37
    published = _mlperf_products(
        kernel_of_stem=7 * 7 * 3, channels_of_group=lambda channels: channels // 32
    )
    assert round(published / 1e9) == 201
    # The groups of 128 channels, and the stem, are computed with zeros; see
    # `GroupedConv` and `ResNet`.
    computed = _mlperf_products(
        kernel_of_stem=4 * 4 * 12, channels_of_group=lambda _: 128
    )
    assert flops.multiply_adds(network, (800, 800)) == computed
