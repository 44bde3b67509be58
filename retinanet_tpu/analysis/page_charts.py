"""Writes the sections of the page of an analysis that contain charts."""

from collections.abc import Sequence

import numpy as np

from retinanet_tpu.analysis import page_html, page_verdict, results, svg_charts

_CURVE_POINTS = 101


def errors(costs: Sequence[results.ErrorCost]) -> str:
    """Returns the bar chart of the kinds of errors."""
    bars = [
        svg_charts.Bar(
            cost.kind,
            max(cost.ap50_cost, 0.0),
            f"{page_verdict.number(cost.ap50_cost)}   ({cost.num_errors:,} errors)",
            page_html.KIND_COLORS[cost.kind],
        )
        for cost in costs
    ]
    terms = "".join(
        f"<li><b>{cost.kind}</b>: {page_verdict.meaning(cost.kind)}</li>"
        for cost in costs
    )
    return page_html.section(
        "errors",
        "Errors and their cost",
        "The AP50 that is gained if all errors of one kind, and no others, are "
        "corrected. The costs do not add up, because errors interact.",
        f"{svg_charts.bar_chart(bars, label='AP50 cost of each kind of errors')}"
        f"<ul class='text'>{terms}</ul>",
    )


def curves(whole: results.ClassResult, rows: Sequence[results.ClassResult]) -> str:
    """Returns the curves of all classes, and the data of the others for the script."""
    recalls, curve = np.linspace(0, 1, 101), whole.curve
    at_50, at_75 = whole.precision_by_recall
    line = svg_charts.Line
    mean = (
        line("", "all classes", "var(--faint)", recalls, at_50),
        line("", "", "var(--faint)", recalls, at_75),
    )
    precision = svg_charts.line_chart(
        "precision-chart",
        [
            *mean,
            line("p50", "IoU 0.5", "var(--accent)", recalls, at_50),
            line("p75", "IoU 0.75", "#ff7b1c", recalls, at_75),
        ],
        x_label="recall",
        y_label="precision",
    )
    kept = _kept_points(curve)
    x = curve.thresholds[kept]
    threshold = svg_charts.line_chart(
        "threshold-chart",
        [
            line("precision", "precision", "var(--accent)", x, curve.precision[kept]),
            line("recall", "recall", "#ff7b1c", x, curve.recall[kept]),
            line("f1", "F1", "var(--good)", x, curve.f1[kept]),
        ],
        x_label="score threshold",
        y_label="at IoU 0.5",
        mark=curve.best_threshold or 0.0,
    )
    options = "".join(
        f"<option>{page_html.escape(row.name)}</option>"
        for row in (whole._replace(name="all classes"), *rows)
    )
    data = [_curve_data(row) for row in (whole, *rows)]
    return page_html.section(
        "curves",
        "Precision, recall and thresholds",
        "The mean over all classes is gray. The dotted line is the threshold of the "
        "highest F1.",
        f"<p class='wide'><label>Class: <select id='curve-class'>{options}</select>"
        "</label> "
        f"<span id='curve-text' class='note'>{page_html.escape(data[0]['text'])}"
        "</span></p>"
        f"<div class='columns'>{precision}{threshold}</div>"
        f"{page_html.embedded('curve-data', data)}",
    )


def _curve_data(row: results.ClassResult) -> dict[str, object]:
    curve, best = row.curve, row.curve.best
    kept = _kept_points(curve)
    text = "No detection is correct." if row.num_objects else "No object is annotated."
    if best is not None:
        text = (
            f"Best threshold {curve.thresholds[best]:.3f}: F1 {curve.f1[best]:.3f}, "
            f"precision {curve.precision[best]:.3f}, recall {curve.recall[best]:.3f}."
        )
    at_50, at_75 = row.precision_by_recall
    return {
        "p50": _thousandths(at_50),
        "p75": _thousandths(at_75),
        "t": _thousandths(curve.thresholds[kept]),
        "p": _thousandths(curve.precision[kept]),
        "r": _thousandths(curve.recall[kept]),
        "f": _thousandths(curve.f1[kept]),
        "best": -1 if best is None else round(1000 * float(curve.thresholds[best])),
        "text": text,
    }


def _thousandths(values: np.ndarray) -> list[int]:
    # Integers, because a page of 1,200 classes contains a million of them.
    return [round(1000 * float(v)) if v >= 0 else -1 for v in values]


def _kept_points(curve: results.Curve) -> np.ndarray:
    """Returns at most 101 indices of a curve, and that of its best threshold."""
    size = len(curve.thresholds)
    if not size:
        return np.zeros([0], np.int64)
    kept = np.linspace(0, size - 1, min(size, _CURVE_POINTS)).round().astype(np.int64)
    return kept if curve.best is None else np.union1d(kept, [curve.best])


def calibration(bins: Sequence[results.CalibrationBin], error: float) -> str:
    """Returns the precision by score, and the number of detections by score."""
    text = (
        "The bars are the precision of the detections of a score. Calibrated scores "
        "end at the diagonal; above it they are too low, below it too high."
    )
    content = page_html.note("Nothing is detected.")
    if any(each.num_detections for each in bins):
        text += (
            f" The mean difference over all detections is {page_verdict.number(error)}."
        )
        content = (
            f"<div class='columns'>{svg_charts.calibration_chart(bins)}"
            f"{svg_charts.histogram(bins)}</div>"
        )
    return page_html.section("calibration", "Calibration of the scores", text, content)
