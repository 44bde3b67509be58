"""Writes a comparison of evaluations as text: a table, and sentences."""

from collections.abc import Sequence

from retinanet_tpu.analysis import bootstrap, comparison, page_verdict, results

_MAX_NAME = 30


def table(compared: comparison.Comparison) -> str:
    """Returns the twelve metrics of each evaluation, and the differences.

    Args:
      compared: The comparison.
    """
    heads = ["", _short(compared.baseline.name)]
    for other in compared.others:
        heads += [
            _short(other.evaluation.name),
            "difference",
            "95 % confidence interval",
        ]
    rows = [heads]
    for name, value in compared.baseline.metrics.items():
        row = [name, page_verdict.number(value)]
        for other in compared.others:
            new = other.evaluation.metrics[name]
            interval = other.intervals.get(name)
            row += [
                page_verdict.number(new),
                _difference(new, value),
                interval_text(interval) if interval else "",
            ]
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            f"{cell:<{width}}" if number == 0 else f"{cell:>{width}}"
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, interval_note(compared)])


def interval_text(interval: bootstrap.Interval) -> str:
    """Returns the ends of an interval.

    Args:
      interval: The interval.
    """
    ends = (page_verdict.signed(end) for end in interval)
    return " to ".join(ends)


def interval_note(compared: comparison.Comparison) -> str:
    """Explains the intervals.

    Args:
      compared: The comparison.
    """
    return (
        "95 % confidence intervals: paired bootstrap over "
        f"{compared.num_images:,} images, {compared.num_samples:,} bootstrap samples, "
        f"seed {bootstrap.SEED}. They cover the choice of the images, "
        "not the variation between training runs."
    )


def coverage_notes(compared: comparison.Comparison) -> list[str]:
    """Explains which evaluations lack detections in images that others have.

    Args:
      compared: The comparison.
    """
    return [
        f"“{name}” has detections for {count:,} of {compared.num_images:,} images; the "
        "other images count as images without detections."
        for name, count in compared.coverage.items()
    ]


def verdict(baseline: comparison.Evaluation, other: comparison.Difference) -> str:
    """Explains the difference of an evaluation from the baseline.

    Args:
      baseline: The baseline.
      other: The evaluation with its difference.
    """
    new = other.evaluation
    change = new.all_classes.ap - baseline.all_classes.ap
    interval = other.intervals["AP"]
    if not any(page_verdict.is_shown(end) for end in (change, *interval)):
        return f"“{new.name}” has the same AP as “{baseline.name}”, to three digits."
    # An end that is printed as 0 would contradict the sentence.
    if interval.excludes_zero and all(map(page_verdict.is_shown, interval)):
        meaning = (
            "It excludes 0, so other images of the same kind would probably give the "
            "same order."
        )
    else:
        meaning = "It includes 0, so other images could give the opposite order."
    sentences = [
        f"“{new.name}” has an AP of {page_verdict.number(new.all_classes.ap)}, "
        f"{page_verdict.signed(change)} against “{baseline.name}”; the 95 % confidence "
        f"interval is {interval_text(interval)}.",
        meaning,
        *_classes(baseline.classes, new.classes),
        *_errors(baseline.errors, new.errors),
        f"{len(other.better):,} images got better and {len(other.worse):,} worse.",
    ]
    return " ".join(sentences)


def _classes(
    before: Sequence[results.ClassResult], after: Sequence[results.ClassResult]
) -> list[str]:
    changes = [
        (new.ap - old.ap, new.name)
        for old, new in zip(before, after, strict=True)
        if new.ap >= 0
    ]
    if len(changes) < 2:
        return []
    loss, gain = min(changes), max(changes)
    parts = [f"{name} ({change:+.3f})" for change, name in (loss, gain)]
    if loss[0] < 0 < gain[0]:
        return [
            f"The class with the largest loss is {parts[0]}; the class with the "
            f"largest gain is {parts[1]}."
        ]
    if loss[0] < 0:
        return [f"No class gains; the largest loss is that of {parts[0]}."]
    if gain[0] > 0:
        return [f"No class loses; the largest gain is that of {parts[1]}."]
    return []


def _errors(
    before: Sequence[results.ErrorCost], after: Sequence[results.ErrorCost]
) -> list[str]:
    changes = [
        (new.ap50_cost - old.ap50_cost, new.kind)
        for old, new in zip(before, after, strict=True)
    ]
    change, kind = max(changes, key=lambda each: abs(each[0]))
    if not page_verdict.is_shown(change):
        return []
    direction = "more" if change > 0 else "less"
    return [
        f"The cost of {kind} errors changed most: {abs(change):.3f} AP50 {direction}."
    ]


def _difference(value: float, other: float) -> str:
    if value < 0 or other < 0:
        return page_verdict.DASH
    return page_verdict.signed(value - other)


def _short(name: str) -> str:
    """Returns the end of a long name, which differs more often than its beginning."""
    return name if len(name) <= _MAX_NAME else f"…{name[1 - _MAX_NAME :]}"
