"""Results of metric_fn that are neither numbers nor images."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Curves(NamedTuple):
    """A result of metric_fn that TensorBoard draws as curves.

    Attributes:
      counts: float or int [3, T] by name of the curve: correct detections, wrong ones
        and missed objects at T thresholds of the score, evenly spaced from 0 to 1.
    """

    counts: Mapping[str, np.ndarray]


class Report(NamedTuple):
    """A result of metric_fn that is written as an HTML page beside eval.jsonl.

    Attributes:
      html_fn: (global step, records of eval.jsonl) -> the page.
    """

    html_fn: Callable[[int, Sequence[Mapping[str, Any]]], str]
