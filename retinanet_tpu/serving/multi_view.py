"""Detects objects in several views of each image: flips, scales and tiles.

Flips and scales are also called test-time augmentation (TTA).

  settings = multi_view.Views(flip=True, scales=(0.8, 1.0, 1.25))
  artifact = multi_view.wrap(artifact, settings)

The result is an artifact like any other. Its detections are those of all views, merged.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from retinanet_tpu import errors, structures
from retinanet_tpu.serving import artifacts, batching, merging, views as views_module
from retinanet_tpu.serving.views import View

MERGE_FNS = {"fusion": merging.fusion, "nms": merging.nms}
# Other scales would need millions of windows, or windows that contain nearly nothing.
_SCALES = (0.01, 100.0)
# Views of one size that are processed together, if the caller's batch is smaller.
_BATCH_SIZE = 8
# A mistake such as a tile of 1 px would otherwise run for days.
_MAX_VIEWS = 10_000


class TooManyViewsError(errors.UserError):
    """The settings require too many views of an image."""


@dataclasses.dataclass(frozen=True)
class Views:
    """The views of each image and how their detections are merged.

    Attributes:
      flip: Whether each view is also mirrored left to right.
      scales: The sizes of the image relative to the model's input. Below 1 the image is
        padded; above 1 it is cut into overlapping windows. None is 1, the whole image,
        without tiles and no scale with tiles.
      tile_size: The side of square tiles, px of the image; None for no tiles.
      tile_overlap: The part of a window that at least overlaps the next, in [0, 1).
      merge: The function that merges, a key of MERGE_FNS.
      iou_threshold: The IoU above which boxes of two views are of one object.
      max_detections: The most detections of an image; None for the model's own number.
    """

    flip: bool = False
    scales: tuple[float, ...] | None = None
    tile_size: int | None = None
    tile_overlap: float = 0.2
    merge: str = "fusion"
    iou_threshold: float = 0.55  # That of the paper of weighted boxes fusion.
    max_detections: int | None = None

    def __post_init__(self) -> None:
        """Raises UserError for a value out of range, or settings without a view."""
        for scale in self.scales or ():
            if not _SCALES[0] <= scale <= _SCALES[1]:
                raise errors.UserError(
                    f"scales contains {scale}; a scale must be between {_SCALES[0]:g} "
                    f"and {_SCALES[1]:g}, such as 1.25."
                )
        for name in ("tile_size", "max_detections"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise errors.UserError(f"{name} is {value}; it must be >= 1.")
        if not 0 <= self.tile_overlap < 1:
            raise errors.UserError(
                f"tile_overlap is {self.tile_overlap}, a part of a tile; it must be in "
                "[0, 1), such as 0.2."
            )
        if not 0 < self.iou_threshold < 1:
            raise errors.UserError(
                f"iou_threshold is {self.iou_threshold}; it must be between 0 and 1."
            )
        if self.merge not in MERGE_FNS:
            raise errors.UserError(
                f"merge is {self.merge!r}; choose one of {', '.join(MERGE_FNS)}."
            )
        if self.scales is not None and not (self.scales or self.tile_size):
            raise errors.UserError(
                "There is no view: scales is empty and there is no tile_size; set one "
                "of them."
            )

    def __str__(self) -> str:
        """Returns a summary on one line."""
        parts = [f"scale {scale:g}" for scale in self._scales]
        if self.tile_size:
            parts.append(f"tiles of {self.tile_size} px")
        mirrored = ", each also mirrored" if self.flip else ""
        return f"{', '.join(parts)}{mirrored}, merged by {self.merge}"

    @property
    def is_plain(self) -> bool:
        """Returns True if the only view is the image itself and all is returned."""
        return not self.has_several and self.max_detections is None

    @property
    def has_several(self) -> bool:
        """Returns True if there are other views than the image itself."""
        return bool(self.flip or self.tile_size or set(self._scales) != {1.0})

    def of_image(self, height: int, width: int) -> list[View]:
        """Returns the views of an image.

        Args:
          height: The height of the image, px.
          width: The width of the image, px.
        Raises:
          TooManyViewsError: There are more than 10,000.
        """
        sides = [
            (max(1, round(height / scale)), max(1, round(width / scale)))
            for scale in self._scales
        ]
        if self.tile_size:
            sides.append((min(self.tile_size, height), min(self.tile_size, width)))
        grids = {
            window: [
                views_module.window_starts(side, length, self.tile_overlap)
                for side, length in zip((height, width), window, strict=True)
            ]
            for window in sides
        }
        count = sum(len(tops) * len(lefts) for tops, lefts in grids.values())
        count *= 1 + self.flip
        if count > _MAX_VIEWS:
            raise TooManyViewsError(
                f"An image of {height} x {width} px would have {count} views ({self}); "
                f"at most {_MAX_VIEWS} are allowed. Choose larger tiles, smaller "
                "scales or less overlap."
            )
        views = [
            View(top, left, *window)
            for window, (tops, lefts) in grids.items()
            for top, left in itertools.product(tops, lefts)
        ]
        if self.flip:
            views += [view._replace(is_mirrored=True) for view in views]
        return views

    @property
    def _scales(self) -> tuple[float, ...]:
        if self.scales is not None:
            return self.scales
        return () if self.tile_size else (1.0,)


def wrap(artifact: artifacts.Artifact, settings: Views) -> artifacts.Artifact:
    """Returns an artifact that detects in several views of each image.

    The views are made and processed batch by batch, so the memory does not grow with
    their number. Views above 16 megapixels are reduced before the model gets them.

    Args:
      artifact: The model.
      settings: The views.
    Returns:
      The artifact; the given one if the only view is the image itself.
    """
    if settings.is_plain:
        return artifact
    detect_fn = functools.partial(detect, artifact=artifact, settings=settings)
    return dataclasses.replace(artifact, detect_fn=detect_fn)


def detect(
    images: np.ndarray, *, artifact: artifacts.Artifact, settings: Views
) -> structures.Detections:
    """Returns the merged detections of all views of images of one size.

    Args:
      images: uint8 [B, H, W, 3], RGB, with B > 0.
      artifact: The model.
      settings: The views.
    Raises:
      UserError: The model rejects a view.
      TooManyViewsError: There are too many views.
    """
    image_size = (images.shape[1], images.shape[2])
    views = settings.of_image(*image_size)
    found: list[list[_Found]] = [[] for _ in images]
    for row, one in _detect_views(images, artifact, views):
        found[row].append(one)
    max_detections = settings.max_detections or found[0][0].max_detections
    merge_fn = MERGE_FNS[settings.merge]
    return _stack(
        [
            merge_fn(
                _candidates(of_image, views, image_size),
                settings.iou_threshold,
                max_detections,
            )
            for of_image in found
        ],
        max_detections,
    )


class _Found(NamedTuple):
    """The detections in one view of an image, in its pixels."""

    view: int  # The index of the view.
    detections: structures.Detections  # Without the batch dimension and padding.
    max_detections: int  # The model's own number.


def _detect_views(
    images: np.ndarray, artifact: artifacts.Artifact, views: Sequence[View]
) -> Iterator[tuple[int, _Found]]:
    """Yields the index of an image and its detections in a view, in any order."""
    by_size = collections.defaultdict(list)
    for row in range(len(images)):
        for index, view in enumerate(views):
            by_size[view.height, view.width].append((row, index))
    for (height, width), jobs in by_size.items():
        size = batching.most_images(height, width, max(len(images), _BATCH_SIZE))
        for start in range(0, len(jobs), size):
            batch = jobs[start : start + size]
            pixels = [views_module.cut(images[row], views[i]) for row, i in batch]
            detections = artifact.detect(np.stack(pixels))
            for slot, (row, index) in enumerate(batch):
                selected = artifacts.select_image(detections, slot)
                yield row, _Found(index, selected, detections.scores.shape[1])


def _candidates(
    found: Sequence[_Found], views: Sequence[View], image_size: tuple[int, int]
) -> merging.Candidates:
    """Returns the detections of one image, without parts of objects."""
    parts = []
    for index, detections, _ in sorted(found, key=lambda one: one.view):
        boxes_yxyx, is_inside = views_module.to_image(
            detections.boxes_yxyx, views[index], image_size
        )
        indices = np.full(len(boxes_yxyx), index, np.int32)
        values = (boxes_yxyx, detections.scores, detections.classes, indices)
        parts.append([value[is_inside] for value in values])
    boxes_yxyx, scores, classes, indices = (
        np.concatenate(values) for values in zip(*parts, strict=True)
    )
    num_views, is_part = views_module.count_views(
        boxes_yxyx, indices, views, image_size
    )
    # A view that shows the whole box shows more of the object than a part of it does.
    # An object that is larger than the overlap of all views is cut in each of them;
    # its parts remain.
    order = np.flatnonzero(~is_part | (num_views == 0))
    order = order[np.argsort(-scores[order], kind="stable")]
    numbers = {view._replace(is_mirrored=False): i for i, view in enumerate(views)}
    windows = np.array(
        [numbers[view._replace(is_mirrored=False)] for view in views], np.int32
    )
    # The views of its window are those that can show the same part.
    num_same = np.bincount(windows)[windows].astype(np.int32)
    num_views = np.where(num_views == 0, num_same[indices], num_views)
    return merging.without_parts(
        merging.Candidates(
            boxes_yxyx[order],
            scores[order],
            classes[order],
            indices[order],
            num_views[order],
            is_part[order],
            windows[indices[order]],
        )
    )


def _stack(
    merged: Sequence[merging.Merged], max_detections: int
) -> structures.Detections:
    """Returns the detections of several images as a batch, padded with 0."""
    shape = (len(merged), max_detections)
    boxes_yxyx = np.zeros([*shape, 4], np.float32)
    scores = np.zeros(shape, np.float32)
    classes = np.zeros(shape, np.int32)
    for row, one in enumerate(merged):
        count = len(one.scores)
        boxes_yxyx[row, :count] = one.boxes_yxyx
        scores[row, :count] = one.scores
        classes[row, :count] = one.classes
    counts = np.array([len(one.scores) for one in merged], np.int32)
    return structures.Detections(boxes_yxyx, scores, classes, counts)
