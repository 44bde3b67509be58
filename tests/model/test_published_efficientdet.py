"""Compares neck and heads with `effdet`, a port of the published EfficientDet."""

import functools
import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import effdet_model
from retinanet_tpu.model import activations, heads, layers, norms
from retinanet_tpu.model.necks import bifpn

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        importlib.util.find_spec("effdet") is None, reason="requires effdet"
    ),
]
# The ids of the inputs of each node of a cell, by which effdet names their projections.
INPUT_IDS = ((3, 4), (2, 5), (1, 6), (0, 7), (1, 7, 8), (2, 6, 9), (3, 5, 10), (4, 11))
NORM = functools.partial(norms.BatchNorm, epsilon=1e-3)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """The weights, inputs and outputs of effdet's network, by name."""
    file = tmp_path_factory.mktemp("effdet") / "arrays.npz"
    command = [sys.executable, effdet_model.__file__, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(np.load(file))


def _copy_conv(arrays, conv, name):
    conv.kernel.assign(arrays[f"{name}.weight"].transpose(2, 3, 1, 0))
    conv.bias.assign(arrays[f"{name}.bias"])


def _copy_separable(arrays, conv, name):
    conv.kernel.assign(arrays[f"{name}.conv_dw.weight"].transpose(2, 3, 0, 1))
    _copy_conv(arrays, conv.pointwise, f"{name}.conv_pw")


def _copy_norm(arrays, norm, name):
    norm.gamma.assign(arrays[f"{name}.weight"])
    norm.beta.assign(arrays[f"{name}.bias"])
    norm.moving_mean.assign(arrays[f"{name}.running_mean"])
    norm.moving_variance.assign(arrays[f"{name}.running_var"])


def _copy_projection(arrays, projection, name):
    _copy_conv(arrays, projection.conv, f"{name}.conv.conv")
    _copy_norm(arrays, projection.norm, f"{name}.conv.bn")


def _copy_neck(arrays, neck):
    _copy_projection(arrays, neck.coarse, "fpn.resample.3")
    for i, cell in enumerate(neck.cells):
        nodes = zip([*cell.down, *cell.up], INPUT_IDS, strict=True)
        for j, (node, ids) in enumerate(nodes):
            name = f"fpn.cell.{i}.fnode.{j}"
            node.fusion.weights.assign(arrays[f"{name}.combine.edge_weights"])
            for k, projection in zip(ids, node.projections, strict=True):
                if projection.conv is not None:
                    _copy_projection(arrays, projection, f"{name}.combine.resample.{k}")
            _copy_separable(arrays, node.conv, f"{name}.after_combine.conv")
            _copy_norm(arrays, node.norm, f"{name}.after_combine.conv.bn")


def _copy_tower(arrays, tower, name):
    for i, (conv, of_levels) in enumerate(zip(tower.convs, tower.norms, strict=True)):
        _copy_separable(arrays, conv, f"{name}.conv_rep.{i}")
        for level, norm in enumerate(of_levels):
            _copy_norm(arrays, norm, f"{name}.bn_rep.{i}.{level}.bn")
    _copy_separable(arrays, tower.last_conv, f"{name}.predict")


def test_neck_and_heads_equal_those_of_efficientdet_d0(arrays):
    neck = bifpn.BiFPN(effdet_model.CHANNELS, norm_fn=NORM)
    towers = heads.Heads(
        neck.num_channels,
        neck.levels,
        num_classes=90,
        num_anchors=9,
        num_convs=3,
        num_channels=64,
        conv_fn=layers.SeparableConv,
        activation_fn=activations.swish,
        norm_fn=NORM,
    )
    _copy_neck(arrays, neck)
    _copy_tower(arrays, towers.class_tower, "class_net")
    _copy_tower(arrays, towers.box_tower, "box_net")
    features = {
        level: tf.constant(arrays[f"inputs.{i}"])
        for i, level in enumerate(effdet_model.CHANNELS)
    }
    pyramid = neck(features, is_training=False)
    predictions = towers(pyramid, is_training=False)
    outputs = {"pyramid": pyramid, **predictions._asdict()}
    for name, levels in outputs.items():
        for i, y in enumerate(levels):
            expected = arrays[f"{name}.{i}"]
            tolerance = 1e-5 * np.abs(expected).max()
            np.testing.assert_allclose(y, expected, atol=tolerance)
