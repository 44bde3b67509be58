import types

import numpy as np
import pytest
import tensorflow as tf

import servers
from retinanet_tpu.serving import checked_detections, parity

EXACT = parity.Tolerance(iou=0.99, score=1e-4)


@pytest.fixture(scope="module")
def module():
    return servers.make()


def raw_session(module):
    """Returns a session that computes the raw model in TensorFlow."""

    def run(names, inputs):
        outputs = module.raw(tf.constant(inputs["inputs"]))
        return [outputs[name].numpy() for name in names]

    return types.SimpleNamespace(run=run)


@pytest.mark.long
def test_raw_model_with_our_nms_has_the_detections_of_the_checkpoint(module):
    images = servers.images(3)
    expected = checked_detections.detect_with_checkpoint(
        module.network, module.recipe, images
    )
    actual = checked_detections.detect_with_raw_model(
        raw_session(module), module.recipe, images
    )
    report = parity.compare(actual, expected, EXACT)
    assert report.num_matched == report.num_compared > 10
    for detections in actual:
        count = int(detections.num_detections[0])
        assert set(detections.classes[0, :count]) <= {7, 40}
        assert not np.any(detections.scores[0, count:])
