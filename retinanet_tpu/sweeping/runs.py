"""Runs the variants of a sweep, each in a process of its own."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf
from absl import logging

from retinanet_tpu import errors, exit_codes, json_files
from retinanet_tpu.estimator import summaries
from retinanet_tpu.estimator.model_dir import files, run_state

_COST_FILE = "sweep_cost.json"


class Run(NamedTuple):
    """A run of a sweep.

    Attributes:
      sweep_dir: The directory of the sweep.
      variant: The name of the variant.
      seed: The seed.
    """

    sweep_dir: str
    variant: str
    seed: int

    @property
    def name(self) -> str:
        """Returns VARIANT/SEED."""
        return f"{self.variant}/{self.seed}"

    @property
    def model_dir(self) -> str:
        """Returns the directory of the run."""
        return f"{self.sweep_dir}/{self.name}"

    @property
    def log(self) -> str:
        """Returns the file of the messages of all its processes."""
        return f"{self.model_dir}.log"

    def is_finished(self) -> bool:
        """Returns whether all steps are trained and saved."""
        state = run_state.read(self.model_dir)
        return state is not None and state.state == run_state.FINISHED

    def is_done(self, split: str | None) -> bool:
        """Returns whether the run is finished and, on a split, evaluated."""
        return self.is_finished() and (split is None or self.result(split) is not None)

    def cpu_minutes(self) -> float:
        """Returns the CPU time of all its trainers, in minutes."""
        content = files.read_if_there(f"{self.model_dir}/{_COST_FILE}")
        return 0.0 if content is None else float(json.loads(content)["cpu_minutes"])

    def result(self, split: str | None) -> dict[str, Any] | None:
        """Returns the last record of its evaluations, or None if there is none.

        Args:
          split: The split of an evaluation after the run; None for those during it.
        """
        folder = f"{self.model_dir}/eval" + (f"_{split}" if split else "")
        records = summaries.read_evaluations(folder)
        return max(records, key=lambda r: r["global_step"]) if records else None


def read_variants(path: str) -> dict[str, list[str]]:
    """Returns the gin settings of each variant, by name.

    Args:
      path: A JSON file.
    Raises:
      UserError: The content is no map of names to lists of strings; or a name is not
        that of a directory.
    """
    content = json_files.read(path)
    if not isinstance(content, dict) or not content:
        raise errors.UserError(
            f"{path} must be an object that maps names of variants to lists of gin "
            'settings, such as {"short": ["MAX_STEPS = 100"]}.'
        )
    for name, settings in content.items():
        if not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
            raise errors.UserError(
                f"{path}: the variant {name!r} names a directory; use letters, digits "
                "and _ . + - only."
            )
        is_list = isinstance(settings, list)
        if not is_list or not all(isinstance(s, str) for s in settings):
            raise errors.UserError(
                f"{path}: the variant {name!r} must be a list of gin settings, such as "
                f'["MAX_STEPS = 100"]; got {settings!r}.'
            )
    return content


def finish(run: Run, flag_values: Sequence[str], split: str | None) -> None:
    """Trains a run to its end, and evaluates it; messages go to its log.

    Nothing is done twice: a finished run is not trained, and a run with a result is not
    evaluated.

    Args:
      run: The run.
      flag_values: The flags of its trainer, without model_dir and seed.
      split: The split to evaluate after the run, or None.
    """
    tf.io.gfile.makedirs(os.path.dirname(run.model_dir))
    if not run.is_finished():
        logging.info("%s: training; messages are in %s", run.name, run.log)
        minutes = run.cpu_minutes()
        code, used = _start(
            run, "train", *flag_values, f"--gin_param=SEED = {run.seed}"
        )
        cost = json.dumps({"cpu_minutes": minutes + used})
        if tf.io.gfile.isdir(run.model_dir):
            files.write_whole(f"{run.model_dir}/{_COST_FILE}", cost)
        if code == exit_codes.ExitCode.PREEMPTED:
            sys.exit(code)  # This process is to be stopped, too.
        if code != exit_codes.ExitCode.OK:
            logging.error(
                "%s failed with exit code %d; see %s", run.name, code, run.log
            )
            return
    if split is not None and run.result(split) is None:
        logging.info("%s: evaluating on %s", run.name, split)
        code, _ = _start(run, "evaluate", "--once", f"--split={split}")
        if code != exit_codes.ExitCode.OK:
            logging.error("%s: exit code %d; see %s", run.name, code, run.log)


def _start(run: Run, command: str, *flag_values: str) -> tuple[int, float]:
    """Runs a command; returns its exit code and its CPU time in minutes."""
    module = f"retinanet_tpu.{command}"
    model_dir = f"--model_dir={run.model_dir}"
    with open(run.log, "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", module, model_dir, *flag_values],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, (usage.ru_utime + usage.ru_stime) / 60
