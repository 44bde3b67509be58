"""Leases: a file each that says "I am at this", for as long as it goes on changing.

A reader's lease keeps the trainer from deleting a checkpoint; a scorer's tells other
scorers whose turn it is; a writer's keeps a file to one writer. They lie in
`DIRECTORY/leases/`. Who looks judges by his own monotonic clock whether a lease still
changes, so that no clocks are compared and a process that died holds nothing for long.
"""

import contextlib
import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator

import tensorflow as tf
from absl import logging

from retinanet_tpu.estimator.model_dir import checkpoints, files

_WRITE = "write"
# Other files in the directory are not leases: they are neither counted nor removed.
_NAME = re.compile(rf"(?:([0-9]+)-(.+)|{_WRITE})-[0-9a-f]+\.json")
RENEW_SECS = 3
# Five renewals missed: the holder died or stands still.
TIMEOUT_SECS = 15


class LeaseTable:
    """Who holds what in a directory, as seen by one observer."""

    def __init__(
        self,
        directory: str,
        timeout_secs: float = TIMEOUT_SECS,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Takes where to look and what counts as dead.

        Args:
          directory: the model_dir, for the leases on its checkpoints.
          timeout_secs: a lease that does not change for so long is removed.
          clock: the observer's own, in seconds; needs no relation to any other.
        """
        self._directory = f"{directory}/leases"
        self._timeout_secs, self._clock = timeout_secs, clock
        self._seen = {}

    def active_leases(self) -> list[str]:
        """Returns the names of the leases that may be held, and removes dead ones."""
        now, seen = self._clock(), {}
        for name in filter(_NAME.fullmatch, files.list_directory(self._directory)):
            content = _content(f"{self._directory}/{name}")
            before, since = self._seen.get(name, (None, now))
            if content is not None:
                seen[name] = (content, since if content == before else now)
        self._seen = seen
        dead = [n for n, (_, t) in seen.items() if now - t > self._timeout_secs]
        for name in dead:
            logging.warning("The holder of lease %s is gone; removing it", name)
            files.remove_file(f"{self._directory}/{name}")
        return sorted(seen.keys() - dead)

    def held_steps(
        self, own: Collection[str] = (), purposes: Collection[str] | None = None
    ) -> set[int]:
        """Returns the steps whose checkpoints others than the `own` leases hold.

        Args:
          own: The names of leases to leave out.
          purposes: The purposes that count; None for all.
        """
        names = [
            _NAME.fullmatch(name) for name in self.active_leases() if name not in own
        ]
        return {
            int(name[1])
            for name in names
            if name[1] and (purposes is None or name[2] in purposes)
        }


@contextlib.contextmanager
def lease_checkpoint(
    model_dir: str, checkpoint_path: str, purpose: str = "read"
) -> Iterator[str]:
    """Holds a lease on a checkpoint; yields its name `<step>-<purpose>-<id>.json`.

    The trainer may have looked just before: whether the checkpoint is still complete is
    to be asked after the lease is taken.

    Args:
      model_dir: where it lies.
      checkpoint_path: what is read.
      purpose: whoever counts the leases of one kind may name it.
    """
    step = checkpoints.step_of(checkpoint_path)
    with _lease(model_dir, f"{step}-{purpose}") as name:
        yield name


@contextlib.contextmanager
def directory_lock(
    directory: str, patience_secs: float = 10 * TIMEOUT_SECS
) -> Iterator[None]:
    """Makes the writers of a directory take turns.

    No file system needs to create files exclusively: whoever sees no other lease after
    writing his own is alone, because all others will see his. Who is not alone takes
    his back and tries again. It wants listings that show every finished write, as local
    file systems and gs:// give. A writer that stands still for TIMEOUT_SECS is taken
    for dead, and may then overwrite what another wrote meanwhile.

    Raises:
      TimeoutError: someone else wrote for all of patience_secs.
    """
    book = LeaseTable(directory, TIMEOUT_SECS)
    end = time.monotonic() + patience_secs
    while True:
        with _lease(directory, _WRITE) as name:
            if [n for n in book.active_leases() if n.startswith(_WRITE)] == [name]:
                yield
                return
        if time.monotonic() > end:
            raise TimeoutError(
                f"{directory}/leases was held by others for {patience_secs} s; end the "
                "other processes that write there."
            )
        time.sleep(random.uniform(0.01, 0.2))


@contextlib.contextmanager
def _lease(directory, kind):
    """Writes a file and goes on changing it, until the block ends."""
    name = f"{kind}-{uuid.uuid4().hex[:12]}.json"
    path = f"{directory}/leases/{name}"
    tf.io.gfile.makedirs(f"{directory}/leases")
    ended = threading.Event()
    thread = threading.Thread(target=_renew, args=(path, ended), daemon=True)
    try:
        _write(path, 0)
        thread.start()
        yield name
    finally:
        ended.set()
        if thread.ident:
            thread.join()  # Or a last renewal would bring the file back.
        files.remove_file(path)


def _renew(path, ended):
    beat = 0
    while not ended.wait(RENEW_SECS):
        beat += 1
        try:
            _write(path, beat)
        except tf.errors.OpError as error:
            logging.warning("Could not renew the lease %s: %s", path, error)


def _write(path, beat):
    # No rename: all that counts is that the content differs from the one before, and
    # it does so half written, or appended to, as "w" does on ram://.
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(f'{{"beat": {beat}}}\n')


def _content(path):
    """Returns what a lease says, None if it was given back meanwhile."""
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return file.readlines()  # read() would ask gs:// for a cached length.
    except (tf.errors.NotFoundError, tf.errors.FailedPreconditionError):
        return None  # The latter is a directory's.
