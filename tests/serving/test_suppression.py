"""NMS of crowds has nested loops, which converters have translated incorrectly."""

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu.detections import decode, nms
from retinanet_tpu.serving import onnx_format, tflite_format

pytestmark = pytest.mark.long

NUM = 500  # More than a tile of hard NMS and the windows of soft NMS.
# The names differ from those of the outputs.
INPUTS = ("given_boxes", "given_scores", "given_classes")
OUTPUTS = ("boxes_yxyx", "scores", "classes", "num_detections")


def crowd(num_images):
    """Returns candidates that overlap in long chains."""
    rng = np.random.default_rng(3)
    corners = rng.uniform(0, 40, (num_images, NUM, 2))
    sizes = rng.uniform(5, 40, (num_images, NUM, 2))
    return (
        np.concatenate([corners, corners + sizes], axis=-1).astype(np.float32),
        -np.sort(-rng.uniform(0.01, 0.99, (num_images, NUM)).astype(np.float32)),
        rng.integers(0, 3, (num_images, NUM)).astype(np.int32),
    )


def suppression(variant, num_images):
    suppress = nms.NMS(variant, iou_threshold=0.2, max_detections=50)
    specs = [
        tf.TensorSpec([num_images, NUM, 4], name="given_boxes"),
        tf.TensorSpec([num_images, NUM], name="given_scores"),
        tf.TensorSpec([num_images, NUM], tf.int32, name="given_classes"),
    ]
    return tf.function(
        lambda *candidates: suppress(decode.Candidates(*candidates))._asdict(),
        input_signature=specs,
    )


def assert_same(actual, expected):
    assert expected["num_detections"].numpy().min() > 20
    for key in OUTPUTS:
        np.testing.assert_allclose(actual[key], expected[key], atol=1e-6, err_msg=key)


# The other variants are slow.
_IN_EVERY_RUN = ("global_hard",)


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(v, marks=() if v in _IN_EVERY_RUN else pytest.mark.slow)
        for v in nms.VARIANTS[1:]
    ],
)
def test_nms_of_a_crowd_is_the_same_in_onnx(variant):
    pytest.importorskip("tf2onnx")
    fn = suppression(variant, None)
    model = onnx_format.convert(fn, fn.input_signature)
    session = onnx_format.make_session(model)
    candidates = crowd(2)
    outputs = session.run(OUTPUTS, dict(zip(INPUTS, candidates, strict=True)))
    assert_same(dict(zip(OUTPUTS, outputs, strict=True)), fn(*candidates))


@pytest.mark.parametrize("variant", nms.VARIANTS[1:])
def test_nms_of_a_crowd_is_the_same_in_tflite(variant):
    fn = suppression(variant, 1)
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [fn.get_concrete_function()], tf.Module()
    )
    run = tflite_format.make_interpreter(converter.convert()).get_signature_runner()
    candidates = crowd(1)
    inputs = dict(zip(INPUTS, candidates, strict=True))
    assert_same(run(**inputs), fn(*candidates))
