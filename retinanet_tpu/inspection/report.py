"""The page that retinanet-tpu inspect_data writes: one HTML file, or one PNG."""

import base64
import html
import io
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFont

from retinanet_tpu.inspection import data_issues

_MARKS = {
    data_issues.Severity.ERROR: ("error", "#b3261e"),
    data_issues.Severity.WARNING: ("warning", "#9a6700"),
    data_issues.Severity.NOTE: ("note", "#57606a"),
}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; margin: 2rem auto;
  max-width: 1120px; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p.verdict { font-weight: 600; margin: 0 0 1rem; }
ul { list-style: none; padding: 0; } li { border-left: 4px solid; padding: .2rem .8rem;
  margin: .4rem 0; background: #f6f8fa; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; text-align: right;
  border-bottom: 1px solid #d8dee4; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
img { max-width: 100%; display: block; } figure { margin: 0 0 1rem; }
figcaption, p.text { color: #57606a; }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .5em; }
"""
_PNG_WIDTH, _MARGIN, _LINE = 1240, 24, 20


class Table(NamedTuple):
    """Rows of texts under a heading row."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    colors: Sequence[tuple[int, int, int]] = ()  # of the rows, or none


class Section(NamedTuple):
    """A heading and what stands below it."""

    title: str
    text: str = ""
    table: Table | None = None
    picture: np.ndarray | None = None  # uint8 [H, W, 3]
    is_photograph: bool = False


def write(
    path: str,
    title: str,
    found: Sequence[data_issues.Issue],
    sections: Sequence[Section],
) -> None:
    """Writes the page, as a PNG if the path ends so, else as HTML.

    Args:
      path: of the file.
      title: of the page.
      found: what is to be looked at.
      sections: the rest, in order.
    """
    if path.endswith(".png"):
        encoded = io.BytesIO()
        Image.fromarray(_as_picture(title, found, sections)).save(encoded, "PNG")
        content = encoded.getvalue()
    else:
        content = _as_html(title, found, sections).encode()
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(content)


def verdict(found: Sequence[data_issues.Issue]) -> str:
    """Returns the sentence that everything else explains."""
    counts = {s: sum(f.severity == s for f in found) for s in data_issues.Severity}
    if errors := counts[data_issues.Severity.ERROR]:
        return f"Not fit to train on: {errors} error{'s' * (errors > 1)}."
    warnings = counts[data_issues.Severity.WARNING]
    if warnings:
        return f"Can be trained on; {warnings} warning{'s' * (warnings > 1)}."
    return "Fit to train on: nothing wrong was found."


def _as_html(title, found, sections) -> str:
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1><p class='verdict'>{verdict(found)}</p><ul>",
    ]
    for finding in found:
        name, color = _MARKS[finding.severity]
        parts.append(
            f"<li style='border-color:{color}'><b style='color:{color}'>{name}</b> "
            f"{html.escape(finding.text)}</li>"
        )
    parts.append("</ul>")
    for section in sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
        if section.text:
            parts.append(f"<p class='text'>{html.escape(section.text)}</p>")
        if section.table:
            parts.append(_html_table(section.table))
        if section.picture is not None:
            parts.append(_html_picture(section))
    return "\n".join([*parts, "</body></html>\n"])


def _html_table(table) -> str:
    lines = [
        "<table><tr>",
        *(f"<th>{html.escape(c)}</th>" for c in table.head),
        "</tr>",
    ]
    for number, row in enumerate(table.rows):
        cells = [html.escape(cell) for cell in row]
        if table.colors:
            red, green, blue = table.colors[number]
            style = f"background:rgb({red},{green},{blue})"
            cells[0] = f"<span class='swatch' style='{style}'></span>{cells[0]}"
        lines += ["<tr>", *(f"<td>{cell}</td>" for cell in cells), "</tr>"]
    return "".join([*lines, "</table>"])


def _html_picture(section) -> str:
    encoded, picture = io.BytesIO(), Image.fromarray(section.picture)
    kind = "jpeg" if section.is_photograph else "png"
    picture.save(encoded, kind, **({"quality": 85} if kind == "jpeg" else {}))
    data = base64.b64encode(encoded.getvalue()).decode()
    alt = html.escape(section.title, quote=True)
    return f"<img alt='{alt}' src='data:image/{kind};base64,{data}'>"


def _as_picture(title, found, sections) -> np.ndarray:
    blocks = [_written([title], size=24), _written([verdict(found)], size=18)]
    for finding in found:
        name, color = _MARKS[finding.severity]
        lines = textwrap.wrap(f"{name}: {finding.text}", 150)
        blocks.append(_written(lines, color=color))
    for section in sections:
        blocks.append(_written(["", section.title], size=18))
        if section.text:
            blocks.append(_written(textwrap.wrap(section.text, 150)))
        if section.table:
            blocks.append(_drawn_table(section.table))
        if section.picture is not None:
            blocks.append(_fitted(section.picture))
    page = Image.new("RGB", (_PNG_WIDTH, sum(b.height for b in blocks) + 2 * _MARGIN))
    page.paste("white", (0, 0, *page.size))
    top = _MARGIN
    for block in blocks:
        page.paste(block, (_MARGIN, top))
        top += block.height
    return np.array(page)


def _written(lines, *, size=15, color="#1f2328") -> Image.Image:
    font, high = ImageFont.load_default(size=size), round(size * 1.4)
    block = Image.new("RGB", (_PNG_WIDTH - 2 * _MARGIN, high * len(lines) + 4), "white")
    draw = ImageDraw.Draw(block)
    for row, line in enumerate(lines):
        draw.text((0, row * high), line, fill=color, font=font)
    return block


def _drawn_table(table) -> Image.Image:
    font, rows = ImageFont.load_default(size=14), [table.head, *table.rows]
    widths = [
        max(font.getlength(row[column]) for row in rows) + 24
        for column in range(len(table.head))
    ]
    size = (_PNG_WIDTH - 2 * _MARGIN, _LINE * len(rows) + 6)
    block = Image.new("RGB", size, "white")
    draw, indent = ImageDraw.Draw(block), 18 if table.colors else 0
    for number, row in enumerate(rows):
        top, right = number * _LINE, indent
        if number and table.colors:
            swatch = (0, top + 4, 11, top + 15)
            draw.rectangle(swatch, fill=tuple(table.colors[number - 1]))
        for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
            right += width
            left = indent if not column else right - 24 - font.getlength(cell)
            draw.text((left, top), cell, fill="#1f2328", font=font)
    return block


def _fitted(pixels: np.ndarray) -> Image.Image:
    picture = Image.fromarray(pixels)
    picture.thumbnail((_PNG_WIDTH - 2 * _MARGIN, picture.height))
    return picture
