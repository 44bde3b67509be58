"""Replaces `gcloud compute tpus tpu-vm`; the hosts of its slice are folders.

The scripts of tools/deploy/tpu_vm call it as a process. FAKE_CLOUD is a folder with
  calls        a line of JSON for each call
  state        the state of the slice
  host0, …     the home directories of its hosts
  bin          the first folder on their PATH
  error        if it exists, every call fails with its text
"""

import contextlib
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys

import repository

SCRIPTS = repository.ROOT / "tools" / "deploy" / "tpu_vm"
DEADLINE_SECS = 120
CLOUD = pathlib.Path(os.environ.get("FAKE_CLOUD", "absent"))

# Python on a host. It records its calls. If it imports TensorFlow, it exits with the
# code in the file `code_ends`. The check of its version fails if the file
# `python_is_old` exists. As a trainer it exits with the next code in the file `ends`.
# If that is "stopped", it waits for SIGTERM and exits as after a preemption.
PYTHON = f"""#!{sys.executable}
import json, os, pathlib, signal, sys
home = pathlib.Path.home()
names = ("TPU_NAME", "TPU_LOAD_LIBRARY", "NEXT_PLUGGABLE_DEVICE_USE_C_API")
seen = {{name: os.environ[name] for name in names if name in os.environ}}
with (home / "python_calls").open("a") as file:
    file.write(json.dumps([os.getcwd(), sys.argv[1:], seen]) + "\\n")
if "version_info" in sys.argv[-1]:
    sys.exit((home / "python_is_old").exists())
if "import tensorflow" in sys.argv[-1] and (home / "code_ends").exists():
    sys.exit(int((home / "code_ends").read_text()))
if sys.argv[1:3] == ["-m", "retinanet_tpu.train"]:
    end, *rest = (home / "ends").read_text().split()
    (home / "ends").write_text(" ".join(rest))
    print("training until", end, flush=True)
    if end == "stopped":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))
        (home / "trains").open("w").close()
        while True:
            signal.pause()
    sys.exit(int(end))
"""


def main(arguments: list[str]) -> int:
    """Runs one command; returns its exit code."""
    if (CLOUD / "error").exists():
        sys.exit((CLOUD / "error").read_text())
    with (CLOUD / "calls").open("a") as file:
        file.write(json.dumps(arguments) + "\n")
    assert arguments[:3] == ["compute", "tpus", "tpu-vm"], arguments
    command, *rest = arguments[3:]
    flags = dict(x[2:].partition("=")[::2] for x in rest if x.startswith("--"))
    names = [x for x in rest if not x.startswith("--")]
    state = CLOUD / "state"
    if command == "describe":
        if not state.exists():
            sys.exit("ERROR: (gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: no such")
        print(state.read_text())
    if command == "create":
        state.write_text("READY")
    elif command == "delete":
        state.unlink()
    elif command == "scp":
        for home in hosts(flags["worker"]):
            shutil.copy(names[0], home / names[1].partition(":")[2])
    elif command == "ssh":
        # gcloud passes the words to ssh, which joins them.
        script = " ".join(flags["command"].split(" "))
        return max(run(script, home) for home in hosts(flags["worker"]))
    return 0


def hosts(worker: str) -> list[pathlib.Path]:
    """Returns the home directories of the hosts given by --worker."""
    homes = sorted(CLOUD.glob("host*"))
    return homes if worker == "all" else [homes[int(worker)]]


def run(script: str, home: pathlib.Path) -> int:
    """Runs a shell script on a host; returns its exit code."""
    environment = {
        "HOME": str(home),
        "PATH": f"{CLOUD / 'bin'}:{os.environ['PATH']}",
        "RESTART_SECS": "0",
    }
    command = ["bash", "-c", script]
    return subprocess.run(command, cwd=home, env=environment).returncode


class Cloud:
    """A slice that this file serves, and the scripts of tools/deploy/tpu_vm for it."""

    def __init__(self, folder, flags, num_hosts=1):
        """Initializes the slice.

        Args:
          folder: The folder FAKE_CLOUD.
          flags: The flags of start.sh.
          num_hosts: The number of hosts.
        """
        self.folder = folder
        self._flags = flags
        self.hosts = [folder / f"host{i}" for i in range(num_hosts)]
        self.host = self.hosts[0]
        for path in (folder / "bin", folder / "local", *self.hosts):
            path.mkdir()
        for name in ("python3", "python3.12"):
            self._write(f"bin/{name}", PYTHON)
        here = pathlib.Path(__file__)
        self._write("local/gcloud", f'#!/bin/sh\nexec {sys.executable} {here} "$@"\n')
        self.settings = {
            "NAME": "big",
            "PROJECT": "mine",
            "ZONE": "us-east1-d",
            "ACCELERATOR_TYPE": "v3-8" if num_hosts == 1 else "v3-32",
            "RUNTIME_VERSION": "tpu-vm-tf-2.20.0"
            + ("-pod" * (num_hosts > 1))
            + "-pjrt",
        }

    def run(self, script, *arguments, **changes):
        """Runs a script; returns the finished process, with stderr in stdout."""
        settings = {k: v for k, v in (self.settings | changes).items() if v is not None}
        return subprocess.run(
            [str(SCRIPTS / script), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE_SECS,
            env=settings
            | {
                "PATH": f"{self.folder / 'local'}:{os.environ['PATH']}",
                "FAKE_CLOUD": str(self.folder),
            },
        )

    def install(self, *ends):
        """Creates the slice after setup.sh, and sets how the trainers of a host end."""
        (self.folder / "state").write_text("READY")
        for host in self.hosts:
            there = host / "retinanet_tpu" / "tools" / "deploy" / "tpu_vm"
            if not there.exists():
                shutil.copytree(SCRIPTS, there)
            (host / "ends").write_text(" ".join(ends))

    def start(self, hosts=None, **changes):
        """Runs start.sh with trainers that wait; returns once they run.

        Args:
          hosts: The hosts that run a trainer; None for the first.
          **changes: The settings that differ.
        """
        files = [host / "trains" for host in hosts or [self.host]]
        for file in files:
            os.mkfifo(file)
        readers = [os.open(file, os.O_RDONLY | os.O_NONBLOCK) for file in files]
        done = self.run("start.sh", *self._flags, **changes)
        for file, reader in zip(files, readers, strict=True):
            # After a writer has closed the file, its end can be read.
            assert select.select([reader], [], [], DEADLINE_SECS)[0], done.stdout
            os.close(reader)
            file.unlink()
        return done

    def calls(self):
        """Returns the commands so far, without the flags that all of them share."""
        if not (self.folder / "calls").exists():
            return []
        lines = (self.folder / "calls").read_text().splitlines()
        calls = [json.loads(line)[3:] for line in lines]
        location_flags = ["--project=mine", "--zone=us-east1-d"]
        assert all(set(location_flags) <= set(call) for call in calls)
        return [[word for word in call if word not in location_flags] for call in calls]

    def trainers(self, host=None):
        """Returns (folder, flags, environment variables) of each start of a trainer.

        Args:
          host: The host; None for the first.
        """
        lines = ((host or self.host) / "python_calls").read_text().splitlines()
        calls = [json.loads(line) for line in lines]
        return [
            (folder, words[2:], seen)
            for folder, words, seen in calls
            if words[:2] == ["-m", "retinanet_tpu.train"]
        ]

    def end(self):
        """Kills the trainers that still run."""
        for host in self.hosts:
            pid = host / "retinanet_tpu_run" / "pid"
            if pid.exists():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(int(pid.read_text()), signal.SIGKILL)

    def _write(self, name, text):
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
