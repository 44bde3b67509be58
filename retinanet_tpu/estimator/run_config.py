"""When a run saves, what it keeps, and how its step is run."""

import dataclasses
import numbers

from retinanet_tpu import errors


def check_count(name: str, value: object) -> None:
    """Checks a number of steps, images or seconds.

    Raises:
      UserError: The value is not an integer of at least 1.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise errors.UserError(
            f"{name} is {value!r}; expected a whole number of at least 1."
        )


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
        check_count("TPUConfig.iterations_per_loop", self.iterations_per_loop)


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
      deterministic: on CPUs the same run gives the same bits again, on threads too.
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
    deterministic: bool = False
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
                check_count(f"RunConfig.{name}", getattr(self, name))
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
        """Raises UserError for max_steps or an interval that a run never reaches."""
        check_count("max_steps", max_steps)
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
