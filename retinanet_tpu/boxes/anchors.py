"""The reference boxes that the network's boxes are relative to."""

import itertools
from collections.abc import Sequence

import numpy as np

from retinanet_tpu import errors
from retinanet_tpu.boxes.box_coder import AnchorOffsets, BoxCoder

# The backbone's coarsest level. torchvision pads images to multiples of its stride.
_WHOLE_PIXELS_LEVEL = 5


class Anchors:
    """The fixed boxes that predictions are relative to, and their representation.

    Level l has a grid of cells that are 2^l pixels wide. Every cell has `num_per_cell`
    anchors around its center, or around another point of the cell. The order is: level,
    row, column, aspect ratio, scale.

    Source: RetinaNet, arXiv:1708.02002, section 4 "Anchors".
    """

    def __init__(
        self,
        *,
        min_level: int = 3,
        max_level: int = 7,
        scales: Sequence[float] = (1.0, 2 ** (1 / 3), 2 ** (2 / 3)),
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        size: float = 4.0,
        center: float = 0.5,
        whole_pixels: bool = False,
        box_coder: BoxCoder = AnchorOffsets(),
    ):
        """Initializes the anchors; their boxes depend on the image size.

        Args:
          min_level: The finest pyramid level.
          max_level: The coarsest pyramid level.
          scales: The factors of the base side.
          aspect_ratios: The ratios width / height, at the same area.
          size: The base side in strides. 4 means 32 px on P3 and 512 px on P7.
          center: The place of the anchors in their cell, in strides: 0.5 is the center,
            0 the top left corner, as in torchvision.
          whole_pixels: Whether strides, sides and corners are whole pixels, as in
            torchvision. A stride is then the side of the image // the number of cells,
            and an image's sides may be any multiples of 32.
          box_coder: The representation of a box relative to its anchor.
        Raises:
          UserError: max_level is below min_level, a sequence is empty, or a number is
            not positive.
        """
        if not 0 <= min_level <= max_level:
            raise errors.UserError(
                f"Anchors needs 0 <= min_level <= max_level, got {min_level} and "
                f"{max_level}."
            )
        shapes = (*scales, *aspect_ratios, size)
        if not (len(scales) and len(aspect_ratios) and min(shapes) > 0):
            raise errors.UserError(
                f"Anchors needs at least one scale ({scales}) and one aspect ratio "
                f"({aspect_ratios}), all of them and size ({size}) above 0."
            )
        self.min_level = min_level
        self.max_level = max_level
        self.scales = tuple(scales)
        self.aspect_ratios = tuple(aspect_ratios)
        self.size = size
        self.center = center
        self.whole_pixels = whole_pixels
        self.box_coder = box_coder

    @property
    def levels(self) -> tuple[int, ...]:
        """Returns the pyramid levels, finest first."""
        return tuple(range(self.min_level, self.max_level + 1))

    @property
    def num_per_cell(self) -> int:
        """Returns the number of anchors in one cell."""
        return len(self.scales) * len(self.aspect_ratios)

    def grid_sizes(self, image_size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        """Returns the number of rows and of columns of each level's grid.

        Args:
          image_size: The height and width of the network's input, px.
        Raises:
          UserError: A side is not a multiple of the coarsest level's stride; or of 32
            with whole_pixels.
        """
        coarsest = self.max_level
        if self.whole_pixels:
            coarsest = min(coarsest, _WHOLE_PIXELS_LEVEL)
        stride = 2**coarsest
        if any(side <= 0 or side % stride for side in image_size):
            nearest = tuple(
                sorted(
                    {max(stride, side // stride * stride), -(-side // stride) * stride}
                )
                for side in (max(side, 1) for side in image_size)
            )
            raise errors.UserError(
                f"image_size {tuple(image_size)} must be a multiple of {stride}, the "
                f"stride of P{coarsest}, on both sides; set IMAGE_SIZE to a "
                f"height of {nearest[0]} and a width of {nearest[1]}, or near it."
            )
        height, width = image_size
        # Rounded up, as convolutions of stride 2 do.
        return tuple((-(-height >> level), -(-width >> level)) for level in self.levels)

    def boxes_cyxhw(self, image_size: tuple[int, int]) -> tuple[np.ndarray, ...]:
        """Returns the anchors of each level.

        Args:
          image_size: The height and width of the network's input, px.
        Returns:
          float32 [rows * columns * num_per_cell, 4] for each level: centers and sizes,
          px, not clipped to the image.
        Raises:
          UserError: A side is not a multiple of the coarsest level's stride.
        """
        boxes = []
        for level, (rows, columns) in zip(
            self.levels, self.grid_sizes(image_size), strict=True
        ):
            strides = np.array([2**level, 2**level])
            if self.whole_pixels:
                strides = np.array(image_size) // (rows, columns)
            sizes_hw = self.sizes_hw(level)
            grid = np.empty((rows, columns, len(sizes_hw), 4), np.float32)
            grid[..., 0] = ((np.arange(rows) + self.center) * strides[0])[:, None, None]
            grid[..., 1] = ((np.arange(columns) + self.center) * strides[1])[:, None]
            grid[..., 2:] = sizes_hw
            boxes.append(grid.reshape(-1, 4))
        return tuple(boxes)

    def sizes_hw(self, level: int) -> np.ndarray:
        """Returns float [num_per_cell, 2], (height, width) of a level's anchors, px."""
        side = self.size * 2**level
        pairs = itertools.product(self.aspect_ratios, self.scales)
        if not self.whole_pixels:
            return np.array(
                [(side * s / ratio**0.5, side * s * ratio**0.5) for ratio, s in pairs]
            )
        # In float32, because rounding would turn its errors into pixels.
        sizes = []
        for ratio, scale in pairs:
            height = np.sqrt(np.float32(1 / ratio))
            corner = np.array([height, 1 / height], np.float32) * int(side * scale) / 2
            sizes.append(2 * np.round(corner))
        return np.array(sizes)
