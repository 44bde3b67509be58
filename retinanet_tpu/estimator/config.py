"""Run settings, and the reading of gin files."""

import contextlib
import dataclasses
import difflib
import inspect
import os
import re
import tokenize
from collections.abc import Callable, Collection, Mapping, Sequence

import gin
import tensorflow as tf
from absl import logging

from retinanet_tpu import errors

# What gin raises for text that is wrong; KeyError for a name that two things have.
_WRONG = (ValueError, KeyError, NameError, SyntaxError, OSError, tokenize.TokenError)


@dataclasses.dataclass(frozen=True)
class TPUConfig:
    """How the step is run.

    Attributes:
      iterations_per_loop: steps in one tf.function call; logging, saving and evaluation
        happen between loops, and a loop is cut short where one of them is due.
      jit_compile: compile the step with XLA on a GPU, or on a CPU, where it was seen
        to take more than twice as long; a TPU always does.
    """

    iterations_per_loop: int = 100
    jit_compile: bool = False

    def __post_init__(self):
        """Raises UserError for a loop without steps."""
        _check_positive("TPUConfig.iterations_per_loop", self.iterations_per_loop)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """When a run saves, how much it keeps, and what it does when things go wrong.

    Attributes:
      save_checkpoints_steps: save each time this many steps were trained.
      save_checkpoints_secs: or when this much time went by, at the end of a loop. With
        neither, 600.
      keep_checkpoint_max: how many checkpoints stay, besides those that are being read;
        None or 0 for all.
      heartbeat_secs: how often run_state.json says that the trainer lives.
      max_restarts: how often in a row, without a new checkpoint between, a run starts
        anew from the latest one after it lost its devices.
      restart_secs: before the first of these restarts; n times as long before the nth.
      max_rollbacks: how often a run that diverges goes back to the latest checkpoint
        and passes over the data since; 0 ends it at once.
      is_deterministic: on CPUs the same run gives the same bits again, on threads too.
      tf_random_seed: of what input_fn draws.
      tpu_config: how the step is run.
    """

    save_checkpoints_steps: int | None = None
    save_checkpoints_secs: int | None = None
    keep_checkpoint_max: int | None = 5
    heartbeat_secs: float = 10
    max_restarts: int = 3
    restart_secs: float = 10
    max_rollbacks: int = 0
    is_deterministic: bool = False
    tf_random_seed: int = 0
    tpu_config: TPUConfig = dataclasses.field(default_factory=TPUConfig)

    def __post_init__(self):
        """Raises UserError for intervals that contradict each other or never fire."""
        if self.save_checkpoints_steps and self.save_checkpoints_secs:
            raise errors.UserError(
                "RunConfig has both save_checkpoints_steps and save_checkpoints_secs; "
                "set one of them to None."
            )
        for name in ("save_checkpoints_steps", "save_checkpoints_secs"):
            if getattr(self, name) is not None:
                _check_positive(f"RunConfig.{name}", getattr(self, name))
        if self.heartbeat_secs <= 0:
            raise errors.UserError(
                f"RunConfig.heartbeat_secs is {self.heartbeat_secs}; take 10, say."
            )
        for name in ("max_restarts", "restart_secs", "max_rollbacks"):
            if getattr(self, name) < 0:
                raise errors.UserError(
                    f"RunConfig.{name} is {getattr(self, name)}; 0 is the least."
                )

    def check_save_interval(self, max_steps: int) -> None:
        """Raises UserError for a save interval that a run never reaches."""
        every = self.save_checkpoints_steps
        if every and every > max_steps:
            raise errors.UserError(
                f"RunConfig.save_checkpoints_steps is {every}, but the run has "
                f"{max_steps} steps, so it never fires; lower it (the last step is "
                "always saved)."
            )

    def next_stop(self, step: int, max_steps: int) -> int:
        """Returns the step at which the next loop ends: where something is due."""
        stops = [max_steps, step + self.tpu_config.iterations_per_loop]
        if every := self.save_checkpoints_steps:
            stops.append((step // every + 1) * every)
        return min(stops)

    def is_save_due(self, step: int, max_steps: int, secs: float) -> bool:
        """Tells whether to save at a step, `secs` after the last save."""
        if every := self.save_checkpoints_steps:
            return step % every == 0 or step == max_steps
        return secs >= (self.save_checkpoints_secs or 600) or step == max_steps


def register(configurables: Mapping[str, Callable]) -> dict[str, Callable]:
    """Makes functions and classes settable from gin files; returns them so, by name."""
    gin.config.register_file_reader(tf.io.gfile.GFile, tf.io.gfile.exists)
    return {
        name: gin.external_configurable(target, name=name)
        for name, target in configurables.items()
    }


def add_search_path(directory: str) -> None:
    """Lets gin files include others from a directory."""
    gin.add_config_file_search_path(directory)


def parse(
    gin_files: Sequence[str],
    gin_params: Sequence[str],
    *,
    known: Mapping[str, Callable],
) -> str:
    """Reads gin files, then single bindings over them; returns the whole configuration.

    The directory of each file is searched for its includes.

    Args:
      gin_files: paths, later ones override earlier ones.
      gin_params: bindings such as "MAX_STEPS = 100"; they override the files.
      known: what was registered, for telling what a misspelt name may have meant.
    Raises:
      UserError: a name that nothing has, or a macro that nothing uses.
      MissingFileError: no such file.
    """
    gin.clear_config()
    for path in gin_files:
        if not tf.io.gfile.exists(path):
            raise errors.MissingFileError(f"No gin file {path}; look in gin_configs/.")
        gin.add_config_file_search_path(os.path.dirname(path))
    try:
        with _quiet():  # Gin logs each place where an include is not.
            gin.parse_config_files_and_bindings(
                list(gin_files),
                list(gin_params),
                skip_unknown=False,
                finalize_config=False,
            )
        text = gin.config_str()
        _check_macros(text)
        gin.finalize()
    except _WRONG as error:
        # What follows would be the whole configuration.
        message = str(error).partition(" in config string:")[0]
        hint = _suggestion(message, known)
        told = f"The gin configuration is wrong: {message}\n{hint}".rstrip()
        raise errors.UserError(told) from error
    return text


def differences(before: str, after: str, ignoring: Collection[str] = ()) -> list[str]:
    """Returns the lines by which two configurations differ, as '- old' and '+ new'.

    Args:
      before: a whole configuration.
      after: another.
      ignoring: names whose settings may differ.
    """
    lines = [
        [
            x
            for x in text.splitlines()
            if _is_setting(x) and x.partition(" =")[0] not in ignoring
        ]
        for text in (before, after)
    ]
    return [x for x in difflib.ndiff(*lines) if x[0] in "+-"]


def _check_positive(name, value):
    if not isinstance(value, int) or value <= 0:
        raise errors.UserError(
            f"{name} is {value}; expected a whole number of at least 1."
        )


@contextlib.contextmanager
def _quiet():
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _is_setting(line):
    return bool(line.strip()) and not line.startswith("#")


def _check_macros(text):
    """Raises for `NUM_CLASES = 3`: gin takes any name for a new macro."""
    defined = set(re.findall(r"^(\w+) = ", text, re.MULTILINE))
    used = set(re.findall(r"%(\w+)", re.sub(r"'[^']*'|\"[^\"]*\"", "", text)))
    for name in sorted(defined - used):
        raise errors.UserError(
            f"{name} is set, but nothing uses it.{_close(name, used)}"
        )
    for name in sorted(used - defined - {"gin"}):
        raise errors.UserError(
            f"%{name} is used, but never set.{_close(name, defined)}"
        )


def _suggestion(message, known):
    """Returns what the name may have meant that gin's message says it does not know."""
    if match := re.search(
        r"No configurable matching (?:reference )?'@?([\w./]+)'", message
    ):
        return _close(match[1].split("/")[-1], known)
    if match := re.search(
        r"Configurable '([\w./]+)' .* parameter named '(\w+)'", message
    ):
        target = known.get(match[1].split("/")[-1])
        return _close(match[2], inspect.signature(target).parameters if target else ())
    return ""


def _close(name, candidates):
    close = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else f" Known: {sorted(candidates)}."
