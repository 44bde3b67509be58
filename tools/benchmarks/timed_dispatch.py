"""Measures the host's work for a step whose device time is near zero.

  python timed_dispatch.py CANDIDATE NUM_VARIABLES NUM_STEPS NUM_ROUNDS

The step adds a number to each of NUM_VARIABLES small variables. The candidates:

  tf.distribute  the loop of this engine
  pjrt           the loop of this engine, with the input and the scalars of each step
  program        the compiled program of the engine pjrt alone, called again and again

The last line of the output is JSON: a list of rounds with the times per step in ms:
"wall", "cpu" (of the process on all cores) and "thread" (CPU time of the thread that
starts the steps), and with "rss_mb", the memory of the process at the end. The first
round is slower, because it compiles.
"""

import retinanet_tpu.startup.cpu

import json
import sys
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import timed_trainer

from retinanet_tpu.estimator.cluster import strategy
from retinanet_tpu.estimator.engines import distribute, pjrt_engine

_LENGTH = 64  # Of a variable: so small that its arithmetic takes no time.

StepsFn = Callable[[int], None]  # Runs a number of steps and waits for the last one.


class State:
    """The part of train_step.TrainState that engines use."""

    device_copy = None


def make_steps(candidate: str, num_variables: int) -> StepsFn:
    """Returns a function that runs steps.

    Args:
      candidate: "tf.distribute", "pjrt" or "program".
      num_variables: The number of variables.
    """
    engine = "tf.distribute" if candidate == "tf.distribute" else "pjrt"
    compute_strategy = strategy.make_strategy(
        "cpu", engine=engine, compilation_cache="", single_process=True
    )
    with compute_strategy.scope():
        variables = [tf.Variable(tf.zeros([_LENGTH])) for _ in range(num_variables)]

    def step_fn(batch, step):
        del step
        mean = tf.reduce_mean(batch)
        for variable in variables:
            variable.assign_add(tf.fill([_LENGTH], mean))
        return {"loss": mean}

    if candidate == "program":
        return _program_steps(compute_strategy, step_fn)
    if candidate == "pjrt":
        engine = pjrt_engine.PjrtEngine(compute_strategy)
    else:
        engine = distribute.DistributeEngine(compute_strategy, jit_compile=False)
    loop = engine.make_loop(State(), step_fn)
    dataset = tf.data.Dataset.from_tensors(tf.ones([8])).repeat()
    batches = compute_strategy.distribute_datasets_from_function(lambda _: dataset)
    iterator = iter(batches)
    loop.reset(0)
    return lambda num_steps: loop(iterator, 0, num_steps)


def _program_steps(compute_strategy, step_fn) -> StepsFn:
    """Returns a function that calls the compiled program of a step."""
    from retinanet_tpu.xla import jax_program, lower

    devices = compute_strategy.devices
    specs = [tf.TensorSpec([8]), tf.TensorSpec([], tf.int64)]
    program = lower.lower(
        lambda batch, step: tf.stack([*step_fn(batch, step).values()]),
        specs,
        compute_strategy,
    )
    executable = jax_program.lower_for(program, devices).compile()
    arguments = devices.shard([[np.ones(8, np.float32), np.int64(0)]])
    values = [np.array(variable.numpy()) for variable in program.captures]
    updated = devices.replicate([values[i] for i in executable.updated])
    constant = devices.replicate([values[i] for i in executable.constant])

    def run(num_steps):
        nonlocal updated
        for _ in range(num_steps):
            results, updated = executable(arguments, updated, constant)
        devices.fetch(results)

    return run


def measure(run_steps: StepsFn, num_steps: int) -> dict[str, float | None]:
    """Returns the times per step in ms, and the memory of the process in MB.

    Args:
      run_steps: The function that runs steps.
      num_steps: The number of steps to run.
    """
    clocks = {
        "wall": time.monotonic,
        "cpu": time.process_time,
        "thread": time.thread_time,
    }
    start = {name: clock() for name, clock in clocks.items()}
    run_steps(num_steps)
    end = {name: clock() for name, clock in clocks.items()}
    times = {name: 1e3 * (end[name] - start[name]) / num_steps for name in clocks}
    return times | {"rss_mb": timed_trainer.measure()["rss_mb"]}


def main() -> None:
    """Runs the command."""
    candidate, *numbers = sys.argv[1:]
    num_variables, num_steps, num_rounds = map(int, numbers)
    run_steps = make_steps(candidate, num_variables)
    print(json.dumps([measure(run_steps, num_steps) for _ in range(num_rounds)]))


if __name__ == "__main__":
    main()
