import pytest
import tensorflow as tf

from retinanet_tpu import replicas
from retinanet_tpu.estimator.engines import distribute


def runs_cpu_kernels(strategy, jit_compile=False):
    """Returns what code that a training loop traces is told."""
    answers = set()

    def step_fn(batch, step):
        answers.add(replicas.runs_cpu_kernels())
        return {"loss": tf.cast(step, tf.float32)}

    data = strategy.experimental_distribute_dataset(tf.data.Dataset.range(8).batch(2))
    loop = distribute.DistributeLoop(strategy, step_fn, jit_compile)
    loop.reset(0)
    loop(iter(data), 0, 2)
    (answer,) = answers
    return answer


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("num_replicas", [1, 2])
def test_cpu_kernels_are_for_one_replica_without_xla(num_replicas, jit_compile):
    if jit_compile and num_replicas > 1:
        pytest.skip("The engine compiles one replica only.")
    devices = [f"CPU:{i}" for i in range(num_replicas)]
    reduction = tf.distribute.ReductionToOneDevice()
    strategy = tf.distribute.MirroredStrategy(devices, reduction)
    expected = num_replicas == 1 and not jit_compile
    assert runs_cpu_kernels(strategy, jit_compile) == expected
    assert not replicas.runs_cpu_kernels()


def test_cpu_kernels_are_not_for_the_only_replica_of_one_of_several_workers(
    monkeypatch,
):
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    monkeypatch.setattr(type(strategy), "num_replicas_in_sync", 2)
    assert not runs_cpu_kernels(strategy)
