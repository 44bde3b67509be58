"""Finds a TPU in Google Cloud by its name and waits until it is ready.

Somebody else may be using the TPU. This module therefore only reads its state, unless
the caller allows a change of its version.
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf
from absl import logging

from retinanet_tpu import errors

try:  # In the extra [tpu]; a TPU VM does not need it for its own TPU.
    import cloud_tpu_client
    import httplib2
    import oauth2client.client
    from googleapiclient import errors as api_errors
except ImportError:
    cloud_tpu_client = None

# Creating a TPU takes minutes, and each poll makes about ten requests.
POLL_SECS = 20
# A TPU Node has a version like "2.12.0", a TPU VM one like "tpu-vm-tf-2.12.0-pod".
# Other names contain no version of TensorFlow.
_VERSION = re.compile(r"(?:tpu-vm-tf-)?((\d+\.\d+)[.\d]*)")
_DELETED = "deleted"
_CREATE = ("create", "recreates it, with the same --accelerator-type and --version")
_DELETE = ("delete", "deletes it; then create it again with the same name")
# The gcloud commands for the states that do not end by themselves, with their effects.
_REMEDIES = {
    "STOPPED": ("start", "starts it"),
    "STOPPING": ("start", "starts it, once it has stopped"),
    "PREEMPTED": _DELETE,
    "TERMINATED": _DELETE,
    "DELETING": _CREATE,
    _DELETED: _CREATE,
}


def wait_until_ready(
    name: str,
    *,
    zone: str | None = None,
    project: str | None = None,
    wait_secs: float = 1200,
    may_change_version: bool = False,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Returns the addresses of a TPU's hosts, once it is ready and healthy.

    The function also waits for a TPU that is preempted or stopped, because somebody may
    recreate it meanwhile. The log contains the command that does so.

    Args:
      name: The name of a TPU Node or of a slice of TPU VMs.
      zone: The zone; None for the zone of this VM.
      project: The project; None for the project of this VM.
      wait_secs: The longest time to wait, in seconds; the wait is repeated after a
        change of the version. 0 polls once.
      may_change_version: Whether a TPU Node that runs another version of TensorFlow may
        be restarted with ours, which ends all programs on it.
      clock: Returns the time in seconds.
      sleep: Waits for the given seconds.
    Returns:
      The addresses "grpc://HOST:PORT", separated by commas, for TPUClusterResolver.
    Raises:
      UserError: cloud-tpu-client is missing, the TPU does not exist, there are no
        credentials for it, or its version of TensorFlow differs from ours.
      TimeoutError: The TPU was not ready in time.
    """
    node = _Node(name, zone, project)
    status = _wait(node, wait_secs, may_change_version, clock, sleep)
    if not _agrees(status.version):
        node.change_version()
        status = _wait(node, wait_secs, may_change_version, clock, sleep)
    logging.info("TPU '%s' is ready at %s", name, status.address)
    if _numbers(status.version) is None:
        logging.warning(
            "TPU '%s' runs '%s', which names no version of TensorFlow; it must agree "
            "with the version of this program, %s.",
            name,
            status.version,
            tf.__version__,
        )
    return status.address


