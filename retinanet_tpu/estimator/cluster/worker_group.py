"""The processes that train one run together, one per machine; most often just one.

All workers run the same command. TF_CONFIG contains the address of each worker and the
index of this one. The workers have equal weights and take each step together. Every
decision about a step, a checkpoint or a stop must therefore be the same on all of them.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from retinanet_tpu import errors, json_files, replicas
from retinanet_tpu.estimator import spec

# The tasks in TF_CONFIG that take steps; the first of them is the chief.
_JOBS = ("chief", "worker")


class LostError(ConnectionError):
    """Another worker did not connect or was lost; all workers must be restarted."""


# The errors of a worker when another worker died, was silent or restarted.
WORKER_LOST_ERRORS = (
    LostError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.UnavailableError,
)


class Workers:
    """The workers that train together, as one of them sees them.

    Attributes:
      count: The number of workers; 1 for every strategy on a single machine.
      index: The index of this worker.
      is_chief: Whether this worker is the one that writes files.
    """

    def __init__(
        self,
        count: int = 1,
        index: int = 0,
        gather_fn: Callable[[float], np.ndarray] | None = None,
    ):
        """Initializes the group.

        Args:
          count: The number of workers.
          index: The index of this worker.
          gather_fn: Returns the numbers of all workers, float64 [count], once all of
            them have called it. All workers must make the same calls. Not used by a
            single worker.
        """
        self.count = count
        self.index = index
        self.is_chief = index == 0
        self._gather_fn = gather_fn

    def gather(self, number: float) -> np.ndarray:
        """Returns the numbers of all workers, once all of them have called this.

        Args:
          number: The number of this worker.
        Returns:
          float64 [count], by index of the worker.
        Raises:
          LostError: A worker is lost.
        """
        if self._gather_fn is None or self.count == 1:
            return np.array([number], float)
        try:
            return self._gather_fn(number)
        except WORKER_LOST_ERRORS as error:
            raise LostError("Another worker was lost; restart all workers.") from error

    def check_connected(self) -> None:
        """Checks that no worker is lost, as far as this one knows.

        Raises:
          LostError: A worker is lost.
        """

    def close(self) -> None:
        """Disconnects from the others, once this worker has finished the run."""

    def any_worker(self, flag: bool) -> bool:
        """Returns True on all workers if the flag of any worker is True."""
        return bool(self.gather(flag).any())

    def wait(self) -> None:
        """Waits until all workers have called this."""
        self.gather(0)

    def check_alone(self) -> None:
        """Checks that there is a single worker, as evaluation requires.

        Raises:
          UserError: There are several workers.
        """
        if self.count > 1:
            raise errors.UserError(
                f"The run has {self.count} workers, which cannot evaluate; set "
                "TrainingPlan.evaluate_during_training = False and run evaluate.py "
                "as a sidecar."
            )

    def check_same(self, number: int, name: str) -> None:
        """Checks that all workers have the same number.

        Args:
          number: The number of this worker.
          name: The name of the number, with which the message starts.
        Raises:
          UserError: The numbers differ.
        """
        numbers = np.rint(self.gather(number)).astype(int)
        if len(set(numbers)) > 1:
            raise errors.UserError(
                f"{name} must be the same on all workers, but is {numbers.tolist()}, "
                "by worker. Start all with the same command and a --model_dir that all "
                "of them can read, such as gs://."
            )

    def synchronized_stop_reason(self, stop_reason: spec.StopReason) -> spec.StopReason:
        """Returns a function that has a reason on all workers if any worker has one.

        All workers must call it at the same time.

        Args:
          stop_reason: Returns why this worker is to stop, or None.
        """

        def synchronized() -> str | None:
            own = stop_reason()
            stopped = np.flatnonzero(self.gather(own is not None))
            if own is not None or not len(stopped):
                return own
            return f"worker {stopped[0]} was asked to stop"

        return synchronized


SINGLE_WORKER = Workers()


def make_workers(strategy: tf.distribute.Strategy) -> Workers:
    """Returns the workers of a tf.distribute strategy."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return SINGLE_WORKER
    resolver = strategy.cluster_resolver
    cluster = resolver.cluster_spec().as_dict()
    tasks = [(job, i) for job in _JOBS for i in range(len(cluster.get(job, ())))]
    index = tasks.index((resolver.task_type, resolver.task_id))
    mean_fn = tf.function(
        lambda values: strategy.run(replicas.cross_replica_mean, args=(values,))
    )

    def gather(number: float) -> np.ndarray:
        own = np.zeros([len(tasks)])
        own[index] = number
        # All replicas of a worker contribute the same vector. The mean over replicas is
        # therefore the sum over workers divided by their number.
        means = mean_fn(tf.constant(own))
        return strategy.experimental_local_results(means)[0].numpy() * len(tasks)

    return Workers(len(tasks), index, gather)


_EXAMPLE = (
    'Example for the first of two machines: {"cluster": {"worker": ["host0:12345", '
    '"host1:12345"]}, "task": {"type": "worker", "index": 0}}.'
)


class Members(NamedTuple):
    """The workers in TF_CONFIG.

    Attributes:
      addresses: The address of each worker, "host:port"; empty for a single worker.
      position: The index of this worker.
    """

    addresses: tuple[str, ...]
    position: int


def count_in_environment() -> int:
    """Returns the number of workers in TF_CONFIG, 1 if it is not set.

    Raises:
      UserError: TF_CONFIG is invalid or contains tasks that are not workers.
    """
    return max(1, len(members_in_environment().addresses))


def members_in_environment() -> Members:
    """Returns the workers in TF_CONFIG.

    Raises:
      UserError: TF_CONFIG is invalid or contains tasks that are not workers.
    """
    text = os.environ.get("TF_CONFIG") or "{}"
    try:
        config = json_files.parse(text, "TF_CONFIG")
        cluster = dict(config.get("cluster", {}))
        task = dict(config.get("task", {}))
        sizes = {job: len(addresses) for job, addresses in cluster.items() if addresses}
    except (ValueError, TypeError, AttributeError) as error:
        raise errors.UserError(
            f"TF_CONFIG is not the JSON of a cluster: {text}. {_EXAMPLE}"
        ) from error
    job = task.get("type")
    index = task.get("index")
    others = sorted({*sizes, *([job] if job else [])} - set(_JOBS))
    if others:
        raise errors.UserError(
            f"TF_CONFIG contains {others}; only {list(_JOBS)} train. There are no "
            "parameter servers; evaluate.py runs as a sidecar, without TF_CONFIG. "
            + _EXAMPLE
        )
    if sum(sizes.values()) <= 1:
        return Members((), 0)
    if not isinstance(index, int) or not 0 <= index < sizes.get(job, 0):
        raise errors.UserError(
            f"TF_CONFIG contains {job} {index} as this task, but the cluster has "
            f"{sizes}. {_EXAMPLE}"
        )
    tasks = [(j, i) for j in _JOBS for i in range(sizes.get(j, 0))]
    addresses = tuple(str(cluster[j][i]) for j, i in tasks)
    return Members(addresses, tasks.index((str(job), index)))
