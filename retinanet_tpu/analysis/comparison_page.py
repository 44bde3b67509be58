"""Writes the page of a comparison: one HTML file that loads no other files."""

from collections.abc import Iterator, Sequence

from retinanet_tpu.analysis import (
    comparison,
    comparison_text,
    page_drawing,
    page_html,
    page_sections,
    page_verdict,
    results,
)

ImageFn = page_drawing.ImageFn

_LINKS = (
    ("metrics", "Metrics"),
    ("errors", "Errors"),
    ("classes", "Classes"),
    ("images", "Images"),
)
_WIDTH = 480  # px, of the embedded images.


def write(
    path: str,
    compared: comparison.Comparison,
    *,
    title: str,
    subtitle: str = "",
    image_fn: ImageFn | None = None,
    max_images: int = 12,
) -> None:
    """Writes the page of a comparison.

    Args:
      path: The path of the HTML file.
      compared: The comparison.
      title: The title of the page.
      subtitle: A line below the title.
      image_fn: Returns uint8 [H, W, 3], RGB, for the id of an image. Where it is None
        or returns None, boxes are drawn on gray.
      max_images: The highest number of images that got worse, and of those that got
        better, of each evaluation.
    """
    content = page_html.document(
        title=title,
        subtitle=subtitle,
        links=_LINKS,
        sections=[
            headline(compared),
            metrics(compared),
            errors(compared),
            classes(compared),
            images(compared, image_fn, max_images),
        ],
    )
    page_html.write(path, content)


def headline(compared: comparison.Comparison) -> str:
    """Returns the AP of each evaluation, images without detections, and the verdict.

    Args:
      compared: The comparison.
    """
    tiles = "".join(
        f"<div><b>{page_verdict.number(each.all_classes.ap)}</b>"
        f"<span>AP of {page_html.escape(each.name)}</span></div>"
        for each in compared.evaluations
    )
    verdicts = "".join(
        f"<p class='verdict'>"
        f"{page_html.escape(comparison_text.verdict(compared.baseline, other))}</p>"
        for other in compared.others
    )
    notes = "".join(map(page_html.note, comparison_text.coverage_notes(compared)))
    return (
        f"<section id='summary'><div class='tiles'>{tiles}</div>{notes}{verdicts}"
        "</section>"
    )


def metrics(compared: comparison.Comparison) -> str:
    """Returns the twelve metrics, with differences and intervals.

    Args:
      compared: The comparison.
    """
    rows = []
    for name, value in compared.baseline.metrics.items():
        cells = [
            f"<td class='name'><b>{name}</b></td>"
            f"<td class='name'>{page_sections.METRIC_MEANINGS[name]}</td>"
            f"<td>{page_verdict.number(value)}</td>"
        ]
        for other in compared.others:
            new = other.evaluation.metrics[name]
            interval = other.intervals.get(name)
            text = comparison_text.interval_text(interval) if interval else ""
            cells.append(
                f"<td><b>{page_verdict.number(new)}</b></td>"
                f"{page_sections.difference_cell(new, value)}"
                f"<td class='interval'>{text}</td>"
            )
        rows.append("".join(cells))
    heads = _heads(compared, "", ("", "difference", "95 % confidence interval"))
    return page_html.section(
        "metrics",
        "Metrics",
        comparison_text.interval_note(compared),
        _table(f"<th class='name'>metric</th><th class='name'></th>{heads}", rows),
    )


