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
