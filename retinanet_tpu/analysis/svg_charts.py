"""Draws charts as SVG, which a page contains without any library."""

import html
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from retinanet_tpu.analysis import results

_WIDTH, _HEIGHT = 520, 330  # The units of a chart; the page scales it.
_LEFT, _TOP, _RIGHT, _BOTTOM = 46, 12, 12, 42
_PLOT_WIDTH = _WIDTH - _LEFT - _RIGHT
_PLOT_HEIGHT = _HEIGHT - _TOP - _BOTTOM
_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_THOUSANDS = ("", "k", "M", "G")
_TENTHS = tuple((tick, f"{tick:.1f}") for tick in _TICKS)


class Line(NamedTuple):
    """A line of a chart.

    Attributes:
      key: The key by which the page's script finds the line, or "" if it never changes.
      name: The name in the legend; without one, the line is not in it.
      color: A CSS color.
      x: float [N] in 0..1.
      y: float [N] in 0..1; points with a negative value are left out.
      is_dashed: Whether the line is dashed.
    """

    key: str
    name: str
    color: str
    x: np.ndarray
    y: np.ndarray
    is_dashed: bool = False


class Bar(NamedTuple):
    """A bar of a chart.

    Attributes:
      name: The text at the left.
      value: The length, not negative.
      text: The text at the right of the bar.
      color: A CSS color.
    """

    name: str
    value: float
    text: str
    color: str


def line_chart(
    chart_id: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    mark: float | None = None,
) -> str:
    """Draws lines over axes from 0 to 1, with a legend.

    Args:
      chart_id: The id of the SVG element.
      lines: The lines; later ones are in front.
      x_label: The text below the chart.
      y_label: The text at the left of the chart.
      mark: The x of a vertical line, or None.

    Returns:
      HTML: a figure.
    """
    parts = [_opening(chart_id, x_label), _axes(x_label, y_label)]
    if mark is not None:
        x = _x(mark)
        parts.append(
            f"<line class='mark' x1='{x}' x2='{x}' y1='{_TOP}' "
            f"y2='{_TOP + _PLOT_HEIGHT}'/>"
        )
    for line in lines:
        dash = " stroke-dasharray='5 4'" if line.is_dashed else ""
        parts.append(
            f"<polyline class='line' data-key='{html.escape(line.key, quote=True)}' "
            f"style='stroke:{line.color}'{dash} points='{_points(line.x, line.y)}'/>"
        )
    legend = "".join(
        f"<span><i class='swatch{' dashed' * line.is_dashed}' "
        f"style='--color:{line.color}'></i>{html.escape(line.name)}</span>"
        for line in lines
        if line.name
    )
    return (
        f"<figure>{''.join(parts)}</svg>"
        f"<figcaption class='legend'>{legend}</figcaption></figure>"
    )


def bar_chart(bars: Sequence[Bar], *, label: str) -> str:
    """Draws horizontal bars, one below the other.

    Args:
      bars: The bars; the longest fills the width.
      label: The description of the chart, for screen readers.

    Returns:
      HTML: an SVG element.
    """
    row, left, right, width = 30, 120, 230, 760
    longest = max((bar.value for bar in bars), default=0.0) or 1.0
    parts = [
        f"<svg class='bars' viewBox='0 0 {width} {row * len(bars)}' role='img' "
        f"aria-label='{html.escape(label, quote=True)}'>"
    ]
    for number, bar in enumerate(bars):
        top = number * row
        length = round((width - left - right) * max(bar.value, 0.0) / longest, 1)
        parts.append(
            f"<text x='{left - 10}' y='{top + 20}' text-anchor='end'>"
            f"{html.escape(bar.name)}</text>"
            f"<rect x='{left}' y='{top + 5}' width='{max(length, 1)}' height='20' "
            f"style='fill:{bar.color}'/>"
            f"<text x='{left + length + 8}' y='{top + 20}'>{html.escape(bar.text)}"
            "</text>"
        )
    return "".join([*parts, "</svg>"])


