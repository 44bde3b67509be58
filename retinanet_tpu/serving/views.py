"""Views of an image, and the coordinates of boxes in them.

A view is a window of the image, mirrored or not. A model resizes any image to its input
size, so a window smaller than the image shows its objects larger, and a window larger
than the image shows them smaller.
"""

import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from retinanet_tpu.data import transforms
from retinanet_tpu.serving import batching

# A box that ends closer to the edge of its window, as a part of the window's longer
# side, may show a part of an object. Measured: .003 and .03 are worse.
_MARGIN = 0.01


class View(NamedTuple):
    """A window of an image.

    Attributes:
      top: The first row of the window, px of the image.
      left: The first column of the window, px of the image.
      height: The height of the window, px of the image.
      width: The width of the window, px of the image.
      is_mirrored: Whether left and right are exchanged.
    """

    top: int
    left: int
    height: int
    width: int
    is_mirrored: bool = False

    @property
    def ratio(self) -> int:
        """Returns the sides of the squares of pixels that become one pixel."""
        ratio = 1
        while -(-self.height // ratio) * -(-self.width // ratio) > batching.MAX_PIXELS:
            ratio += 1
        return ratio


def window_starts(side: int, window: int, overlap: float) -> list[int]:
    """Returns the starts of the fewest windows that cover a side, evenly spaced.

    Args:
      side: The height or width of the image, px.
      window: The height or width of each window, px.
      overlap: The part of a window that at least overlaps the next, in [0, 1).
    """
    if window >= side:
        return [0]
    stride = max(1, int(window * (1.0 - overlap)))
    count = -(-(side - window) // stride)
    return [(side - window) * index // count for index in range(count + 1)]


def cut(image: np.ndarray, view: View) -> np.ndarray:
    """Returns the pixels of a view, uint8 [h, w, 3].

    The part of a window outside of the image is below or at the right of it, also in a
    mirrored view, and has the color with which the model pads images.

    Args:
      image: uint8 [H, W, 3], RGB.
      view: The view.
    """
    part = image[view.top : view.top + view.height, view.left : view.left + view.width]
    ratio = view.ratio
    if view.is_mirrored:
        part = part[:, ::-1]
    if ratio > 1:
        part = _reduced(part, ratio)
    size = (-(-view.height // ratio), -(-view.width // ratio), 3)
    if part.shape == size:
        return part
    pixels = np.empty(size, np.uint8)
    pixels[:] = transforms.MEAN_COLOR
    pixels[: part.shape[0], : part.shape[1]] = part
    return pixels


def to_image(
    boxes_yxyx: np.ndarray, view: View, image_size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns boxes in the frame of the image, and which of them are inside.

    Args:
      boxes_yxyx: float32 [N, 4], px of the pixels of a view, see `cut`.
      view: The view.
      image_size: The height and width of the image, px.
    Returns:
      float32 [N, 4], px, clipped to the image; and bool [N], False for a box in the
      padding of the view.
    """
    height, width = image_size
    ymin, xmin, ymax, xmax = (boxes_yxyx * np.float32(view.ratio)).T
    if view.is_mirrored:
        right = np.float32(min(view.width, width - view.left))
        xmin, xmax = right - xmax, right - xmin
    is_inside = np.ones(len(boxes_yxyx), bool)
    if view.height > height or view.width > width:
        is_inside = (ymin < height) & (xmin < width) & (xmax > 0)
    top, left = np.float32(view.top), np.float32(view.left)
    boxes = np.stack([ymin + top, xmin + left, ymax + top, xmax + left], axis=-1)
    limits = np.array([height, width, height, width], np.float32)
    return np.clip(boxes, np.float32(0), limits), is_inside


def count_views(
    boxes_yxyx: np.ndarray,
    indices: np.ndarray,
    views: Sequence[View],
    image_size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns how many views show each box whole, and which boxes may be parts.

    A view shows a box whole if the box is in it and does not touch its inner edges,
    which are those that are not edges of the image.

    Args:
      boxes_yxyx: float32 [N, 4], px of the image.
      indices: int32 [N], the index of the view of each box.
      views: The views. Those of one size form a grid: each top is combined with each
        left.
      image_size: The height and width of the image, px.
    Returns:
      int32 [N]; and bool [N], True for a box that touches an inner edge of its view.
    """
    num_views = np.zeros(len(boxes_yxyx), np.int32)
    # In a grid, the number is a product of two axes, so thousands of tiles are cheap.
    grids = collections.defaultdict(list)
    for view in views:
        grids[view.height, view.width, view.is_mirrored].append(view)
    for (height, width, _), grid in grids.items():
        sides = (height, width)
        starts = ({view.top for view in grid}, {view.left for view in grid})
        by_axis = [
            np.sum(
                [
                    _is_between(boxes_yxyx, axis, start, sides, image_size)
                    for start in starts[axis]
                ],
                axis=0,
                dtype=np.int32,
            )
            for axis in (0, 1)
        ]
        num_views += by_axis[0] * by_axis[1]
    own = np.array(views, np.int32)[indices]
    is_whole = [
        _is_between(boxes_yxyx, axis, own[:, axis], (own[:, 2], own[:, 3]), image_size)
        for axis in (0, 1)
    ]
    return num_views, ~(is_whole[0] & is_whole[1])


def _is_between(
    boxes_yxyx: np.ndarray,
    axis: int,
    start: int | np.ndarray,
    sides: tuple[int, int] | tuple[np.ndarray, np.ndarray],
    image_size: tuple[int, int],
) -> np.ndarray:
    """Returns bool [N]: whether boxes do not touch two opposite edges of windows."""
    margin = _MARGIN * np.maximum(*sides)
    end = start + sides[axis]
    is_after = (start == 0) | (boxes_yxyx[:, axis] >= start + margin)
    is_before = boxes_yxyx[:, axis + 2] <= end - margin
    return is_after & (is_before | (end >= image_size[axis]))


def _reduced(pixels: np.ndarray, ratio: int) -> np.ndarray:
    """Returns the means of squares of pixels, uint8; the last squares may be cut."""
    height, width = (-(-side // ratio) for side in pixels.shape[:2])
    sums = np.zeros([height, width, 3], np.uint32)
    counts = np.zeros([height, width, 1], np.uint32)
    for y in range(ratio):
        for x in range(ratio):
            part = pixels[y::ratio, x::ratio]
            sums[: part.shape[0], : part.shape[1]] += part
            counts[: part.shape[0], : part.shape[1]] += 1
    return ((sums + counts // 2) // counts).astype(np.uint8)
