"""Starts a network from the weights of another run."""

import dataclasses
import re
from typing import NamedTuple

import tensorflow as tf
from absl import logging

from retinanet_tpu import errors, replicas
from retinanet_tpu.estimator import train_step
from retinanet_tpu.estimator.model_dir import checkpoints, files


@dataclasses.dataclass(frozen=True)
class WarmStartSettings:
    """Which weights to take from where.

    Attributes:
      checkpoint: its path, or a model_dir for its latest; averages are preferred. None
        for no warm start.
      variables: regular expression that a path must match from its beginning; batch
        norm's statistics are variables too.
      min_share: of the matching variables at least this many must be found, 0 to 1.
    """

    checkpoint: str | None
    variables: str = ".*"
    min_share: float = 0.5

    def __post_init__(self):
        """Raises UserError for a path, an expression or a share that cannot be used."""
        files.check_path(self.checkpoint or "", "WarmStartSettings.checkpoint")
        try:
            re.compile(self.variables)
        except re.error as error:
            raise errors.UserError(
                f"WarmStartSettings.variables is '{self.variables}', no regular "
                f"expression ({error}); 'backbone/' is one, say."
            ) from error
        if not 0 <= self.min_share <= 1:
            raise errors.UserError(
                f"WarmStartSettings.min_share is {self.min_share}; it must be 0 to 1."
            )


class WarmStartReport(NamedTuple):
    """Paths by what became of them."""

    loaded: list[str]
    mismatched: list[str]  # of another shape in the checkpoint, such as other classes
    absent: list[str]  # not in the checkpoint
    skipped: list[str]  # not asked for
    unused: list[str]  # only in the checkpoint


def warm_start(network: tf.Module, settings: WarmStartSettings) -> WarmStartReport:
    """Assigns the checkpoint's values to the variables of the same path and shape.

    Raises:
      MissingFileError: there is no checkpoint.
      UserError: fewer were found than settings.min_share.
    """
    path = checkpoints.latest(settings.checkpoint) or settings.checkpoint
    tensors = train_step.network_weights(path)
    report = WarmStartReport([], [], [], [], [])
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
    """Returns a line for each fate, with its count and its first paths."""
    rows = []
    for fate, names in report._asdict().items():
        some = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        rows.append(f"{fate:<10} {len(names):>5}  {some}")
    return "\n".join(rows)


def _check_share(report, settings, path):
    wanted = len(report.loaded) + len(report.mismatched) + len(report.absent)
    if len(report.loaded) < max(1, settings.min_share * wanted):
        raise errors.UserError(
            f"Only {len(report.loaded)} of {wanted} variables were found in {path}, "
            f"less than WarmStartSettings.min_share {settings.min_share}:\n"
            f"{table(report)}\nIs it of the same architecture? To take only a "
            "part, set WarmStartSettings.variables, to 'backbone/' for instance."
        )
