"""The tables of retinanet-tpu inspect_data."""

from collections.abc import Mapping, Sequence

import numpy as np

from retinanet_tpu.data import category_map
from retinanet_tpu.evaluation import visualize
from retinanet_tpu.inspection import anchor_search, dataset_stats, report

_MAX_CLASSES = 100


def splits_table(splits: Sequence[dataset_stats.Split]) -> report.Table:
    """Returns the table of counts and sizes, one column for each split."""
    head = ["", *(split.name for split in splits)]
    columns = [_split_column(split) for split in splits]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    return report.Table(head, rows)


def _split_column(split: dataset_stats.Split) -> dict[str, str]:
    heights, widths = split.image_sizes.T
    per_image, sides = split.boxes_per_image, split.sides
    num_copies = sum(len(group) - 1 for group in dataset_stats.duplicates(split))
    return {
        "images": f"{len(split.image_ids):,}",
        "without boxes": f"{(per_image == 0).sum():,}",
        "copies of another": f"{num_copies:,}",
        "width, px": _range(widths),
        "height, px": _range(heights),
        "width / height": _range(widths / np.maximum(heights, 1)),
        "boxes": f"{len(split.boxes_yxyx):,}",
        "of which crowds": f"{split.is_crowd.sum():,}",
        "over the edge": f"{split.is_outside.sum():,}",
        "without a pixel inside": f"{(~split.is_usable).sum():,}",
        "boxes of an image": _range(per_image),
        "side of a box, px": _range(np.sqrt(np.maximum(sides.prod(axis=-1), 0))),
        "aspect of a box": _range(sides[:, 1] / np.maximum(sides[:, 0], 1)),
        **{
            f"{name} boxes": f"{(split.size_indexes == index).sum():,}"
            for index, name in enumerate(dataset_stats.SIZE_NAMES)
        },
    }


def _range(values: np.ndarray) -> str:
    """Returns the minimum, the median and the maximum."""
    if not len(values):
        return "-"
    low, middle, high = (np.min(values), np.median(values), np.max(values))
    return f"{low:.4g}" if low == high else f"{low:.4g} … {middle:.4g} … {high:.4g}"


def classes_table(
    splits: Sequence[dataset_stats.Split], categories: category_map.Categories
) -> report.Table:
    """Returns the table of classes, by falling number of boxes of the first split."""
    counts = [dataset_stats.class_counts(s, categories) for s in splits]
    head = ["class", "id", "index"]
    for split in splits:
        head += [f"boxes of {split.name}", "share", "images"]
    listed = sorted(categories.categories, key=lambda c: -counts[0][c.index, 0])
    rows = []
    for category in listed[:_MAX_CLASSES]:
        row = [category.name, str(category.id), str(category.index)]
        for count in counts:
            boxes, images = count[category.index]
            share = boxes / max(1, count[:, 0].sum())
            row += [f"{boxes:,}", f"{share:.1%}", f"{images:,}"]
        rows.append(row)
    colors = [visualize.class_color(c.id) for c in listed[:_MAX_CLASSES]]
    return report.Table(head, rows, colors)


def anchors_table(
    coverages: Sequence[tuple[str, Mapping[str, anchor_search.Coverage]]],
) -> report.Table:
    """Returns the table of recall by COCO's sizes.

    Args:
      coverages: The name of each row, and its coverage by size; at least one.
    """
    sizes = list(coverages[0][1])
    head = [""]
    for size in sizes:
        head += [f"{size} boxes", "recall", "mean IoU"]
    rows = []
    for name, by_size in coverages:
        row = [name]
        for size in sizes:
            coverage = by_size[size]
            row += [f"{coverage.num_boxes:,}"]
            row += [
                f"{value:.3f}" if coverage.num_boxes else "-"
                for value in (coverage.recall, coverage.mean_iou)
            ]
        rows.append(row)
    return report.Table(head, rows)
