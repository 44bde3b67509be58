import pytest
import tensorflow as tf

import toy_data
from retinanet_tpu.planning import step_functions
from retinanet_tpu.task import configurables
from retinanet_tpu.xla import lower

NUM_REPLICAS = 4


@pytest.fixture(scope="module")
def steps():
    toy_data.parse("none", *toy_data.TWO_LEVELS)
    strategy = lower.AheadOfTimeStrategy(NUM_REPLICAS)
    return step_functions.build(
        configurables.make_run(None, strategy_fn=lambda: strategy)
    )


def traced(step):
    """Returns the operation types of a step, and its outputs."""
    strategy = lower.AheadOfTimeStrategy(step.num_replicas)
    specs = step.specs_fn(step.images)

    @tf.function(autograph=False)
    def program(*tensors):
        with strategy.replica_context():
            return step.fn(*tf.nest.pack_sequence_as(list(specs), list(tensors)))

    concrete = program.get_concrete_function(*tf.nest.flatten(list(specs)))
    kinds = [op.type for op in concrete.graph.get_operations()]
    return kinds, concrete.structured_outputs


def test_replicas_share_a_training_batch_and_each_has_an_evaluation_batch(steps):
    assert (steps["train"].images, steps["train"].num_replicas) == (2, NUM_REPLICAS)
    assert (steps["eval"].images, steps["eval"].num_replicas) == (8, NUM_REPLICAS)
    assert (steps["predict"].images, steps["predict"].num_replicas) == (1, 1)


def test_evaluation_reduces_its_loss_and_returns_detections(steps):
    kinds, (loss, (detections, image_ids)) = traced(steps["eval"])
    assert kinds.count("XlaAllReduce") >= 1
    assert loss.shape == ()
    assert detections.boxes_yxyx.shape == (8, 20, 4)
    assert image_ids.shape == (8,)


def test_prediction_is_the_exported_signature_resizing_included(steps):
    kinds, outputs = traced(steps["predict"])
    assert "ResizeBilinear" in kinds and "XlaAllReduce" not in kinds
    assert set(outputs) == {
        *("image_id", "boxes", "boxes_xyxy", "scores", "class_ids"),
        "valid_detections",
    }


@pytest.mark.long
def test_training_reduces_gradients_statistics_and_scalars(steps):
    kinds, means = traced(steps["train"])
    assert means.shape.rank == 1 and means.shape[0] >= 5
    # The gradients, each batch norm's moments and their gradients, the normalizer, and
    # the scalars that are logged.
    assert kinds.count("XlaAllReduce") > 20


def test_a_step_takes_any_number_of_images(steps):
    (features, _), _ = steps["train"].specs_fn(3)
    assert features.images.shape == (3, 64, 64, 3)
