"""Writes the elements that all sections of the page of an analysis share."""

import html
import json

# CSS colors that differ in brightness too, for readers who see few hues.
KIND_COLORS = {
    "correct": "#4ade80",
    "class": "#d63fa6",
    "localization": "#e3b341",
    "both": "#8957e5",
    "duplicate": "#2f81f7",
    "background": "#ff7b1c",
    "missed": "#e5172f",
    "found": "#4ade80",
    "crowd": "#9198a1",
}


def escape(text: object) -> str:
    """Returns a text that is safe in HTML, also inside of attributes."""
    return html.escape(str(text), quote=True)


def section(key: str, title: str, text: str, content: str) -> str:
    """Returns a section of the page.

    Args:
      key: The id of the section.
      title: The heading.
      text: The explanation, plain text.
      content: The content, as HTML.
    """
    paragraph = f"<p class='text'>{escape(text)}</p>" if text else ""
    return f"<section id='{key}'><h2>{escape(title)}</h2>{paragraph}{content}</section>"


def nothing(text: str) -> str:
    """Returns a paragraph that states why a section is empty."""
    return f"<p class='note'>{escape(text)}</p>"


def embedded(key: str, data: object) -> str:
    """Returns data for the script; names in it cannot end the element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    text = text.replace("<", "\\u003c").replace("&", "\\u0026")
    return f"<script type='application/json' id='{key}'>{text}</script>"
