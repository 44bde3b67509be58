"""The processes that train one run together, on one machine each; most often just one.

All run the same command; TF_CONFIG tells each of them who they are. They hold the same
weights and take each step together, so that whatever decides over a step, a save or a
stop must come out the same on all of them.
"""

import os
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from retinanet_tpu import errors, json_files, replicas

# Of TF_CONFIG's kinds of tasks those that take steps; the first of them is the chief.
_JOBS = ("chief", "worker")


class LostError(ConnectionError):
    """Another worker did not come, or is gone; all must be started again."""


# What a run ends in where a worker died, went silent or began anew.
WORKER_LOST_ERRORS = (
    LostError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.UnavailableError,
)


class Workers:
    """The workers of a strategy, as one of them sees them; without one it is alone.

    Attributes:
      count: of processes; 1 for every strategy that is not of several machines.
      index: of this one among them.
      is_chief: whether it is the one that writes.
    """

    def __init__(self, strategy: tf.distribute.Strategy | None = None):
        """Takes the strategy, under which all workers make the same calls."""
        self.count, self.index = 1, 0
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            resolver = strategy.cluster_resolver
            cluster = resolver.cluster_spec().as_dict()
            tasks = [
                (job, i) for job in _JOBS for i in range(len(cluster.get(job, ())))
            ]
            self.count = len(tasks)
            self.index = tasks.index((resolver.task_type, resolver.task_id))
        self.is_chief = self.index == 0
        self._exchange = tf.function(
            lambda values: strategy.run(replicas.cross_replica_mean, args=(values,))
        )
        self._strategy = strategy

    def gather(self, number: float) -> np.ndarray:
        """Returns every worker's number, float64 [count], once all have called this.

        Raises:
          LostError: a worker is gone.
        """
        own = np.zeros([self.count])
        own[self.index] = number
        if self.count == 1:
            return own
        # Replicas of one worker all give its number, so their mean is a count-th of it.
        try:
            means = self._exchange(tf.constant(own))
        except WORKER_LOST_ERRORS as error:
            raise LostError("Another worker was lost; start all again.") from error
        first = self._strategy.experimental_local_results(means)[0]
        return first.numpy() * self.count

    def any_worker(self, flag: bool) -> bool:
        """Tells whether the flag of any worker is set."""
        return bool(self.gather(flag).any())

    def wait(self) -> None:
        """Waits until all workers are here."""
        self.gather(0)

    def check_alone(self) -> None:
        """Raises UserError where there are several workers: scoring knows but one."""
        if self.count > 1:
            raise errors.UserError(
                f"The run has {self.count} workers, which do not score; set "
                "TrainingPlan.evaluate_during_training = False, and run evaluate.py beside it."
            )

    def check_same(self, number: int, what: str) -> None:
        """Checks that all workers have the same number.

        Raises:
          UserError: they do not; `what` begins the sentence.
        """
        found = np.rint(self.gather(number)).astype(int)
        if len(set(found)) > 1:
            raise errors.UserError(
                f"{what} must be the same on all workers, but is {found.tolist()}, by "
                "worker. Start all with the same command and a --model_dir that all "
                "of them read, such as gs://."
            )

    def synchronized_stop_reason(
        self, stop_reason: Callable
    ) -> Callable[[], str | None]:
        """Returns a stop_reason that has the same answer on all, if all ask it at once.

        Args:
          stop_reason: why this worker is to stop, None if it is not.
        """

        def reason():
            own = stop_reason()
            asked = np.flatnonzero(self.gather(own is not None))
            if own is not None or not len(asked):
                return own
            return f"worker {asked[0]} was asked to stop"

        return reason


SINGLE_WORKER = Workers()


def count_in_environment() -> int:
    """Returns how many workers TF_CONFIG names, 1 where it is not set.

    Raises:
      UserError: it makes no sense, or names what is no worker.
    """
    text = os.environ.get("TF_CONFIG") or "{}"
    try:
        config = json_files.parse(text, "TF_CONFIG")
        cluster, task = dict(config.get("cluster", {})), dict(config.get("task", {}))
        sizes = {job: len(addresses) for job, addresses in cluster.items() if addresses}
    except (ValueError, TypeError, AttributeError) as error:
        raise errors.UserError(
            f"TF_CONFIG is no JSON of a cluster: {text}. {_HELP}"
        ) from error
    job, index = task.get("type"), task.get("index")
    others = sorted({*sizes, *([job] if job else [])} - set(_JOBS))
    if others:
        raise errors.UserError(
            f"TF_CONFIG has {others}; only {list(_JOBS)} train. There are no parameter "
            "servers here, and evaluate.py scores beside the run, without TF_CONFIG. "
            + _HELP
        )
    if sum(sizes.values()) <= 1:
        return 1
    if not isinstance(index, int) or not 0 <= index < sizes.get(job, 0):
        raise errors.UserError(
            f"TF_CONFIG says that this is {job} {index}, but the cluster has {sizes}. "
            + _HELP
        )
    return sum(sizes.values())


_HELP = (
    'Of two machines the first has {"cluster": {"worker": ["host0:12345", '
    '"host1:12345"]}, "task": {"type": "worker", "index": 0}}.'
)
