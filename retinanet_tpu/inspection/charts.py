"""The drawings of retinanet-tpu inspect_data: histograms, sample images, targets."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from retinanet_tpu.boxes.anchors import Anchors
from retinanet_tpu.data import category_map
from retinanet_tpu.evaluation import visualize
from retinanet_tpu.inspection import anchor_recall, anchor_search, dataset_stats
from retinanet_tpu.inspection.plotting import pyplot, ticker

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

_COLORS = ("#2f6fb0", "#e08a2c", "#4a9d5b", "#8d62b0")
_RED = (255, 40, 40)
_MAX_BARS = 24  # The number of classes that a bar chart has room for.
_WIDTH = 1000  # The width of a drawing of targets, px; small boxes stay visible.


def data_charts(
    splits: Sequence[dataset_stats.Split], categories: category_map.Categories
) -> np.ndarray:
    """Draws charts of images, boxes and classes, which need no network.

    Args:
      splits: The measured splits, the training split first.
      categories: The categories of the data directory.
    Returns:
      uint8 [H, W, 3].
    """
    figure, panels = pyplot.subplots(2, 2, figsize=(11, 7), dpi=110)
    _image_sizes(panels[0, 0], splits)
    counts = [split.boxes_per_image for split in splits]
    most = max([int(count.max()) for count in counts if len(count)], default=0)
    step = max(1, math.ceil((most + 1) / 40))
    _histogram(
        panels[0, 1],
        [split.name for split in splits],
        counts,
        np.arange(-0.5, most + 0.5 + step, step),
    )
    _finish(panels[0, 1], "boxes of an image", "boxes", "share of images")
    panels[0, 1].xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    _classes(panels[1, 0], splits, categories)
    centers = [
        s.boxes_yxyx.reshape(-1, 2, 2).mean(axis=1) / s.image_sizes[s.images]
        for s in splits
    ]
    _centers(panels[1, 1], np.concatenate(centers))
    return _pixels(figure, panels[1, 0])


def anchor_charts(
    named_boxes: Sequence[tuple[str, np.ndarray]],
    anchors: Anchors,
    image_size: tuple[int, int],
) -> np.ndarray:
    """Draws charts of boxes in the network's input beside the anchors of the run.

    Args:
      named_boxes: A name and boxes, float32 [N, 4], px of the network's input.
      anchors: The anchors of the run.
      image_size: The height and width of the network's input, px.
    Returns:
      uint8 [H, W, 3].
    """
    figure, panels = pyplot.subplots(1, 3, figsize=(11, 3.6), dpi=110)
    names = [name for name, _ in named_boxes]
    sides = [np.maximum(boxes[:, 2:] - boxes[:, :2], 1) for _, boxes in named_boxes]
    roots = [np.sqrt(s.prod(axis=-1)) for s in sides]
    edges = 2.0 ** np.arange(0, math.log2(2 * max(image_size)), 0.25)
    edges = _trimmed(edges, roots)
    _histogram(panels[0], names, roots, edges)
    panels[0].set_xscale("log", base=2)
    panels[0].xaxis.set_major_formatter(ticker.ScalarFormatter())
    for level in anchors.levels:
        for scale in anchors.scales:
            _mark(panels[0], anchors.size * scale * 2**level)
    panels[0].set_xlim(edges[0], edges[-1])
    _finish(panels[0], "side of a box (ticks: anchors)", "√area, px", "share")
    ratios = [s[:, 1] / s[:, 0] for s in sides]
    _histogram(panels[1], names, ratios, _trimmed(2.0 ** np.arange(-5, 5, 0.2), ratios))
    panels[1].set_xscale("log", base=2)
    panels[1].xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    for ratio in anchors.aspect_ratios:
        _mark(panels[1], ratio)
    _finish(panels[1], "aspect of a box (ticks: anchors)", "width / height", "share")
    ious = [
        anchor_search.best_iou(boxes, anchors, image_size) for _, boxes in named_boxes
    ]
    _histogram(panels[2], names, ious, np.linspace(0, 1, 41))
    panels[2].axvline(anchor_search.RECALL_IOU, color="#b03030", linewidth=1)
    _finish(panels[2], "IoU with the best anchor", "IoU", "share")
    return _pixels(figure, panels[0])


def annotated(
    pixels: np.ndarray, boxes_yxyx: np.ndarray, category_ids: np.ndarray
) -> np.ndarray:
    """Draws annotated boxes in the colors of their classes.

    Args:
      pixels: uint8 [H, W, 3], the image; not changed.
      boxes_yxyx: float32 [N, 4], px of the image.
      category_ids: int64 [N], the category of each box.
    Returns:
      uint8 [H, W, 3].
    """
    canvas = Image.fromarray(pixels)
    draw = ImageDraw.Draw(canvas, "RGBA")
    width = max(2, round(math.sqrt(canvas.width * canvas.height) * 0.005))
    for box, category_id in zip(boxes_yxyx, category_ids, strict=True):
        _rectangle(draw, box, (*visualize.class_color(int(category_id)), 255), width)
    return np.array(canvas)


def targets(
    pixels: np.ndarray,
    boxes_yxyx: np.ndarray,
    names: Sequence[str],
    assigned: anchor_recall.AssignedAnchors,
) -> np.ndarray:
    """Draws thick boxes, and the anchors assigned to each thin, in the same color.

    Args:
      pixels: uint8 [H, W, 3], the network's input.
      boxes_yxyx: float32 [N, 4], px of the network's input.
      names: The N class names of the boxes.
      assigned: The anchors.
    Returns:
      uint8 [H', W', 3], a small input enlarged; a box without an anchor is red.
    """
    zoom = max(1, round(_WIDTH / pixels.shape[1]))
    canvas = Image.fromarray(pixels).resize(
        (pixels.shape[1] * zoom, pixels.shape[0] * zoom), Image.Resampling.BILINEAR
    )
    draw = ImageDraw.Draw(canvas, "RGBA")
    counts = np.bincount(assigned.box_indices, minlength=len(boxes_yxyx))
    for anchor, box in zip(assigned.anchors_yxyx, assigned.box_indices, strict=True):
        _rectangle(draw, anchor * zoom, (*visualize.class_color(int(box)), 120), 1)
    font = ImageFont.load_default(size=22)
    for index, box in enumerate(boxes_yxyx * zoom):
        color = visualize.class_color(index) if counts[index] else _RED
        _rectangle(draw, box, (*color, 255), 3)
        text = f"{names[index]} {counts[index]}"
        corner = box[1] + 4, box[0] + 3
        left, top, right, bottom = draw.textbbox(corner, text, font=font)
        draw.rectangle((left - 3, top - 3, right + 3, bottom + 3), fill=(0, 0, 0, 190))
        draw.text(corner, text, fill="white", font=font)
    return np.array(canvas)


def _image_sizes(panel: "Axes", splits: Sequence[dataset_stats.Split]) -> None:
    for split, color in zip(splits, _COLORS, strict=False):
        sizes, counts = np.unique(split.image_sizes, axis=0, return_counts=True)
        if len(sizes):
            area = 12 + 150 * counts / counts.max()
            heights, widths = sizes.T
            panel.scatter(widths, heights, s=area, alpha=0.5, color=color)
    panel.set_xlim(left=0)
    panel.set_ylim(bottom=0)
    _finish(panel, "sizes of the images", "width, px", "height, px")


def _classes(
    panel: "Axes",
    splits: Sequence[dataset_stats.Split],
    categories: category_map.Categories,
) -> None:
    counts = [dataset_stats.class_counts(split, categories)[:, 0] for split in splits]
    used = [c for c in categories.categories if any(count[c.index] for count in counts)]
    used.sort(key=lambda c: -counts[0][c.index])
    if len(used) > _MAX_BARS:
        used = [*used[: _MAX_BARS // 2], *used[-_MAX_BARS // 2 :]]
    height = 0.8 / len(splits)
    for number, (split, count) in enumerate(zip(splits, counts, strict=True)):
        shares = [count[c.index] / max(1, count.sum()) for c in used]
        rows = np.arange(len(used)) + number * height
        bars = panel.barh(
            rows, shares, height, color=_COLORS[number % 4], label=split.name
        )
        panel.bar_label(
            bars, [f" {count[c.index]:,}" for c in used], fontsize=7, color="#444"
        )
    panel.set_yticks(
        np.arange(len(used)) + 0.4 - height / 2, [c.name for c in used], fontsize=8
    )
    panel.invert_yaxis()
    panel.margins(x=0.12)
    is_cut = len(used) < len(categories.categories)
    title = "classes, the most and least frequent" if is_cut else "classes"
    _finish(panel, title, "share of boxes", "")


def _centers(panel: "Axes", centers: np.ndarray) -> None:
    ys, xs = centers.T
    counts, _, _ = np.histogram2d(ys, xs, bins=24, range=[[0.0, 1.0], [0.0, 1.0]])
    panel.imshow(counts, extent=(0, 1, 1, 0), cmap="Blues", aspect="auto")
    panel.set_title("centers of the boxes", fontsize=10)
    panel.set_xlabel("share of the width", fontsize=8)
    panel.set_ylabel("share of the height", fontsize=8)
    panel.tick_params(labelsize=8)


def _histogram(
    panel: "Axes",
    names: Sequence[str],
    values: Sequence[np.ndarray],
    edges: np.ndarray,
) -> None:
    for name, numbers, color in zip(names, values, _COLORS, strict=False):
        if len(numbers):
            numbers = np.clip(numbers, edges[0], edges[-1])
            weights = np.full(len(numbers), 1 / len(numbers))
            panel.hist(numbers, list(edges), weights=weights, color=color, alpha=0.12)
            panel.hist(
                numbers, list(edges), weights=weights, color=color, histtype="step",
                label=f"{name} ({len(numbers):,})",
            )  # fmt: skip


def _trimmed(edges: np.ndarray, values: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the edges around the values, with one more bin on either side."""
    all_values = np.concatenate([v for v in values if len(v)] or [edges])
    first, last = np.searchsorted(edges, [all_values.min(), all_values.max()])
    return edges[max(0, first - 2) : last + 2]


