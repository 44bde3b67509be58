import sys

import numpy as np
import pytest
import tensorflow as tf

import repository
import tool_processes
from retinanet_tpu import errors, replicas
from retinanet_tpu.estimator.cluster import strategy, worker_group

pytest.importorskip("jax")


def make(num_devices=None, **settings):
    return strategy.make_strategy(
        "cpu", engine="pjrt", num_devices=num_devices, compilation_cache="", **settings
    )


def numbers(batch_size, **settings):
    data = tf.data.Dataset.range(12).map(lambda i: {"x": i, "y": tf.fill([2], i)})
    return data.batch(batch_size, drop_remainder=True, **settings)


def test_the_number_of_replicas_is_that_of_the_devices():
    assert make().num_replicas_in_sync == 1
    made = make(4)
    assert made.num_replicas_in_sync == 4
    assert (made.workers.count, made.workers.index, made.workers.is_chief) == (
        *(1, 0),
        True,
    )
    with made.scope():
        assert replicas.num_replicas() == 4


def test_too_many_devices_are_an_error_with_the_setting():
    message = r"requests 9 CPU, but PJRT has 8.*make_strategy\.num_devices"
    with pytest.raises(errors.UserError, match=message):
        make(9)


def test_a_device_without_a_plugin_is_an_error_with_the_extra():
    # jax has started its CPUs, as in a process that asks for another device later.
    make()
    with pytest.raises(errors.UserError, match=r"cannot start TPU.*\[xla-tpu\]"):
        strategy.make_strategy("tpu", engine="pjrt", compilation_cache="")


@pytest.mark.parametrize("engine", ["xla", "PJRT", ""])
def test_an_unknown_engine_is_an_error_with_the_known_ones(engine):
    message = rf"engine is '{engine}'; use 'tf.distribute' or 'pjrt'"
    with pytest.raises(errors.UserError, match=message):
        strategy.make_strategy("cpu", engine=engine)


def test_replicas_get_the_batches_in_turn():
    contexts = []

    def dataset_fn(context):
        contexts.append(context)
        return numbers(2)

    batches = list(make(3).distribute_datasets_from_function(dataset_fn))
    assert [
        (c.num_input_pipelines, c.input_pipeline_id, c.num_replicas_in_sync)
        for c in contexts
    ] == [(1, 0, 3)]
    assert len(batches) == 2  # Of three batches of two numbers each.
    for step, batch in enumerate(batches):
        assert batch.element_spec["y"].shape == (2, 2)
        for replica, (x, y) in enumerate(batch.shares):
            first = 6 * step + 2 * replica
            np.testing.assert_array_equal(x, [first, first + 1])
            np.testing.assert_array_equal(y, [[first] * 2, [first + 1] * 2])
            assert x.dtype == np.int64


def test_a_step_without_a_batch_for_each_replica_ends_the_data():
    made = make(8)
    assert not list(made.distribute_datasets_from_function(lambda _: numbers(2)))


def test_each_iterator_starts_at_the_first_batch():
    batches = make(2).distribute_datasets_from_function(lambda _: numbers(2))
    firsts = [next(iter(batches)).shares[0][0] for _ in range(2)]
    np.testing.assert_array_equal(firsts, [[0, 1], [0, 1]])


def test_batches_without_a_static_shape_are_an_error():
    data = tf.data.Dataset.range(5).batch(2)
    with pytest.raises(errors.UserError, match=r"shape \(None,\).*drop_remainder"):
        make().distribute_datasets_from_function(lambda _: data)


def test_a_lost_worker_at_the_start_is_a_lost_worker(monkeypatch):
    from retinanet_tpu.xla import pjrt

    def connect(*args):
        raise pjrt.DeviceLostError("no answer")

    monkeypatch.setenv(
        "TF_CONFIG",
        '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", '
        '"index": 1}}',
    )
    monkeypatch.setattr(pjrt, "connect_processes", connect)
    with pytest.raises(worker_group.LostError, match=r"no answer.*same command"):
        make()
    # Evaluators of the run need no other worker.
    assert make(single_process=True).workers.count == 1


def test_without_jax_the_error_names_the_extra(monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "jax"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("pjrt", "jax_program"):
        monkeypatch.delitem(sys.modules, f"retinanet_tpu.xla.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(errors.MissingPackageError) as caught:
        make()
    assert str(caught.value) == (
        "make_strategy.engine = 'pjrt' requires jax, which is missing: "
        "pip install -e '.[xla-cpu]'"
    )


@pytest.mark.long
def test_the_package_works_without_jax():
    """Trains the linear model with tf.distribute in a process without jax."""
    code = f"""
import sys, tempfile
assert "jax" not in sys.modules
sys.modules["jax"] = None
sys.path.append({str(repository.ROOT / "tests/helpers")!r})
import linear
from retinanet_tpu.estimator.engines import pjrt_engine
from retinanet_tpu.planning import step_functions
from retinanet_tpu.xla import compiler, lower
print(linear.make_estimator(tempfile.mkdtemp()).train(linear.train_input_fn, 10))
"""
    done = tool_processes.run_python("-c", code)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("model.ckpt-10")
