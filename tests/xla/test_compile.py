import pytest
import tensorflow as tf

import linear
from retinanet_tpu.estimator import training
from retinanet_tpu.xla import compile as compiler, lower, roofline

pytest.importorskip("libtpu", reason=f"needs {compiler.INSTALL}")


@pytest.mark.parametrize("name", ["v2-8", "v3-8", "v5litepod-8", "v6e-8"])
def test_a_training_step_compiles_for_a_slice(name):
    target = roofline.accelerator(name)
    strategy = lower.AheadOfTimeStrategy(target.num_devices)
    with strategy.scope():
        network = linear.Linear()
        state = training.TrainState(network, linear.Descent(network))
    step = training.make_step_fn(state, linear.model_fn, dict)
    batch = (tf.TensorSpec([4, 3]), tf.TensorSpec([4, 1]))
    hlo = lower.to_hlo(step, [batch, tf.TensorSpec([], tf.int64)], strategy)
    found = compiler.for_tpu(hlo, target.topology, target.num_devices)
    assert found.flops > 2 * 4 * 3  # The product alone has as many.
    assert found.argument_bytes > 0
    assert "all-reduce" in found.text
