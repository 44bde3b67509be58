"""Writes the sections of the page of an analysis that contain numbers."""

from collections.abc import Mapping, Sequence

from retinanet_tpu.analysis import page_html, page_verdict, results

METRIC_MEANINGS = {
    "AP": "mean of IoU 0.50 to 0.95",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "APs": "small objects, below 32² px",
    "APm": "medium objects, 32² to 96² px",
    "APl": "large objects, above 96² px",
    "AR1": "recall with 1 detection per image",
    "AR10": "recall with 10 detections per image",
    "AR100": "recall with 100 detections per image",
    "ARs": "recall of small objects",
    "ARm": "recall of medium objects",
    "ARl": "recall of large objects",
}
_CLASS_HEADS = (
    ("class", "The class"),
    ("AP", "AP at IoU 0.50 to 0.95"),
    ("AP50", "AP at IoU 0.50"),
    ("AP75", "AP at IoU 0.75"),
    ("objects", "Annotated objects"),
    ("detections", "Detections of any score"),
    ("best threshold", "The score with the highest F1"),
    ("F1", "F1 at the best threshold"),
    ("precision", "Precision at the best threshold"),
    ("recall", "Recall at the best threshold"),
)


def headline(analysis: results.Analysis) -> str:
    """Returns the most important numbers and the verdict."""
    whole = analysis.all_classes
    best = whole.curve.best
    threshold = f1 = -1.0
    if best is not None:
        threshold = float(whole.curve.thresholds[best])
        f1 = float(whole.curve.f1[best])
    tiles = (
        ("AP", whole.ap),
        ("AP50", whole.ap50),
        ("AP75", whole.ap75),
        ("best threshold", threshold),
        ("F1 there", f1),
    )
    cells = "".join(
        f"<div><b>{page_verdict.number(value)}</b><span>{name}</span></div>"
        for name, value in tiles
    )
    verdict = page_html.escape(" ".join(page_verdict.sentences(analysis)))
    return (
        f"<section id='summary'><div class='tiles'>{cells}</div>"
        f"<p class='verdict'>{verdict}</p></section>"
    )


def metrics(
    values: Mapping[str, float], compared: Sequence[tuple[str, Mapping[str, float]]]
) -> str:
    """Returns the twelve metrics beside those of other evaluations."""
    heads = "".join(
        f"<th>{page_html.escape(name)}</th><th>difference</th>" for name, _ in compared
    )
    rows = []
    for name, value in values.items():
        cells = [
            f"<td class='name'><b>{page_html.escape(name)}</b></td>"
            f"<td class='name'>{page_html.escape(METRIC_MEANINGS.get(name, ''))}</td>",
            f"<td><b>{page_verdict.number(value)}</b></td>",
        ]
        for _, others in compared:
            other = others.get(name, -1.0)
            cells.append(
                f"<td>{page_verdict.number(other)}</td>{difference_cell(value, other)}"
            )
        rows.append(f"<tr>{''.join(cells)}</tr>")
    table = (
        "<table><thead><tr><th class='name'>metric</th><th class='name'></th>"
        f"<th>this</th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )
    text = "" if compared else "No other evaluation to compare with."
    return page_html.section(
        "metrics", "Metrics", text, f"<div class='scroll'>{table}</div>"
    )


def difference_cell(value: float, other: float, *, is_less_better: bool = False) -> str:
    """Returns a cell with a value minus another one, in the color of the change.

    Args:
      value: The value, negative if there is none.
      other: The value that is subtracted, negative if there is none.
      is_less_better: Whether a negative difference is good.
    """
    if value < 0 or other < 0:
        return f"<td class='same' data-value='0'>{page_verdict.DASH}</td>"
    change = value - other
    kind = "same"
    if page_verdict.is_shown(change):
        kind = "good" if (change < 0) == is_less_better else "bad"
    text = page_verdict.signed(change)
    return f"<td class='{kind}' data-value='{change:.6f}'>{text}</td>"


def classes(rows: Sequence[results.ClassResult]) -> str:
    """Returns the table of the classes, which a script sorts."""
    heads = "".join(
        f"<th{' class=name' * (not number)} title='{title}'>"
        f"<button type='button'>{name}</button></th>"
        for number, (name, title) in enumerate(_CLASS_HEADS)
    )
    body = "".join(_class_row(row) for row in rows)
    return page_html.section(
        "classes",
        "Classes",
        "A click on a heading sorts. The last three columns are at the best threshold "
        "of the class, IoU 0.5.",
        "<div class='scroll'><table class='sortable'><thead><tr>"
        f"{heads}</tr></thead><tbody>{body}</tbody></table></div>",
    )


def _class_row(row: results.ClassResult) -> str:
    cells = [f"<td class='name'>{page_html.escape(row.name)}</td>"]
    cells += [value_cell(value, "bar") for value in (row.ap, row.ap50, row.ap75)]
    cells += [f"<td data-value='{n}'>{n:,}</td>" for n in row[1:3]]
    best, curve = row.curve.best, row.curve
    for values in (curve.thresholds, curve.f1, curve.precision, curve.recall):
        cells.append(value_cell(-1.0 if best is None else float(values[best])))
    return f"<tr>{''.join(cells)}</tr>"


def value_cell(value: float, kind: str = "", *, longest: float = 1.0) -> str:
    """Returns a cell with a value of 0..1, which the page's script can sort.

    Args:
      value: The value, negative if there is none.
      kind: "bar" to draw the value as a bar, too.
      longest: The value whose bar fills the cell.
    """
    width = max(value, 0.0) / longest
    share = f" class='{kind}' style='--share:{width:.3f}'" if kind else ""
    return (
        f"<td{share} data-value='{value:.6f}'>{page_verdict.number(float(value))}</td>"
    )


def groups(rows: Sequence[results.Group]) -> str:
    """Returns a table for each kind of groups."""
    tables = []
    for dimension in dict.fromkeys(row.dimension for row in rows):
        body = "".join(
            f"<tr><td class='name'>{page_html.escape(row.name)}</td>"
            f"<td>{row.num_objects:,}</td>{value_cell(row.ap, 'bar')}"
            f"{value_cell(row.ap50, 'bar')}{value_cell(row.recall50, 'bar')}</tr>"
            for row in rows
            if row.dimension == dimension
        )
        tables.append(
            f"<div class='scroll'><table><thead><tr><th class='name'>"
            f"{page_html.escape(dimension)}</th><th>objects</th><th>AP</th><th>AP50</th>"
            f"<th>recall</th></tr></thead><tbody>{body}</tbody></table></div>"
        )
    content = f"<div class='columns tables'>{''.join(tables)}</div>"
    return page_html.section(
        "groups",
        "AP by group",
        "Objects outside of the group are ignored. Recall is the share of objects "
        "that a detection of their class finds at IoU 0.5.",
        content if rows else page_html.note("There are no groups."),
    )