def calibration_chart(bins: Sequence[results.CalibrationBin]) -> str:
    """Draws the precision of each bin of scores beside the diagonal.

    Args:
      bins: The bins, from the lowest scores to the highest.

    Returns:
      HTML: an SVG element.
    """
    parts = [
        _opening("calibration-chart", "calibration of the scores"),
        _axes("score", "precision at IoU 0.5"),
        f"<line class='diagonal' x1='{_x(0)}' y1='{_y(0)}' x2='{_x(1)}' y2='{_y(1)}'/>",
    ]
    for each in bins:
        if not each.num_detections:
            continue
        title = (
            f"scores {each.low:.2f} to {each.high:.2f}: mean {each.mean_score:.3f}, "
            f"precision {each.precision:.3f}, {each.num_detections:,} detections"
        )
        top = _y(each.precision)
        x, y = _x(each.mean_score), _y(each.mean_score)
        parts.append(
            f"<g class='bin'><title>{title}</title>{_column(each, top)}"
            f"<line x1='{x}' x2='{x}' y1='{y}' y2='{top}'/>"
            f"<circle cx='{x}' cy='{top}' r='3.5'/></g>"
        )
    return "".join([*parts, "</svg>"])


def histogram(bins: Sequence[results.CalibrationBin]) -> str:
    """Draws the number of detections of each bin of scores, on a logarithmic scale.

    Args:
      bins: The bins, from the lowest scores to the highest.

    Returns:
      HTML: an SVG element.
    """
    most = max((each.num_detections for each in bins), default=0)
    decades = max(len(str(most)), 1)
    labels = [
        (power / decades, f"{10 ** (power % 3)}{_THOUSANDS[power // 3]}")
        for power in range(decades + 1)
    ]
    parts = [
        _opening("score-histogram", "number of detections by score"),
        _axes("score", "detections (logarithmic)", y_ticks=labels),
    ]
    for each in bins:
        if not each.num_detections:
            continue
        # A single detection is at the bottom of the scale; it stays visible.
        height = max(np.log10(each.num_detections) / decades * _PLOT_HEIGHT, 2.0)
        parts.append(
            f"<g class='bin'><title>scores {each.low:.2f} to {each.high:.2f}: "
            f"{each.num_detections:,} detections</title>"
            f"{_column(each, _y(0) - height)}</g>"
        )
    return "".join([*parts, "</svg>"])


def _column(each: results.CalibrationBin, top: float) -> str:
    """Returns the rectangle of a bin, from a height down to the axis."""
    width = max(_x(each.high) - _x(each.low) - 2, 1)
    return (
        f"<rect x='{_x(each.low) + 1}' y='{top:.1f}' width='{width:.1f}' "
        f"height='{_y(0) - top:.1f}'/>"
    )


def _opening(chart_id: str, label: str) -> str:
    # The script places new points with these numbers.
    return (
        f"<svg class='chart' id='{chart_id}' viewBox='0 0 {_WIDTH} {_HEIGHT}' "
        f"data-left='{_LEFT}' data-top='{_TOP}' data-width='{_PLOT_WIDTH}' "
        f"data-height='{_PLOT_HEIGHT}' role='img' "
        f"aria-label='{html.escape(label, quote=True)}'>"
    )


def _axes(
    x_label: str,
    y_label: str,
    *,
    y_ticks: Sequence[tuple[float, str]] = _TENTHS,
) -> str:
    parts = []
    for value, text in y_ticks:
        y = _y(value)
        parts.append(
            f"<line class='grid' x1='{_LEFT}' x2='{_LEFT + _PLOT_WIDTH}' y1='{y}' "
            f"y2='{y}'/><text x='{_LEFT - 6}' y='{y + 4}' text-anchor='end'>{text}"
            "</text>"
        )
    for value in _TICKS:
        parts.append(
            f"<text x='{_x(value)}' y='{_TOP + _PLOT_HEIGHT + 17}' "
            f"text-anchor='middle'>{value:.1f}</text>"
        )
    middle = _TOP + _PLOT_HEIGHT / 2
    parts.append(
        f"<text x='{_LEFT + _PLOT_WIDTH / 2}' y='{_HEIGHT - 6}' text-anchor='middle'>"
        f"{html.escape(x_label)}</text>"
        f"<text transform='translate(11 {middle}) rotate(-90)' text-anchor='middle'>"
        f"{html.escape(y_label)}</text>"
    )
    return "".join(parts)


def _points(x: np.ndarray, y: np.ndarray) -> str:
    pairs = zip(np.asarray(x), np.asarray(y), strict=True)
    return " ".join(f"{_x(a)},{_y(b)}" for a, b in pairs if b >= 0)


def _x(value: float) -> float:
    return round(_LEFT + _PLOT_WIDTH * float(value), 1)


def _y(value: float) -> float:
    return round(_TOP + _PLOT_HEIGHT * (1 - float(value)), 1)
