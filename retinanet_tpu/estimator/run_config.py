"""The settings of a run: saving, checkpoints to keep, restarts, execution."""

import dataclasses
import numbers
from typing import Any

from retinanet_tpu import errors

# The interval of saves if none is set.
_DEFAULT_SAVE_SECS = 600


def check_count(name: str, value: Any) -> None:
    """Checks a number of steps, images or seconds.

    Args:
      name: The name of the setting, for the message.
      value: Any value; None is not a number.
    Raises:
      UserError: The value is not an integer of at least 1.
    """
    is_count = isinstance(value, numbers.Integral) and type(value) is not bool
    if not is_count or value < 1:
        raise errors.UserError(
            f"{name} is {value!r}; expected a whole number of at least 1."
        )


@dataclasses.dataclass(frozen=True)
class TPUConfig:
    """The execution of the training step.

    Attributes:
      iterations_per_loop: The number of steps in one call of a tf.function. Logging,
        saving and evaluation happen between loops. A loop is shorter if one of them is
        due.
      jit_compile: Whether to compile the step with XLA on a GPU or a CPU; on a CPU the
        step was seen to take more than twice as long. A TPU always compiles.
    """

    iterations_per_loop: int = 100
    jit_compile: bool = False

    def __post_init__(self):
        """Checks the number of steps."""
        check_count("TPUConfig.iterations_per_loop", self.iterations_per_loop)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The settings of a run.

    Attributes:
      save_checkpoints_steps: The number of steps between saves.
      save_checkpoints_secs: The number of seconds between saves, which happen at the
        end of a loop. If neither is set, 600.
      keep_checkpoint_max: The number of checkpoints to keep, besides those that another
        process reads; None or 0 keeps all.
      heartbeat_secs: The number of seconds between updates of run_state.json.
      max_restarts: The number of restarts from the latest checkpoint after the devices
        are lost. A new checkpoint resets the count.
      restart_secs: The number of seconds before the first of these restarts; the wait
        before the nth is n times as long.
      max_rollbacks: The number of times that a diverged run returns to the latest
        checkpoint and skips the data since then; 0 ends it at once.
      deterministic: Whether the same run on CPUs yields the same bits, with several
        threads too.
      tf_random_seed: The seed of the random numbers of input_fn.
      tpu_config: The execution of the step.

    Raises:
      UserError: Two settings contradict each other, or a number is out of its range.
    """

    save_checkpoints_steps: int | None = None
    save_checkpoints_secs: int | None = None
    keep_checkpoint_max: int | None = 5
    heartbeat_secs: float = 10
    max_restarts: int = 3
    restart_secs: float = 10
    max_rollbacks: int = 0
    deterministic: bool = False
    tf_random_seed: int = 0
    tpu_config: TPUConfig = dataclasses.field(default_factory=TPUConfig)

    def __post_init__(self):
        """Checks the settings."""
        if self.save_checkpoints_steps and self.save_checkpoints_secs:
            raise errors.UserError(
                "RunConfig has both save_checkpoints_steps and save_checkpoints_secs; "
                "set one of them to None."
            )
        for name in ("save_checkpoints_steps", "save_checkpoints_secs"):
            if getattr(self, name) is not None:
                check_count(f"RunConfig.{name}", getattr(self, name))
        if self.heartbeat_secs <= 0:
            raise errors.UserError(
                f"RunConfig.heartbeat_secs is {self.heartbeat_secs}; it must be > 0."
            )
        for name in ("max_restarts", "restart_secs", "max_rollbacks"):
            if getattr(self, name) < 0:
                raise errors.UserError(
                    f"RunConfig.{name} is {getattr(self, name)}; it must be >= 0."
                )

    def check_save_interval(self, max_steps: int) -> None:
        """Checks that a run reaches the interval of its saves.

        Args:
          max_steps: The number of steps of the run.
        Raises:
          UserError: max_steps is not a count, or the interval is longer.
        """
        check_count("max_steps", max_steps)
        every = self.save_checkpoints_steps
        if every and every > max_steps:
            raise errors.UserError(
                f"RunConfig.save_checkpoints_steps is {every}, but the run has "
                f"{max_steps} steps, so it never fires; lower it (the last step is "
                "always saved)."
            )

    def next_stop(self, step: int, max_steps: int) -> int:
        """Returns the step at which the loop that begins at `step` ends."""
        stops = [max_steps, step + self.tpu_config.iterations_per_loop]
        if every := self.save_checkpoints_steps:
            stops.append((step // every + 1) * every)
        return min(stops)

    def is_save_due(self, step: int, max_steps: int, secs: float) -> bool:
        """Returns whether to save at a step, `secs` after the last save."""
        if every := self.save_checkpoints_steps:
            return step % every == 0 or step == max_steps
        every_secs = self.save_checkpoints_secs or _DEFAULT_SAVE_SECS
        return secs >= every_secs or step == max_steps