def errors(compared: comparison.Comparison) -> str:
    """Returns the cost of each kind of errors in each evaluation.

    Args:
      compared: The comparison.
    """
    everything = [cost for each in compared.evaluations for cost in each.errors]
    longest = max(cost.ap50_cost for cost in everything)
    rows = []
    for number, cost in enumerate(compared.baseline.errors):
        cells = [
            f"<td class='name' title='{page_verdict.meaning(cost.kind)}'>"
            f"<b>{cost.kind}</b></td>{_cost_cells(cost, longest)}"
        ]
        for other in compared.others:
            new = other.evaluation.errors[number]
            difference = page_sections.difference_cell(
                max(new.ap50_cost, 0.0), max(cost.ap50_cost, 0.0), is_less_better=True
            )
            cells.append(f"{_cost_cells(new, longest)}{difference}")
        rows.append("".join(cells))
    heads = _heads(compared, "<th>errors</th>", ("", "errors", "difference"))
    terms = "; ".join(
        f"{cost.kind}: {page_verdict.meaning(cost.kind)}"
        for cost in compared.baseline.errors
    )
    return page_html.section(
        "errors",
        "Errors and their cost",
        "The AP50 that is gained if all errors of one kind, and no others, are "
        f"corrected. {terms[0].upper()}{terms[1:]}.",
        _table(f"<th class='name'>kind</th>{heads}", rows),
    )


def _cost_cells(cost: results.ErrorCost, longest: float) -> str:
    value = page_sections.value_cell(
        max(cost.ap50_cost, 0.0), "bar", longest=max(longest, 1e-9)
    )
    return f"{value}<td>{cost.num_errors:,}</td>"


def _table(heads: str, rows: Sequence[str], *, kind: str = "") -> str:
    """Returns a table of the cells of each row."""
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f"<div class='scroll'><table class='{kind}compared'><thead><tr>{heads}</tr>"
        f"</thead><tbody>{body}</tbody></table></div>"
    )


def _heads(
    compared: comparison.Comparison, after_baseline: str, columns: Sequence[str]
) -> str:
    """Returns the headings: that of the baseline, and those of each other evaluation.

    The first column of an evaluation has its name.
    """
    heads = [f"<th>{page_html.escape(compared.baseline.name)}</th>{after_baseline}"]
    for other in compared.others:
        names = [page_html.escape(other.evaluation.name), *columns[1:]]
        heads += [f"<th>{name}</th>" for name in names]
    return "".join(heads)


def classes(compared: comparison.Comparison) -> str:
    """Returns the AP of each class, the largest loss of the first evaluation first.

    Args:
      compared: The comparison.
    """
    first = compared.others[0].evaluation.classes
    before = compared.baseline.classes

    def order(number: int) -> tuple[bool, float]:
        return first[number].ap < 0, first[number].ap - before[number].ap

    rows = []
    for number in sorted(range(len(before)), key=order):
        old = before[number]
        cells = [
            f"<td class='name'>{page_html.escape(old.name)}</td>"
            f"<td data-value='{old.num_objects}'>{old.num_objects:,}</td>"
            f"{page_sections.value_cell(old.ap, 'bar')}"
        ]
        for other in compared.others:
            new = other.evaluation.classes[number]
            cells.append(
                f"{page_sections.value_cell(new.ap, 'bar')}"
                f"{page_sections.difference_cell(new.ap, old.ap)}"
            )
        rows.append("".join(cells))
    names = ["class", "objects", compared.baseline.name]
    for other in compared.others:
        names += [other.evaluation.name, "difference"]
    heads = "".join(
        f"<th{' class=name' * (not number)}{_sorted(number)}><button type='button'>"
        f"{page_html.escape(name)}</button></th>"
        for number, name in enumerate(names)
    )
    return page_html.section(
        "classes",
        "AP of each class",
        "A click on a heading sorts.",
        _table(heads, rows, kind="sortable "),
    )


def _sorted(column: int) -> str:
    """Returns the mark of the column by which the classes are sorted at first."""
    return " aria-sort='ascending'" if column == 4 else ""


