"""Trains and evaluates the runs of a sweep."""

import json
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from retinanet_tpu import errors, json_files
from retinanet_tpu.estimator import summaries
from retinanet_tpu.estimator.model_dir import files, run_state
from retinanet_tpu.sweeping import commands

# The settings of a run and the CPU time of its trainers.
_RECORD_FILE = "sweep_run.json"
# The files of `tables`, beside the directories of the variants.
TABLE_FILE = "table.md"
RESULTS_FILE = "results.json"


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
        return float(self._record().get("cpu_minutes", 0.0))

    def check_settings(self, flag_values: Sequence[str]) -> None:
        """Checks that a finished run had the flags of this sweep.

        Args:
          flag_values: The flags of its trainer, without model_dir and seed.
        Raises:
          UserError: It had others, so its results are not those of this sweep.
        """
        before = self._record().get("flags")
        if self.is_finished() and before is not None and before != list(flag_values):
            raise errors.UserError(
                f"{self.model_dir} is finished, but it was trained with other flags: "
                f"{before}; now they are {list(flag_values)}. Use another --sweep_dir "
                "or another name of the variant, or delete the directory."
            )

    def record(self, flag_values: Sequence[str], cpu_minutes: float) -> None:
        """Writes the flags of a run, and the CPU time of all its trainers."""
        content = {"flags": list(flag_values), "cpu_minutes": cpu_minutes}
        if tf.io.gfile.isdir(self.model_dir):
            files.write_whole(f"{self.model_dir}/{_RECORD_FILE}", json.dumps(content))

    def _record(self) -> dict[str, Any]:
        content = files.read_if_there(f"{self.model_dir}/{_RECORD_FILE}")
        return {} if content is None else json.loads(content)

    def result(self, split: str | None) -> dict[str, Any] | None:
        """Returns the last record of its evaluations, or None if there is none.

        Args:
          split: The split of an evaluation after the run; None for those during it.
        """
        folder = summaries.eval_dir(self.model_dir, split)
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
        is_name = re.fullmatch(r"[\w.+-]+", name) and not name.startswith(".")
        if not is_name or name in (TABLE_FILE, RESULTS_FILE):
            raise errors.UserError(
                f"{path}: the variant {name!r} names a directory; use letters, digits "
                f"and _ . + - only, and neither {TABLE_FILE} nor {RESULTS_FILE}."
            )
        is_list = isinstance(settings, list)
        if not is_list or not all(isinstance(s, str) for s in settings):
            raise errors.UserError(
                f"{path}: the variant {name!r} must be a list of gin settings, such as "
                f'["MAX_STEPS = 100"]; got {settings!r}.'
            )
        if any(re.match(r"\s*SEED\s*=", setting) for setting in settings):
            raise errors.UserError(
                f"{path}: the variant {name!r} sets SEED; remove it and use --seeds."
            )
    return content


def finish(
    run: Run,
    flag_values: Sequence[str],
    split: str | None,
    running: commands.Commands,
) -> None:
    """Trains a run to its end, and evaluates it; messages go to its log.

    Nothing is done twice: a finished run is not trained, and a run with a result is not
    evaluated.

    Args:
      run: The run.
      flag_values: The flags of its trainer, without model_dir and seed.
      split: The split to evaluate after the run, or None.
      running: The commands of all runs.
    Raises:
      SystemExit: The commands were asked to stop.
    """
    tf.io.gfile.makedirs(os.path.dirname(run.model_dir))
    model_dir = f"--model_dir={run.model_dir}"
    if not run.is_finished():
        minutes = run.cpu_minutes()
        seed = f"--gin_param=SEED = {run.seed}"
        ended = running.run(
            run.name, "train", model_dir, *flag_values, seed, log=run.log
        )
        run.record(flag_values, minutes + ended.cpu_minutes)
        running.check_stopped()
    if run.is_finished() and not run.is_done(split):
        flags = model_dir, "--once", f"--split={split}"
        running.run(run.name, "evaluate", *flags, log=run.log)
        running.check_stopped()
