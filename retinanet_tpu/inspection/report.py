"""The report of retinanet-tpu inspect_data: one HTML file, or one PNG."""

import base64
import collections
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
    data_issues.Severity.INFO: ("info", "#57606a"),
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
_PNG_WIDTH, _MARGIN, _LINE_HEIGHT = 1240, 24, 20  # px


class Table(NamedTuple):
    """A table of texts.

    Attributes:
      head: The C texts of the heading row.
      rows: The C texts of each row.
      colors: The RGB color of each row, 0..255, or none.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    colors: Sequence[tuple[int, int, int]] = ()


class Section(NamedTuple):
    """A section of the report.

    Attributes:
      title: The heading.
      text: A paragraph, or "".
      table: A table, or None.
      image: uint8 [H, W, 3], a drawing, or None.
      is_jpeg: Whether HTML contains the image as a JPEG, which suits camera images.
    """

    title: str
    text: str = ""
    table: Table | None = None
    image: np.ndarray | None = None
    is_jpeg: bool = False


def write(
    path: str,
    title: str,
    issues: Sequence[data_issues.Issue],
    sections: Sequence[Section],
) -> None:
    """Writes the report, as a PNG if the path ends in .png, else as HTML.

    Args:
      path: The path of the file.
      title: The title of the report.
      issues: The issues of the data.
      sections: The sections, in order.
    """
    if path.endswith(".png"):
        encoded = io.BytesIO()
        Image.fromarray(_as_image(title, issues, sections)).save(encoded, "PNG")
        content = encoded.getvalue()
    else:
        content = _as_html(title, issues, sections).encode()
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(content)


def verdict(issues: Sequence[data_issues.Issue]) -> str:
    """Returns a sentence that states whether the data are fit to train on.

    Args:
      issues: The issues of the data.
    """
    counts = collections.Counter(issue.severity for issue in issues)
    if num_errors := counts[data_issues.Severity.ERROR]:
        return f"Not fit to train on: {num_errors} error{'s' * (num_errors > 1)}."
    if num_warnings := counts[data_issues.Severity.WARNING]:
        return f"Can be trained on; {num_warnings} warning{'s' * (num_warnings > 1)}."
    return "Fit to train on: no errors or warnings."


def _as_html(
    title: str, issues: Sequence[data_issues.Issue], sections: Sequence[Section]
) -> str:
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1><p class='verdict'>{verdict(issues)}</p><ul>",
    ]
    for issue in issues:
        name, color = _MARKS[issue.severity]
        parts.append(
            f"<li style='border-color:{color}'><b style='color:{color}'>{name}</b> "
            f"{html.escape(issue.text)}</li>"
        )
    parts.append("</ul>")
    for section in sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
        if section.text:
            parts.append(f"<p class='text'>{html.escape(section.text)}</p>")
        if section.table:
            parts.append(_html_table(section.table))
        if section.image is not None:
            parts.append(
                _html_image(section.title, section.image, is_jpeg=section.is_jpeg)
            )
    return "\n".join([*parts, "</body></html>\n"])


def _html_table(table: Table) -> str:
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


def _html_image(title: str, image: np.ndarray, *, is_jpeg: bool) -> str:
    encoded = io.BytesIO()
    kind = "jpeg" if is_jpeg else "png"
    options = {"quality": 85} if is_jpeg else {}
    Image.fromarray(image).save(encoded, kind, **options)
    data = base64.b64encode(encoded.getvalue()).decode()
    alt = html.escape(title, quote=True)
    return f"<img alt='{alt}' src='data:image/{kind};base64,{data}'>"


def _as_image(
    title: str, issues: Sequence[data_issues.Issue], sections: Sequence[Section]
) -> np.ndarray:
    blocks = [_text_block([title], size=24), _text_block([verdict(issues)], size=18)]
    for issue in issues:
        name, color = _MARKS[issue.severity]
        lines = textwrap.wrap(f"{name}: {issue.text}", 150)
        blocks.append(_text_block(lines, color=color))
    for section in sections:
        blocks.append(_text_block(["", section.title], size=18))
        if section.text:
            blocks.append(_text_block(textwrap.wrap(section.text, 150)))
        if section.table:
            blocks.append(_table_block(section.table))
        if section.image is not None:
            blocks.append(_image_block(section.image))
    page = Image.new("RGB", (_PNG_WIDTH, sum(b.height for b in blocks) + 2 * _MARGIN))
    page.paste("white", (0, 0, *page.size))
    top = _MARGIN
    for block in blocks:
        page.paste(block, (_MARGIN, top))
        top += block.height
    return np.array(page)


def _text_block(
    lines: Sequence[str], *, size: int = 15, color: str = "#1f2328"
) -> Image.Image:
    font, line_height = ImageFont.load_default(size=size), round(size * 1.4)
    block = Image.new(
        "RGB", (_PNG_WIDTH - 2 * _MARGIN, line_height * len(lines) + 4), "white"
    )
    draw = ImageDraw.Draw(block)
    for row, line in enumerate(lines):
        draw.text((0, row * line_height), line, fill=color, font=font)
    return block


def _table_block(table: Table) -> Image.Image:
    font, rows = ImageFont.load_default(size=14), [table.head, *table.rows]
    widths = [
        max(font.getlength(row[column]) for row in rows) + 24
        for column in range(len(table.head))
    ]
    size = (_PNG_WIDTH - 2 * _MARGIN, _LINE_HEIGHT * len(rows) + 6)
    block = Image.new("RGB", size, "white")
    draw, indent = ImageDraw.Draw(block), 18 if table.colors else 0
    for number, row in enumerate(rows):
        top = number * _LINE_HEIGHT
        right: float = indent
        if number and table.colors:
            swatch = (0, top + 4, 11, top + 15)
            draw.rectangle(swatch, fill=tuple(table.colors[number - 1]))
        for column, (cell, width) in enumerate(zip(row, widths, strict=True)):
            right += width
            left = indent if not column else right - 24 - font.getlength(cell)
            draw.text((left, top), cell, fill="#1f2328", font=font)
    return block


def _image_block(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels)
    image.thumbnail((_PNG_WIDTH - 2 * _MARGIN, image.height))
    return image
