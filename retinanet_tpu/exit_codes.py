"""The exit codes of the commands; docs/reference/commands.md has the same table."""

import enum


class ExitCode(enum.IntEnum):
    """The exit codes that a command chooses.

    A process that a signal ends has the code 128 + the number of the signal.
    """

    OK = 0
    FAILED = 1  # An error; the same command would fail again.
    USAGE = 2  # `retinanet-tpu` does not have that command.
    UNFIT_DATA = 2  # inspect_data: an error stops training or leads to an AP of 0.
    TRAINER_GONE = 3  # evaluate: the trainer has been silent for --timeout_secs.
    TRAINER_FAILED = 4  # evaluate: the trainer failed; its checkpoints are evaluated.
    DIVERGED = 5  # train: a loss or a weight is not finite.
    PREEMPTED = 42  # train: saved; start it again. The same as in TensorFlow's handler.
