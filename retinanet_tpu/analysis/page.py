"""Writes the page of an analysis: one HTML file that loads no other files."""

from collections.abc import Mapping, Sequence
from typing import Any

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
    return page_html.document(
        title=title,
        subtitle=subtitle,
        links=_LINKS,
        sections=[
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
        ],
    )


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
