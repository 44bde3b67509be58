import pytest
import tensorflow as tf

from retinanet_tpu import replicas
from retinanet_tpu.estimator.engines import distribute


@pytest.mark.parametrize(
    ("devices", "jit_compile", "expected"),
    [
        (["CPU:0"], False, True),
        (["CPU:0"], True, False),
        (["CPU:0", "CPU:1"], False, False),
    ],
)
def test_cpu_kernels_are_for_one_replica_without_xla(devices, jit_compile, expected):
    strategy = tf.distribute.MirroredStrategy(
        devices, tf.distribute.ReductionToOneDevice()
    )
    answers = []

    def step_fn(batch, step):
        answers.append(replicas.runs_cpu_kernels())
        return {"loss": tf.cast(step, tf.float32)}

    loop = distribute.DistributeLoop(strategy, step_fn, jit_compile)
    data = tf.data.Dataset.range(8).repeat()
    loop.reset(0)
    loop(iter(strategy.experimental_distribute_dataset(data.batch(2))), 0, 2)
    assert set(answers) == {expected}
    assert not replicas.runs_cpu_kernels()
