"""Writes the page of an analysis: one HTML file that loads nothing."""

import importlib.resources
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from retinanet_tpu.analysis import (
    page_charts,
    page_confusion,
    page_html,
    page_images,
    page_sections,
    results,
)

ImageFn = page_images.ImageFn
# Names and metrics of evaluations.
Compared = Sequence[tuple[str, Mapping[str, float]]]

_LINKS = (
    ("metrics", "Metrics"),
    ("errors", "Errors"),
    ("classes", "Classes"),
    ("curves", "Curves"),
    ("confusion", "Confusion"),
    ("groups", "Groups"),
    ("calibration", "Calibration"),
    ("images", "Images"),
    ("confident", "Confident errors"),
    ("labels", "Label errors"),
)
# A browser then refuses to load anything, also what a name might smuggle in.
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'"
)


def write(
    path: str,
    analysis: results.Analysis,
    *,
    title: str,
    subtitle: str = "",
    image_fn: ImageFn | None = None,
    compared: Compared = (),
    max_images: int = 24,
) -> None:
    """Writes the page of an analysis.

    Args:
      path: The path of the HTML file.
      analysis, title, subtitle, image_fn, compared, max_images: See `html`.
    """
    content = html(
        analysis,
        title=title,
        subtitle=subtitle,
        image_fn=image_fn,
        compared=compared,
        max_images=max_images,
    )
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(content)


def html(
    analysis: results.Analysis,
    *,
    title: str,
    subtitle: str = "",
    image_fn: ImageFn | None = None,
    compared: Compared = (),
    max_images: int = 24,
) -> str:
    """Returns the page of an analysis.

    Args:
      analysis: The analysis.
      title: The title of the page.
      subtitle: A line below the title, such as the checkpoint and the date.
      image_fn: Returns uint8 [H, W, 3], RGB, for the id of an image. Where it is None
        or returns None, boxes are drawn on gray.
      compared: The names and metrics of other evaluations.
      max_images: The highest number of images, of confident errors, and of suspected
        label errors.
    """
    files = importlib.resources.files("retinanet_tpu.analysis")
    style = files.joinpath("page.css").read_text("utf-8")
    script = files.joinpath("page.js").read_text("utf-8")
    links = "".join(f"<a href='#{key}'>{name}</a>" for key, name in _LINKS)
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<meta http-equiv='Content-Security-Policy' content=\"{_POLICY}\">",
        "<meta name='viewport' content='width=device-width'>",
        f"<title>{page_html.escape(title)}</title><style>{style}</style></head><body>",
        f"<h1>{page_html.escape(title)}</h1>",
        f"<p class='text'>{page_html.escape(subtitle)}</p><nav>{links}</nav>",
        page_sections.headline(analysis),
        page_sections.metrics(analysis.metrics, compared),
        page_charts.errors(analysis.errors),
        page_sections.classes(analysis.classes),
        page_charts.curves(analysis.all_classes, analysis.classes),
        page_confusion.confusion(analysis.confusion),
        page_sections.groups(analysis.groups),
        page_charts.calibration(analysis.calibration, analysis.calibration_error),
        page_images.worst(analysis, image_fn, max_images),
        page_images.confident_errors(analysis, image_fn, max_images),
        page_images.label_issues(analysis, image_fn, max_images),
        f"<script>{script}</script></body></html>\n",
    ]
    # Names with half of a surrogate pair cannot be encoded.
    return "\n".join(parts).encode("utf-8", "replace").decode("utf-8")


def previous_and_best(
    records: Sequence[Mapping[str, Any]], step: int | None
) -> Compared:
    """Returns the evaluations that an evaluation is compared with.

    Args:
      records: The lines of eval.jsonl.
      step: The step of the evaluation; None if it is unknown.
    Returns:
      The names and metrics of the evaluation before it, and of the best other one.
    """
    others = [r for r in records if r["global_step"] != step and "AP" in r]
    if not others:
        return ()
    before = [r for r in others if step is None or r["global_step"] < step]
    best = max(others, key=lambda r: r["AP"])
    named = [("best", best)]
    if before:
        named.insert(0, ("previous", max(before, key=lambda r: r["global_step"])))
    return tuple((f"{name}: step {r['global_step']}", r) for name, r in named)
