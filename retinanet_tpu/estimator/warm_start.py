"""Initializes a network with the weights of another run."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf
from absl import logging

from retinanet_tpu import errors, replicas
from retinanet_tpu.estimator import train_step
from retinanet_tpu.estimator.model_dir import checkpoints, files


@dataclasses.dataclass(frozen=True)
class WarmStartSettings:
    """The source of the first weights of a network.

    Attributes:
      checkpoint: The path of a checkpoint, or a model_dir for its latest. Averages are
        preferred. None for no warm start.
      variables: A regular expression that a variable's path must match from its
        beginning. The statistics of batch norm are variables too.
      min_share: The share of the matching variables that the checkpoint must contain,
        0 to 1.

    Raises:
      UserError: A path, an expression or a share is not valid.
    """

    checkpoint: str | None
    variables: str = ".*"
    min_share: float = 0.5

    def __post_init__(self):
        """Checks the settings."""
        files.check_path(self.checkpoint or "", "WarmStartSettings.checkpoint")
        try:
            re.compile(self.variables)
        except re.error as error:
            raise errors.UserError(
                f"WarmStartSettings.variables is '{self.variables}', not a regular "
                f"expression ({error}); use one such as 'backbone/'."
            ) from error
        if not 0 <= self.min_share <= 1:
            raise errors.UserError(
                f"WarmStartSettings.min_share is {self.min_share}; it must be 0 to 1."
            )


class WarmStartReport(NamedTuple):
    """The result of a warm start: paths of variables.

    Attributes:
      loaded: The variables that have the values of the checkpoint.
      mismatched: Those with another shape in the checkpoint, such as for other classes.
      absent: Those that the checkpoint does not contain.
      skipped: Those that WarmStartSettings.variables does not match.
      unused: Those that only the checkpoint contains.
    """

    loaded: list[str]
    mismatched: list[str]
    absent: list[str]
    skipped: list[str]
    unused: list[str]


# network -> anything; assigns the first weights of a run
WarmStartFn = Callable[[tf.Module], object]
Source = WarmStartSettings | WarmStartFn | str | None


def make_warm_start_fn(source: Source) -> WarmStartFn | None:
    """Returns the function that initializes a network; None for random weights.

    Args:
      source: Settings, the path of a checkpoint or model_dir, or the function itself.
    """
    if source is None or callable(source):
        return source
    settings = WarmStartSettings(source) if isinstance(source, str) else source
    if not settings.checkpoint:
        return None
    return functools.partial(warm_start, settings=settings)


def warm_start(network: tf.Module, settings: WarmStartSettings) -> WarmStartReport:
    """Assigns the checkpoint's values to the variables of the same path and shape.

    Args:
      network: The network.
      settings: The checkpoint and the variables.
    Returns:
      The paths of the variables, by result.
    Raises:
      MissingFileError: There is no checkpoint.
      UserError: The settings have no checkpoint, or it contains fewer variables than
        settings.min_share.
    """
    if not settings.checkpoint:
        raise errors.UserError(
            "WarmStartSettings.checkpoint is None; set a checkpoint or a model_dir."
        )
    path = checkpoints.latest(settings.checkpoint) or settings.checkpoint
    tensors = train_step.network_weights(path)
    report = WarmStartReport(loaded=[], mismatched=[], absent=[], skipped=[], unused=[])
    for variable in network.variables:
        name = replicas.variable_path(variable)
        value = tensors.pop(name, None)
        if not re.match(settings.variables, name):
            report.skipped.append(name)
        elif value is None:
            report.absent.append(name)
        elif value.shape != tuple(variable.shape):
            report.mismatched.append(f"{name} {value.shape} {tuple(variable.shape)}")
        else:
            variable.assign(value)
            report.loaded.append(name)
    report.unused.extend(tensors)
    _check_share(report, settings, path)
    logging.info("Warm start from %s\n%s", path, table(report))
    return report


def table(report: WarmStartReport) -> str:
    """Returns a line for each result, with its count and its first paths."""
    rows = []
    for result, paths in report._asdict().items():
        first = ", ".join(paths[:3]) + (", …" if len(paths) > 3 else "")
        rows.append(f"{result:<10} {len(paths):>5}  {first}")
    return "\n".join(rows)


def _check_share(report, settings, path):
    num_matching = len(report.loaded) + len(report.mismatched) + len(report.absent)
    if len(report.loaded) < max(1, settings.min_share * num_matching):
        raise errors.UserError(
            f"Only {len(report.loaded)} of {num_matching} variables are in {path} with "
            "the same shape, less than WarmStartSettings.min_share "
            f"{settings.min_share}:\n{table(report)}\nCheck that its architecture is "
            "the same. To load only a part, set WarmStartSettings.variables, for "
            "example to 'backbone/'."
        )
