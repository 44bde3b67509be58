"""The engine of PJRT: an XLA program for all replicas runs on TPUs, GPUs or CPUs.

TensorFlow lowers the function of a replica to XLA, and reads the data. jax's runtime
runs the program, whose variables stay on the devices between steps.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tpu import errors, log_progress
from retinanet_tpu.estimator import train_step
from retinanet_tpu.estimator.cluster import pjrt_strategy, pjrt_workers
from retinanet_tpu.estimator.engines import engine
from retinanet_tpu.xla import lower

if TYPE_CHECKING:
    from retinanet_tpu.xla import jax_program

# While a device runs one step, the next one waits there with its batch.
_STEPS_IN_FLIGHT = 2

Shares = Sequence[Sequence[np.ndarray]]  # The flat arrays of each local replica.


class PjrtEngine:
    """The engine of a PjrtStrategy.

    Attributes:
      workers: The processes that train together.
    """

    def __init__(self, strategy: pjrt_strategy.PjrtStrategy):
        """Initializes the engine.

        Args:
          strategy: The replicas.
        """
        self.workers = strategy.workers
        self._strategy = strategy

    def make_loop(
        self, state: train_step.TrainState, step_fn: train_step.StepFn
    ) -> PjrtLoop:
        """Returns a loop of steps, and keeps the state on the devices from now on."""
        loop = PjrtLoop(self._strategy, step_fn)
        state.device_copy = loop.function
        return loop

    def make_forward(self, forward_fn: engine.ForwardFn) -> PjrtForward:
        """Returns a forward pass."""
        return PjrtForward(self._strategy, forward_fn)


class DeviceFunction:
    """A function of a replica as a compiled program, with its variables on the devices.

    The program is lowered and compiled for the shapes of the first batch, and again for
    other shapes.

    Attributes:
      num_compiled: The number of programs so far.
    """

    def __init__(
        self, strategy: pjrt_strategy.PjrtStrategy, fn: Callable[..., Any], name: str
    ):
        """Initializes the function.

        Args:
          strategy: The replicas.
          fn: The function of one replica. Its arguments are nests of tensors.
          name: The name of the function, for the log.
        """
        self._strategy = strategy
        self._devices = strategy.devices
        self._fn = fn
        self._name = name
        self.num_compiled = 0
        self._specs: list[tf.TensorSpec] | None = None
        self._program: lower.Program | None = None
        self._executable: jax_program.Executable | None = None
        # Another thread may save the variables between two steps.
        self._lock = threading.Lock()
        self._on_devices: tuple[list[Any], list[Any]] | None = None

    def compile(self, specs: Sequence[Any]) -> float:
        """Lowers and compiles the function, unless that is done for these shapes.

        Args:
          specs: The specs of the arguments of one replica: nests of tf.TensorSpec.
        Returns:
          The duration, in seconds.
        Raises:
          UserError: An operation has no kernel for XLA.
        """
        if self._specs == tf.nest.flatten(specs):
            return 0.0
        start = time.monotonic()
        self.download()
        self.discard()
        from retinanet_tpu.xla import jax_program, pjrt

        event = f"PJRT | {self._name} | {self._devices.count} x {self._devices.kind}"
        with log_progress.logged(f"{event} | lowering"):
            try:
                self._program = lower.lower(self._fn, specs, self._strategy)
            except RuntimeError as error:
                raise errors.UserError(f"The step is no XLA program: {error}") from None
            lowered = jax_program.lower_for(self._program, self._devices)
        logging.info("%s | program %s", event, lowered.fingerprint)
        with log_progress.logged(f"{event} | compiling"), pjrt.translated_errors():
            self._executable = lowered.compile()
        self._specs = tf.nest.flatten(specs)
        self.num_compiled += 1
        return time.monotonic() - start

    def __call__(self, shares: Shares) -> list[Any]:
        """Starts the program on all devices; returns its results, as jax.Array.

        Args:
          shares: The arguments of each local replica.
        """
        assert self._executable is not None
        arguments = self._devices.shard(shares)
        with self._lock:
            updated, constant = self._on_devices or self._upload()
            results, updated = self._executable(arguments, updated, constant)
            self._on_devices = updated, constant
        return results

    def pack(self, results: Sequence[np.ndarray]) -> Any:
        """Returns results in the structure that the function returns."""
        assert self._program is not None
        return tf.nest.pack_sequence_as(self._program.results, list(results))

    def download(self) -> None:
        """Assigns the values on the devices to the variables."""
        with self._lock:
            if self._on_devices is None:
                return
            assert self._program is not None and self._executable is not None
            values = self._devices.fetch(self._on_devices[0])
            for index, value in zip(self._executable.updated, values, strict=True):
                self._program.captures[index].assign(value)

    def discard(self) -> None:
        """Deletes the values on the devices; the next step reads the variables."""
        with self._lock:
            self._on_devices = None

    def _upload(self):
        """Returns the variables that the program assigns and the others, on devices."""
        assert self._program is not None and self._executable is not None
        # Copies, because an array of a CPU may share the memory of a variable, and a
        # step overwrites it.
        values = [
            np.array(c.numpy() if isinstance(c, tf.Variable) else c)
            for c in self._program.captures
        ]
        updated = [values[i] for i in self._executable.updated]
        constant = [values[i] for i in self._executable.constant]
        return self._devices.replicate(updated), self._devices.replicate(constant)


class PjrtLoop:
    """A loop of training steps, each of which is dispatched before the last one ends.

    Attributes:
      function: The step, which has the newest values of the state.
    """

    def __init__(
        self, strategy: pjrt_strategy.PjrtStrategy, step_fn: train_step.StepFn
    ):
        """Initializes the loop; it is compiled at the first call.

        Args:
          strategy: The replicas.
          step_fn: (batch, global step) -> scalars by name; runs on every replica.
        """
        self._devices = strategy.devices
        self._replica_step = train_step.ReplicaStep(step_fn)
        self.function = DeviceFunction(strategy, self._replica_step.run, "train")
        self._progress = engine.Progress((engine.NOT_STARTED,), 0)

    def reset(self, step: int) -> None:
        """Sets the global step at which the next call begins."""
        self._progress = engine.Progress((engine.NOT_STARTED,), step)

    def progress(self) -> engine.Progress:
        """Returns the progress of a call in another thread."""
        return self._progress

    def __call__(
        self, iterator: Iterator[Any], first_step: int, num_steps: int
    ) -> engine.LoopResult:
        """Runs steps; see `engine.TrainLoop`."""
        self._progress = engine.Progress((first_step,), first_step)
        start = time.monotonic()
        batch = self._next(iterator, first_step)
        fed_at = [time.monotonic()]
        step_spec = tf.TensorSpec([], tf.int64)
        # The time to compile is none of the loop.
        compile_secs = self.function.compile([batch.element_spec, step_spec])
        start += compile_secs
        fed_at[0] += compile_secs
        rows: list[futures.Future[tuple[np.ndarray, float]]] = []
        with pjrt_workers.lost_workers(), futures.ThreadPoolExecutor(1) as readers:
            for step in range(first_step, first_step + num_steps):
                if step > first_step:
                    batch = self._next(iterator, step)
                    fed_at.append(time.monotonic())
                if len(rows) >= _STEPS_IN_FLIGHT:
                    rows[-_STEPS_IN_FLIGHT].result()
                results = self.function([[*s, np.int64(step)] for s in batch.shares])
                rows.append(readers.submit(self._read, results))
                self._progress = engine.Progress((step + 1,), step + 1)
            history, done_at = zip(*(row.result() for row in rows), strict=True)
        secs = time.monotonic() - start
        times = np.stack([fed_at, done_at], axis=1) - start
        names = self._replica_step.scalar_names
        means, input_wait = engine.summarize(
            np.stack(history), times, names, first_step
        )
        return engine.LoopResult(means, secs, input_wait, self.function.num_compiled)

    def _next(self, iterator, step):
        """Returns the batch of the step after `step`."""
        try:
            batch = next(iterator)
        except StopIteration:
            raise errors.UserError(engine.data_ended(step + 1)) from None
        self._progress = engine.Progress((step + 1,), step)
        return batch

    def _read(self, results):
        """Waits for a step; returns its scalars and the time."""
        (scalars,) = self._devices.fetch(results)
        return scalars, time.monotonic()


class PjrtForward:
    """A forward pass on all devices."""

    def __init__(
        self, strategy: pjrt_strategy.PjrtStrategy, forward_fn: engine.ForwardFn
    ):
        """Initializes the forward pass; it is compiled at the first call.

        Args:
          strategy: The replicas.
          forward_fn: batch -> (loss, tensors); runs on every replica.
        """
        self._devices = strategy.devices
        self._function = DeviceFunction(strategy, forward_fn, "forward")

    def reload(self) -> None:
        """Uses the present values of the network's variables from now on."""
        self._function.discard()

    def __call__(self, batch: pjrt_strategy.HostBatch) -> tuple[float, Any]:
        """Returns the loss, and the tensors of all replicas as NumPy arrays."""
        self._function.compile([batch.element_spec])
        with pjrt_workers.lost_workers():
            results = self._function(batch.shares)
            loss, tensors = self._function.pack(self._devices.fetch_joined(results))
        return float(loss), tensors
