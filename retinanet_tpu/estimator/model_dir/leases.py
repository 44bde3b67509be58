"""Lease files. A lease is held as long as its holder keeps rewriting the file.

Leases are in `DIRECTORY/leases/` and have three uses:
  * The lease of a reader prevents the trainer from deleting a checkpoint.
  * The lease of a sidecar shows other sidecars which checkpoint it evaluates.
  * The lease of a writer gives one writer at a time access to a directory.

An observer decides by its own monotonic clock whether a lease still changes. The clocks
of two machines are therefore never compared, and a process that died does not hold a
lease for long.
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
# Five missed renewals: the holder has died or is blocked.
TIMEOUT_SECS = 15


class LeaseTable:
    """The leases of a directory, as one observer sees them."""

    def __init__(
        self,
        directory: str,
        timeout_secs: float = TIMEOUT_SECS,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Initializes the table.

        Args:
          directory: The directory that the leases belong to. It is the model_dir for
            leases on checkpoints.
          timeout_secs: The time without a change after which a lease is removed, in
            seconds.
          clock: Returns the time in seconds; it needs no relation to other clocks.
        """
        self._directory = f"{directory}/leases"
        self._timeout_secs = timeout_secs
        self._clock = clock
        # The content of each lease, and the time at which it was seen to change.
        self._seen: dict[str, tuple[list[bytes], float]] = {}

    def active_leases(self) -> list[str]:
        """Returns the names of active leases, and removes expired ones."""
        now = self._clock()
        seen: dict[str, tuple[list[bytes], float]] = {}
        for name in filter(_NAME.fullmatch, files.list_directory(self._directory)):
            content = _content(f"{self._directory}/{name}")
            if content is None:
                continue
            before, since = self._seen.get(name, (content, now))
            seen[name] = (content, since if content == before else now)
        self._seen = seen
        expired = [n for n, (_, t) in seen.items() if now - t > self._timeout_secs]
        for name in expired:
            logging.warning("Lease %s has expired; removing it", name)
            files.remove_file(f"{self._directory}/{name}")
        return sorted(seen.keys() - expired)

    def held_steps(
        self, own: Collection[str] = (), purposes: Collection[str] | None = None
    ) -> set[int]:
        """Returns the steps of the checkpoints on which others hold leases.

        Args:
          own: The names of the caller's leases, which are omitted.
          purposes: The purposes that count; None for all.
        """
        matches = [_NAME.fullmatch(n) for n in self.active_leases() if n not in own]
        return {
            int(match[1])
            for match in matches
            if match and match[1] and (purposes is None or match[2] in purposes)
        }


@contextlib.contextmanager
def lease_checkpoint(
    model_dir: str, checkpoint_path: str, purpose: str = "read"
) -> Iterator[str]:
    """Holds a lease on a checkpoint; yields its name `<step>-<purpose>-<id>.json`.

    The trainer may have listed the leases just before. The caller must therefore check
    that the checkpoint is still complete, after it has the lease.

    Args:
      model_dir: The directory of the checkpoint.
      checkpoint_path: The path prefix of the checkpoint.
      purpose: A word in the name of the lease, see `LeaseTable.held_steps`.
    """
    step = checkpoints.step_of(checkpoint_path)
    with _lease(model_dir, f"{step}-{purpose}") as name:
        yield name


@contextlib.contextmanager
def lease_if_of_run(model_dir: str, checkpoint_path: str) -> Iterator[None]:
    """Holds a lease on a checkpoint, unless it is outside the model_dir.

    Args:
      model_dir: The directory of the run.
      checkpoint_path: The path prefix of the checkpoint.
    """
    if checkpoint_path.rpartition("/")[0] != model_dir:
        yield
        return
    with lease_checkpoint(model_dir, checkpoint_path):
        yield


@contextlib.contextmanager
def directory_lock(
    directory: str, patience_secs: float = 10 * TIMEOUT_SECS
) -> Iterator[None]:
    """Holds the lock of a directory, which one writer at a time can have.

    The file system need not support exclusive creation of files. A writer first writes
    its lease, then lists the leases. If there is no other, it has the lock, because all
    other writers will see its lease. Otherwise it removes its lease and retries.

    Listings must contain every finished write, as on local file systems and gs://. A
    writer that is blocked for TIMEOUT_SECS loses the lock. It may then overwrite what
    another process wrote meanwhile.

    Args:
      directory: The directory to write to.
      patience_secs: The longest time to wait for the lock, in seconds.
    Raises:
      TimeoutError: Other writers held the lock for all of patience_secs.
    """
    table = LeaseTable(directory, TIMEOUT_SECS)
    end = time.monotonic() + patience_secs
    while True:
        with _lease(directory, _WRITE) as name:
            if [n for n in table.active_leases() if n.startswith(_WRITE)] == [name]:
                yield
                return
        if time.monotonic() > end:
            raise TimeoutError(
                f"{directory}/leases was held by others for {patience_secs} s; end the "
                "other processes that write there."
            )
        time.sleep(random.uniform(0.01, 0.2))


@contextlib.contextmanager
def _lease(directory: str, kind: str) -> Iterator[str]:
    """Writes a lease and renews it until the block ends; yields its name."""
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
            thread.join()  # A later renewal would create the file again.
        files.remove_file(path)


def _renew(path: str, ended: threading.Event) -> None:
    beat = 0
    while not ended.wait(RENEW_SECS):
        beat += 1
        try:
            _write(path, beat)
        except tf.errors.OpError as error:
            logging.warning("Could not renew the lease %s: %s", path, error)


def _write(path: str, beat: int) -> None:
    # Without a rename: it suffices that the content changes. It also does if it is
    # half written, or appended to, as mode "w" does on ram://.
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(f'{{"beat": {beat}}}\n')


def _content(path: str) -> list[bytes] | None:
    """Returns the lines of a lease, or None if it was removed meanwhile."""
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return file.readlines()  # read() uses a cached length on gs://.
    except (tf.errors.NotFoundError, tf.errors.FailedPreconditionError):
        return None  # FailedPreconditionError: the path is a directory.