def images(
    compared: comparison.Comparison, image_fn: ImageFn | None, count: int
) -> str:
    """Returns the images that changed most, in both evaluations side by side.

    Args:
      compared: The comparison.
      image_fn: Returns uint8 [H, W, 3] for the id of an image, or None.
      count: The highest number of images of each list.
    """
    shown = list(_shown(compared, count))
    title = "Images that changed"
    if not shown:
        empty = page_html.note("No image got better or worse.")
        return page_html.section("images", title, "", empty)
    boxes = [
        box
        for _, _, change in shown
        for image in (change.before, change.after)
        for box in (*image.objects, *image.detections)
    ]
    controls = page_drawing.filters(
        boxes,
        num_figures=len(shown),
        min_score=min(each.threshold for each in compared.evaluations),
        groups=list(dict.fromkeys(group for group, _, _ in shown)),
    )
    figures = "".join(
        _figure(f"i{number}", group, names, change, image_fn)
        for number, (group, names, change) in enumerate(shown)
    )
    thresholds = ", ".join(
        f"{each.threshold:.2f} for “{each.name}”" for each in compared.evaluations
    )
    counts = ", ".join(
        f"{len(other.worse):,} got worse and {len(other.better):,} better in "
        f"“{other.evaluation.name}”"
        for other in compared.others
    )
    return page_html.section(
        "images",
        title,
        "An image is worse if its correct detections minus its wrong ones decreased. "
        "Detections count from the score of the highest F1 of each evaluation on "
        f"({thresholds}). Of {compared.num_images:,} images {counts}. At most {count} "
        "of each are shown, the largest change first. "
        "Solid boxes are detections, dashed ones annotated objects. Point at a box to "
        "see its class, score and IoU.",
        f"{page_drawing.legend()}{controls}"
        f"<div class='shots pairs' id='shots'>{figures}</div>",
    )


def _shown(
    compared: comparison.Comparison, count: int
) -> Iterator[tuple[str, tuple[str, str], comparison.Change]]:
    """Yields the group, the names of the two evaluations, and the change."""
    for other in compared.others:
        name = other.evaluation.name
        prefix = f"{name}: " if len(compared.others) > 1 else ""
        for kind, changes in (("worse", other.worse), ("better", other.better)):
            for change in changes[:count]:
                yield f"{prefix}{kind}", (compared.baseline.name, name), change


def _figure(
    key: str,
    group: str,
    names: tuple[str, str],
    change: comparison.Change,
    image_fn: ImageFn | None,
) -> str:
    pixels = image_fn(change.before.image_id) if image_fn else None
    pair = [
        page_drawing.with_size(image, pixels) for image in (change.before, change.after)
    ]
    # Without a known size both drawings have the larger one.
    height = max(image.height for image in pair)
    width = max(image.width for image in pair)
    frame = (0, 0, height, width)
    # The pixels are embedded once.
    behind = [
        page_drawing.background(
            pair[0]._replace(height=height, width=width),
            frame,
            pixels,
            _WIDTH,
            key=key,
        ),
        f"<use href='#{key}'/>",
    ]
    sides = "".join(
        f"<div>{page_drawing.drawing(image, frame, _boxes(image), element)}"
        f"<p>{page_html.escape(name)}<br><b>F1 {image.f1:.2f}</b> · "
        f"{page_drawing.error_counts(_boxes(image))}</p></div>"
        for name, image, element in zip(names, pair, behind, strict=True)
    )
    kind = "good" if change.gain > 0 else "bad"
    return (
        f"<figure data-group='{page_html.escape(group)}'><div class='pair'>{sides}"
        f"</div><figcaption><b class='{kind}'>{change.gain:+d}</b> · correct "
        f"{_count(change.before, True)} → {_count(change.after, True)} · wrong "
        f"{_count(change.before, False)} → {_count(change.after, False)}<br>"
        f"{page_drawing.image_name(change.before)}</figcaption></figure>"
    )


def _boxes(image: results.ImageResult) -> list[results.ShownBox]:
    return [*image.objects, *image.detections]


def _count(image: results.ImageResult, is_correct: bool) -> int:
    return sum((box.kind == "correct") == is_correct for box in image.detections)
