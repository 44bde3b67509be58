"""Writes the confusion of classes as a matrix or as tables."""

import numpy as np

from retinanet_tpu.analysis import page_html, results

_MATRIX_CLASSES = 25  # A larger matrix does not fit on the page.
_NUM_PAIRS = 30


def confusion(matrix: results.Confusion) -> str:
    """Returns the confusion matrix, or its largest entries for many classes."""
    text = (
        f"Detections with a score of at least {matrix.threshold:.2f}. Rows are the "
        "annotated classes, columns the detected ones."
    )
    if not np.any(matrix.counts):
        content = page_html.note("No object is annotated and nothing is detected.")
    elif len(matrix.names) <= _MATRIX_CLASSES:
        text += " The color is the share of the row."
        content = f"<div class='scroll'>{_matrix(matrix)}</div>"
    else:
        text = (
            f"{text.partition(' Rows')[0]} The {_NUM_PAIRS} most frequent errors of "
            "each sort. The share is that of the row of the matrix."
        )
        content = _pairs(matrix)
    return page_html.section("confusion", "Confusion of classes", text, content)


def _matrix(matrix: results.Confusion) -> str:
    counts = np.asarray(matrix.counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    last = len(matrix.names)
    columns = [*map(page_html.escape, matrix.names), "missed"]
    heads = "".join(f"<th title='{name}'><span>{name}</span></th>" for name in columns)
    body = []
    for row, name in enumerate([*map(page_html.escape, matrix.names), "background"]):
        cells = []
        for column, count in enumerate(counts[row]):
            if row == column == last:
                cells.append("<td class='off'></td>")
                continue
            share = float(shares[row, column])
            kinds = "dark " * (share > 0.55) + "diagonal-cell" * (row == column)
            title = f"{name} as {columns[column]}: {count:,} ({share:.0%} of the row)"
            cells.append(
                f"<td class='{kinds.strip()}' style='--share:{share:.3f}' "
                f"title='{title}'>{f'{count:,}' if count else ''}</td>"
            )
        body.append(f"<tr><th title='{name}'>{name}</th>{''.join(cells)}</tr>")
    return (
        f"<table class='confusion'><thead><tr><th></th>{heads}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def _pairs(matrix: results.Confusion) -> str:
    counts = np.array(matrix.counts)
    totals = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    names = list(matrix.names)
    between = counts[:-1, :-1]
    order = np.argsort(-between, axis=None, kind="stable")[:_NUM_PAIRS]
    pairs = [divmod(int(index), len(names)) for index in order]
    confused = [
        (names[row], names[column], int(between[row, column]), int(totals[row]))
        for row, column in pairs
    ]
    missed = [
        (names[row], "missed", int(counts[row, -1]), int(totals[row]))
        for row in np.argsort(-counts[:-1, -1], kind="stable")[:_NUM_PAIRS]
    ]
    invented = [
        ("background", names[column], int(counts[-1, column]), int(totals[-1]))
        for column in np.argsort(-counts[-1, :-1], kind="stable")[:_NUM_PAIRS]
    ]
    tables = []
    for entries in (confused, missed, invented):
        rows = "".join(
            f"<tr><td class='name'>{page_html.escape(true)}</td><td class='name'>"
            f"{page_html.escape(seen)}</td><td>{count:,}</td>"
            f"<td>{count / total:.0%}</td></tr>"
            for true, seen, count, total in entries
            if count
        )
        tables.append(
            "<div class='scroll'><table><thead><tr><th class='name'>object</th>"
            "<th class='name'>detected as</th><th>number</th><th>share</th></tr>"
            f"</thead><tbody>{rows}</tbody></table></div>"
        )
    return f"<div class='columns tables'>{''.join(tables)}</div>"
