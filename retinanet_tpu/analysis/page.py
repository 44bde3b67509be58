"""Writes the page of an analysis: one HTML file that loads nothing."""

from collections.abc import Mapping, Sequence

from retinanet_tpu.analysis import (
    page_charts,
    page_confusion,
    page_html,
    page_images,
    page_sections,
    results,
)

ImageFn = page_images.ImageFn

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


def write(
    path: str,
    analysis: results.Analysis,
    *,
    title: str,
    subtitle: str = "",
    image_fn: ImageFn | None = None,
    compared: Sequence[tuple[str, Mapping[str, float]]] = (),
    max_images: int = 24,
) -> None:
    """Writes the page of an analysis.

    Args:
      path: The path of the HTML file.
      analysis: The analysis.
      title: The title of the page.
      subtitle: A line below the title, such as the checkpoint and the date.
      image_fn: Returns uint8 [H, W, 3], RGB, for the id of an image. Where it is None
        or returns None, boxes are drawn on gray.
      compared: The names and metrics of other evaluations.
      max_images: The highest number of images, of confident errors, and of suspected
        label errors.
    """
    page_html.write(
        path,
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