def _wait(
    node: "_Node",
    wait_secs: float,
    may_change_version: bool,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> "_Status":
    """Waits until a TPU is ready; returns its status."""
    end = clock() + wait_secs
    while True:
        status = node.look_up()
        if not _agrees(status.version):
            node.check_may_change(status.version, may_change_version)
        if status.address:
            return status
        remaining_secs = end - clock()
        if remaining_secs <= 0:
            raise TimeoutError(
                f"TPU '{node.name}' was not ready in {wait_secs:.0f} s: {status.text}. "
                f"{node.remedy(status.state)}; make_strategy.tpu_wait_secs is the "
                "longest time to wait."
            )
        hint = node.remedy(status.state) if status.state in _REMEDIES else ""
        logging.warning(
            "TPU '%s': %s; waiting %.0f s more. %s",
            node.name,
            status.text,
            remaining_secs,
            hint,
        )
        sleep(min(POLL_SECS, remaining_secs))


class _Status(NamedTuple):
    """The status of a TPU at one time.

    Attributes:
      state: The state in the terms of the API; None without an answer.
      text: The state and health, or why there was no answer.
      version: The version of the TPU's software.
      address: The addresses of the hosts; "" unless the TPU is ready.
    """

    state: str | None = None
    text: str = ""
    version: str = ""
    address: str = ""


class _Node:
    """A TPU in the Cloud TPU API."""

    def __init__(self, name: str, zone: str | None, project: str | None):
        """Initializes the client; raises UserError if it cannot look up the TPU."""
        if cloud_tpu_client is None:
            raise errors.UserError(
                f"Looking up TPU '{name}' requires cloud-tpu-client, which is not "
                "installed: pip install -e '.[tpu]'; or set make_strategy.tpu to "
                "'local' or to grpc://HOST:8470."
            )
        if not name:
            raise errors.UserError(
                "make_strategy.tpu is empty; use 'local', a TPU's name or grpc://…"
            )
        try:
            self._client = cloud_tpu_client.Client(name, zone, project)
        except OSError as error:
            raise errors.UserError(
                f"This machine has no default zone and project for TPU '{name}' "
                f"({error}); set make_strategy.tpu_zone and make_strategy.tpu_project."
            ) from error
        self.name = name
        self._is_node = False
        self._was_seen = False
        self._location_flags = f" --zone={zone}" * bool(zone)
        self._location_flags += f" --project={project}" * bool(project)

    def look_up(self) -> _Status:
        """Returns the status; raises UserError if waiting cannot help."""
        client = self._client
        try:
            state, health = client.state(), client.health()
            version = client.runtime_version() or "unknown"
            # TPU VMs need not report their health.
            is_ready = state == "READY" and health in ("HEALTHY", None)
            address = _address(client.network_endpoints()) if is_ready else ""
        except Exception as error:  # The client wraps the cause in a ValueError.
            return self._explain(error)
        self._was_seen, self._is_node = True, version[0].isdigit()
        return _Status(state, f"{state}, health {health}", version, address)

    def remedy(self, state: str | None) -> str:
        """Returns the gcloud command to run in a state, and its effect."""
        verb, effect = _REMEDIES.get(state or "", ("describe", "shows more"))
        return f"`{self._gcloud(verb, self.name)}` {effect}"

    def check_may_change(self, version: str, is_allowed: bool) -> None:
        """Raises UserError for a version that may not or cannot be changed."""
        if is_allowed and self._is_node:
            return
        ours = tf.__version__
        number, release = _numbers(version) or (version, version)
        text = (
            f"TPU '{self.name}' runs TensorFlow {number}, this program {ours}, and "
            f"they must agree. Install tensorflow~={release}.0 here, or recreate the "
            f"TPU with --version={version.replace(number, ours)}"
        )
        if self._is_node:
            text += (
                ", or set make_strategy.may_change_tpu_version = True, which restarts "
                "the TPU and ends all programs on it"
            )
        raise errors.UserError(f"{text}.")

    def change_version(self) -> None:
        """Restarts the TPU with this program's version of TensorFlow."""
        logging.warning(
            "Restarting TPU '%s' with TensorFlow %s: "
            "make_strategy.may_change_tpu_version is True.",
            self.name,
            tf.__version__,
        )
        try:
            self._client.configure_tpu_version(tf.__version__, restart_type="ifNeeded")
        except Exception as error:  # The client raises no other type.
            raise errors.UserError(
                f"TPU '{self.name}' did not accept TensorFlow {tf.__version__}: "
                f"{error} {self.remedy(None)}."
            ) from error

    def _gcloud(self, verb: str, *names: str) -> str:
        group = "tpus" if self._is_node else "tpus tpu-vm"
        return " ".join(["gcloud compute", group, verb, *names]) + self._location_flags

    def _explain(self, error: Exception) -> _Status:
        """Returns the status for a transient error; raises for any other error."""
        is_wrapped = isinstance(error, ValueError) and error.__context__
        cause = error.__context__ if is_wrapped else error
        code = getattr(getattr(cause, "resp", None), "status", None)
        if isinstance(cause, oauth2client.client.Error):
            raise errors.UserError(
                f"No credentials to look up TPU '{self.name}': {cause} Run "
                "`gcloud auth application-default login`, or give this VM's service "
                "account the role roles/tpu.viewer and the scope cloud-platform."
            ) from error
        if code in (401, 403):
            raise errors.UserError(
                f"Google Cloud denies this account access to TPU '{self.name}': "
                f"{cause}. The account needs the role roles/tpu.viewer. The project "
                "needs `gcloud services enable tpu.googleapis.com`."
            ) from error
        if code == 404 and self._was_seen:
            return _Status(_DELETED, _DELETED)
        if code in (400, 404):
            raise errors.UserError(
                f"There is no TPU '{self.name}': {cause}. "
                f"`{self._gcloud('list')}` lists the existing ones; set "
                "make_strategy.tpu, make_strategy.tpu_zone and "
                "make_strategy.tpu_project."
            ) from error
        transient = (api_errors.Error, httplib2.HttpLib2Error, OSError, RuntimeError)
        if isinstance(cause, transient):
            return _Status(text=f"no answer ({cause})")
        raise error


def _numbers(version: str) -> tuple[str, str] | None:
    """Returns the version and release of TensorFlow, such as 2.12.1 and 2.12."""
    match = _VERSION.match(version)
    return (match[1], match[2]) if match else None


def _agrees(version: str) -> bool:
    """Returns True if a TPU runs our release, or if its release is unknown."""
    theirs, ours = _numbers(version), _numbers(tf.__version__)
    return theirs is None or ours is None or theirs[1] == ours[1]


def _address(endpoints: Iterable[Mapping[str, Any]]) -> str:
    hosts = (f"{endpoint['ipAddress']}:{endpoint['port']}" for endpoint in endpoints)
    return ",".join(f"grpc://{host}" for host in hosts)
