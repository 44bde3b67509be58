"""TPUs by name: looks one up in Google Cloud, and waits until it can be used.

It reads and no more, unless the caller allows a change of version: a TPU may be at work
for somebody else.
"""

import re
import time
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf
from absl import logging

from retinanet_tpu import errors

try:  # Of the extra [tpu]; a TPU VM does without for its own TPU.
    import cloud_tpu_client
    import httplib2
    import oauth2client.client
    from googleapiclient import errors as api_errors
except ImportError:
    cloud_tpu_client = None

# A TPU takes minutes to come, and each look is some ten requests.
POLL_SECS = 20
# Of a TPU Node "2.12.0", of a TPU VM "tpu-vm-tf-2.12.0-pod"; other names say nothing.
_VERSION = re.compile(r"(?:tpu-vm-tf-)?((\d+\.\d+)[.\d]*)")
_DELETED = "deleted"
_MAKE = ("create", "makes it anew, with --accelerator-type and --version as before")
_CLEAR = ("delete", "clears it away; then create it anew under the same name")
# What waiting does not mend: the gcloud command that does.
_REMEDIES = {
    "STOPPED": ("start", "starts it"),
    "STOPPING": ("start", "starts it, once it has stopped"),
    "PREEMPTED": _CLEAR,
    "TERMINATED": _CLEAR,
    "DELETING": _MAKE,
    _DELETED: _MAKE,
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

    A TPU that is preempted or stopped may be made anew by somebody meanwhile, so that
    is waited for too; the log says how.

    Args:
      name: of a TPU Node or of a TPU VM's slice.
      zone: where it is; None for that of this VM.
      project: whose it is; None for that of this VM.
      wait_secs: the longest to wait, and again after a change of version; 0 looks once.
      may_change_version: a TPU Node that runs another TensorFlow is restarted with
        ours, which ends whatever runs on it.
      clock: returns seconds.
      sleep: waits for so many seconds.
    Returns:
      "grpc://HOST:PORT", several with commas between; TPUClusterResolver takes it.
    Raises:
      UserError: cloud-tpu-client is missing; no such TPU; no credentials for it; its
        TensorFlow is not ours.
      TimeoutError: it was not ready in time.
    """
    node = _Node(name, zone, project)
    status = _wait(node, wait_secs, may_change_version, clock, sleep)
    if not _agrees(status.version):
        node.change_version()
        status = _wait(node, wait_secs, may_change_version, clock, sleep)
    logging.info("TPU '%s' is ready at %s", name, status.address)
    if not _VERSION.match(status.version):
        logging.warning(
            "TPU '%s' runs '%s', which names no version of TensorFlow; this program "
            "has %s, and they must agree.",
            name,
            status.version,
            tf.__version__,
        )
    return status.address


def _wait(node, wait_secs, may_change_version, clock, sleep):
    """Returns the _Status of a TPU that is ready."""
    end = clock() + wait_secs
    while True:
        status = node.look_up()
        if not _agrees(status.version):
            node.check_may_change(status.version, may_change_version)
        if status.address:
            return status
        left = end - clock()
        if left <= 0:
            raise TimeoutError(
                f"TPU '{node.name}' was not ready in {wait_secs:.0f} s: {status.text}. "
                f"{node.remedy(status.state)}; make_strategy.tpu_wait_secs is how long "
                "to wait."
            )
        hint = node.remedy(status.state) if status.state in _REMEDIES else ""
        logging.warning(
            "TPU '%s': %s; waiting %.0f s more. %s", node.name, status.text, left, hint
        )
        sleep(min(POLL_SECS, left))


class _Status(NamedTuple):
    """What the API says at one moment."""

    state: str | None = None  # As the API names it; None without an answer.
    text: str = ""  # State and health, or why there was no answer.
    version: str = ""  # Of the TPU's software.
    address: str = ""  # Once it is ready.


class _Node:
    """A TPU, as the Cloud TPU API tells of it."""

    def __init__(self, name, zone, project):
        """Raises UserError where it cannot be asked for."""
        if cloud_tpu_client is None:
            raise errors.UserError(
                f"TPU '{name}' is looked up by cloud-tpu-client, which is missing: "
                "pip install -e '.[tpu]'; or set make_strategy.tpu to 'local' or to "
                "grpc://HOST:8470."
            )
        if not name:
            raise errors.UserError(
                "make_strategy.tpu is empty; use 'local', a TPU's name or grpc://…"
            )
        try:
            self._client = cloud_tpu_client.Client(name, zone, project)
        except OSError as error:
            raise errors.UserError(
                f"This machine does not know where TPU '{name}' is ({error}); set "
                "make_strategy.tpu_zone and make_strategy.tpu_project."
            ) from error
        self.name, self._is_node, self._was_seen = name, False, False
        self._place = f" --zone={zone}" * bool(zone)
        self._place += f" --project={project}" * bool(project)

    def look_up(self):
        """Returns its _Status; raises ValueError for what waiting cannot mend."""
        client = self._client
        try:
            state, health = client.state(), client.health()
            version = client.runtime_version() or "unknown"
            # TPU VMs need not report their health.
            is_ready = state == "READY" and health in ("HEALTHY", None)
            address = _address(client.network_endpoints()) if is_ready else ""
        except Exception as error:  # The client hides what happened in a ValueError.
            return self._explain(error)
        self._was_seen, self._is_node = True, version[0].isdigit()
        return _Status(state, f"{state}, health {health}", version, address)

    def remedy(self, state):
        """Returns the gcloud command to run in a state."""
        verb, effect = _REMEDIES.get(state, ("describe", "shows more"))
        return f"`{self._gcloud(verb, self.name)}` {effect}"

    def check_may_change(self, version, is_allowed):
        """Raises UserError for another version that is to stay, or has to."""
        if is_allowed and self._is_node:
            return
        ours, theirs = tf.__version__, _VERSION.match(version)
        text = (
            f"TPU '{self.name}' runs TensorFlow {theirs[1]}, this program {ours}, and "
            f"they must agree. Install tensorflow~={theirs[2]}.0 here, or make the TPU "
            f"anew with --version={version.replace(theirs[1], ours)}"
        )
        if self._is_node:
            text += (
                ", or set make_strategy.may_change_tpu_version = True, which restarts "
                "the TPU and ends whatever runs on it"
            )
        raise errors.UserError(f"{text}.")

    def change_version(self):
        """Restarts the TPU with our TensorFlow."""
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
                f"TPU '{self.name}' did not take TensorFlow {tf.__version__}: {error} "
                f"{self.remedy(None)}."
            ) from error

    def _gcloud(self, verb, *names):
        group = "tpus" if self._is_node else "tpus tpu-vm"
        return " ".join(["gcloud compute", group, verb, *names]) + self._place

    def _explain(self, error):
        """Returns the _Status of an error that may pass; raises for another."""
        is_wrapped = isinstance(error, ValueError) and error.__context__
        cause = error.__context__ if is_wrapped else error
        code = getattr(getattr(cause, "resp", None), "status", None)
        if isinstance(cause, oauth2client.client.Error):
            raise errors.UserError(
                f"No credentials to look up TPU '{self.name}' with: {cause} Run "
                "`gcloud auth application-default login`, or give this VM's service "
                "account the role roles/tpu.viewer and the scope cloud-platform."
            ) from error
        if code in (401, 403):
            raise errors.UserError(
                f"Google Cloud does not let this account see TPU '{self.name}': "
                f"{cause}. It needs the role roles/tpu.viewer, and the project "
                "`gcloud services enable tpu.googleapis.com`."
            ) from error
        if code == 404 and self._was_seen:
            return _Status(_DELETED, _DELETED)
        if code in (400, 404):
            raise errors.UserError(
                f"There is no TPU '{self.name}': {cause}. "
                f"`{self._gcloud('list')}` shows those there are; set "
                "make_strategy.tpu, make_strategy.tpu_zone and "
                "make_strategy.tpu_project."
            ) from error
        passing = (api_errors.Error, httplib2.HttpLib2Error, OSError, RuntimeError)
        if isinstance(cause, passing):
            return _Status(text=f"no answer ({cause})")
        raise error


def _agrees(version):
    """Tells whether a TPU runs our release, or does not say what it runs."""
    theirs = _VERSION.match(version)
    return not theirs or theirs[2] == _VERSION.match(tf.__version__)[2]


def _address(endpoints):
    hosts = (f"{endpoint['ipAddress']}:{endpoint['port']}" for endpoint in endpoints)
    return ",".join(f"grpc://{host}" for host in hosts)
