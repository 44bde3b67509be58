"""Compares SpineNet with that of TensorFlow Model Garden."""

import functools
import importlib

import numpy as np
import pytest
import tensorflow as tf

import model_garden
from retinanet_tpu.model import activations, norms, variable_paths
from retinanet_tpu.model.backbones import spinenet

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def theirs():
    """Imports the module, or skips."""
    pytest.importorskip("official", reason="tf-models-official is not installed")
    return importlib.import_module("official.vision.modeling.backbones.spinenet")


def _randomize(model, seed):
    """Draws all variables of the normalizations."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        name = variable.name.split("/")[-1]
        if name.startswith(("gamma", "moving_variance")):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif name.startswith(("beta", "moving_mean")):
            variable.assign(rng.normal(0, 0.1, variable.shape))


@pytest.mark.parametrize(
    ("variant", "activation"), [("49S", "swish"), ("49S", "relu"), ("96", "swish")]
)
def test_features_equal_those_of_model_garden(theirs, variant, activation):
    import tf_keras

    tf_keras.backend.clear_session()
    spec = tf_keras.layers.InputSpec(shape=[None, 128, 256, 3])
    model = theirs.SpineNet(spec, activation=activation, **theirs.SCALING_MAP[variant])
    _randomize(model, seed=1)
    backbone = spinenet.SpineNet(
        variant=variant,
        activation_fn=getattr(activations, activation),
        norm_fn=functools.partial(norms.BatchNorm, epsilon=1e-3),
    )
    model_garden.copy_spinenet(model, backbone)
    expected = variable_paths.num_parameters(model.trainable_variables)
    assert variable_paths.num_parameters(backbone.trainable_variables) == expected
    x = tf.random.stateless_normal([2, 128, 256, 3], [0, 0])
    features = backbone(x, is_training=False)
    for level, y in model(x, training=False).items():
        error = np.abs(features[int(level)] - y).max()
        assert error <= 1e-5 * np.abs(y).max()
