"""Writes the frame of a page, and the elements that its sections share."""

import html
import importlib.resources
import json
import os
from collections.abc import Iterable, Sequence

import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.estimator.model_dir import files

# A browser then refuses to load anything, also what a name might smuggle in.
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'"
)

# CSS colors that differ in brightness too, for readers who see few hues.
KIND_COLORS = {
    "correct": "#4ade80",
    "class": "#d63fa6",
    "localization": "#e3b341",
    "both": "#8957e5",
    "duplicate": "#2f81f7",
    "background": "#ff7b1c",
    "missed": "#e5172f",
    "not detected": "#e5172f",
    "found": "#4ade80",
    "crowd": "#9198a1",
}


def escape(text: object) -> str:
    """Returns a text that is safe in HTML, also inside of attributes."""
    return html.escape(str(text), quote=True)


def check_output(path: str) -> None:
    """Makes the folder of a page and tries to write there, before the work starts.

    Args:
      path: The path of the HTML file.
    Raises:
      UserError: The path is that of a directory, the folder cannot be made, or no file
        can be written in it.
    """
    folder = os.path.dirname(path)
    try:
        if folder:
            tf.io.gfile.makedirs(folder)
    except tf.errors.OpError as error:
        raise errors.UserError(
            f"--output={path}: its folder cannot be made: {error.message}"
        ) from error
    if tf.io.gfile.isdir(path):
        raise errors.UserError(f"--output={path} is a directory; give an HTML file.")
    trial = f"{path}.trial"
    try:
        files.write_whole(trial, "")
        tf.io.gfile.remove(trial)
    except tf.errors.OpError as error:
        raise errors.UserError(
            f"--output={path} cannot be written: {error.message}; give another path."
        ) from error


def document(
    *,
    title: str,
    subtitle: str,
    links: Sequence[tuple[str, str]],
    sections: Iterable[str],
) -> str:
    """Returns a page: the HTML of one file that loads no other files.

    Args:
      title: The title, plain text.
      subtitle: A line below the title, plain text.
      links: The ids and names of the sections that the page links to.
      sections: The sections, as HTML.
    """
    package = importlib.resources.files("retinanet_tpu.analysis")
    style = package.joinpath("page.css").read_text("utf-8")
    script = package.joinpath("page.js").read_text("utf-8")
    anchors = "".join(f"<a href='#{key}'>{name}</a>" for key, name in links)
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<meta http-equiv='Content-Security-Policy' content=\"{_POLICY}\">",
        "<meta name='viewport' content='width=device-width'>",
        f"<title>{escape(title)}</title><style>{style}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f"<p class='text'>{escape(subtitle)}</p><nav>{anchors}</nav>",
        *sections,
        f"<script>{script}</script></body></html>\n",
    ]
    # Names with half of a surrogate pair cannot be encoded.
    return "\n".join(parts).encode("utf-8", "replace").decode("utf-8")


def write(path: str, content: str) -> None:
    """Writes a page atomically.

    Args:
      path: The path of the HTML file.
      content: The result of `document`.
    """
    files.write_whole(path, content)


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


def note(text: str) -> str:
    """Returns a note, such as why a section is empty."""
    return f"<p class='note'>{escape(text)}</p>"


def embedded(key: str, data: object) -> str:
    """Returns data for the script; names in it cannot end the element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    text = text.replace("<", "\\u003c").replace("&", "\\u0026")
    return f"<script type='application/json' id='{key}'>{text}</script>"