def _mark(panel: "Axes", value: float) -> None:
    panel.axvline(value, ymax=0.06, color="#b03030", linewidth=1.5)


def _finish(panel: "Axes", title: str, x_label: str, y_label: str) -> None:
    panel.set_title(title, fontsize=10)
    panel.set_xlabel(x_label, fontsize=8)
    panel.set_ylabel(y_label, fontsize=8)
    panel.tick_params(labelsize=8)
    panel.grid(alpha=0.25)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _rectangle(
    draw: ImageDraw.ImageDraw,
    box_yxyx: np.ndarray,
    color: tuple[int, ...],
    width: int,
) -> None:
    # Annotations may have corners in the wrong order, or NaN.
    if np.isfinite(box_yxyx).all():
        (y0, y1), (x0, x1) = np.sort(box_yxyx[[0, 2]]), np.sort(box_yxyx[[1, 3]])
        draw.rectangle((x0, y0, x1, y1), outline=color, width=width)


def _pixels(figure: "Figure", labeled: "Axes") -> np.ndarray:
    """Returns the drawing, with the legend of one panel below all panels."""
    # Within a panel the legend would hide data.
    handles = labeled.get_legend_handles_labels()
    figure.legend(*handles, frameon=False, fontsize=8, ncols=4, loc="lower center")
    figure.tight_layout(rect=(0, 0.22 / figure.get_figheight(), 1, 1))
    canvas = cast("FigureCanvasAgg", figure.canvas)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    pyplot.close(figure)
    return pixels
