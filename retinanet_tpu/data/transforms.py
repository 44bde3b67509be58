"""From an encoded image to the network's input: crop, resize, flip, pad.

The geometry is settled first, in whole pixels of the original, so that the host decodes
only what it keeps and the boxes follow the pixels exactly.

Large images are first reduced by 2, 4 or 8, each pixel the mean of a square of pixels:
bilinear resizing alone would sample single pixels. JPEGs are decoded at that size.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

# ImageNet's mean color: zero after the device has normalized it.
MEAN_COLOR = (124, 116, 104)
# Below a pixel there is nothing to see, and ln(side) would make a huge box target.
MIN_SIDE = 1.0
# By which libjpeg can reduce an image as it decodes it.
_RATIOS = (1, 2, 4, 8)


class CropWindow(NamedTuple):
    """The part of an image to take and the size to give it."""

    start: tf.Tensor  # int32 [2], (y, x), px of the original, multiples of ratio
    size: tf.Tensor  # int32 [2], px of the original, multiples of ratio
    resized: tf.Tensor  # int32 [2], px of the canvas, at most the canvas
    ratio: tf.Tensor | int = 1  # int32 [], the reduction before resizing

    @property
    def scales(self) -> tf.Tensor:
        """Returns float32 [2]: (y, x) resized size / original size."""
        return tf.cast(self.resized, tf.float32) / tf.cast(self.size, tf.float32)


def crop_window(
    image_size: tf.Tensor,
    output_size: tuple[int, int],
    *,
    scale: tf.Tensor | float = 1.0,
    position: tf.Tensor | tuple[float, float] = (0.0, 0.0),
) -> CropWindow:
    """Returns the window that a scale jitter shows; by default the whole image.

    The image is thought of as resized, aspect kept, to fit `scale` times the canvas;
    what exceeds the canvas is cropped. Start and size are multiples of the window's
    ratio, so less than a pixel of the canvas may be missing at the right and below.

    Args:
      image_size: int32 [2], height and width of the original.
      output_size: height and width of the network's input.
      scale: float32 [], 1 fits the image into the canvas.
      position: float32 [2] in [0, 1), where the crop lies between (top, left) and
        (bottom, right).

    Source: Mask R-CNN's large scale jitter as in Simple Copy-Paste, arXiv:2012.07177,
      section 3; whole-pixel windows are ours.
    """
    canvas = tf.constant(output_size, tf.float32)
    original = tf.cast(image_size, tf.float32)
    zoom = tf.reduce_min(scale * canvas / original)
    size = tf.clip_by_value(tf.round(canvas / zoom), 1.0, original)
    whole = tf.clip_by_value(tf.round(original * zoom), 1.0, canvas)
    resized = tf.where(size < original, canvas, whole)
    start = tf.floor(position * (original - size + 1.0))
    # position * count can round up to count in float32.
    start = tf.minimum(start, original - size)
    # The largest ratio that leaves at least the resized size: 1 + (1) + (2) + (4).
    is_larger = tf.reduce_min(size / resized) >= _RATIOS[1:]
    ratio = 1.0 + tf.reduce_sum(tf.where(is_larger, [1.0, 2.0, 4.0], 0.0))
    start, size = ratio * (start // ratio), ratio * (size // ratio)
    values = (start, size, resized, ratio)
    return CropWindow(*(tf.cast(value, tf.int32) for value in values))


def decode_and_resize(
    encoded: tf.Tensor, window_fn: Callable[[tf.Tensor], CropWindow]
) -> tuple[tf.Tensor, tf.Tensor, CropWindow]:
    """Decodes a window of an image and resizes it.

    Of a JPEG only the window is decoded, and of a large one at a reduced size. Gray,
    CMYK, palette and transparent images come out as RGB.

    Args:
      encoded: string [], a JPEG, PNG, BMP or GIF file.
      window_fn: int32 [2] size of the image -> its Window.

    Returns:
      uint8 [h, w, 3] of the window's resized size, int32 [2] size of the image, and
      the window.
    """

    def from_jpeg():
        image_size = tf.image.extract_jpeg_shape(encoded)[:2]
        window = window_fn(image_size)
        return _decoded_jpeg(encoded, window), image_size, window

    def from_other():
        pixels = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        image_size = tf.shape(pixels)[:2]
        window = window_fn(image_size)
        return _reduced(pixels, window), image_size, window

    pixels, image_size, window = tf.cond(tf.io.is_jpeg(encoded), from_jpeg, from_other)
    return tf.cast(_resized(pixels, window), tf.uint8), image_size, window


def letterbox(
    images: tf.Tensor, output_size: tuple[int, int]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Shows decoded images as evaluation shows encoded ones.

    Args:
      images: uint8 or float32 [..., H, W, 3], RGB in 0..255, of one size.
      output_size: height and width of the network's input.

    Returns:
      float32 [..., *output_size, 3], the very values of `load_window` and `paste`, and
      float32 [2]: (y, x) resized size / original size.
    """
    images = tf.convert_to_tensor(images)
    window = crop_window(tf.shape(images)[-3:-1], output_size)
    reduced = tf.clip_by_value(_reduced(images, window), 0.0, 255.0)
    resized = _resized(reduced, window)
    below, right = tf.unstack(tf.constant(output_size) - window.resized)
    padding = [[0, 0]] * (images.shape.rank - 3) + [[0, below], [0, right], [0, 0]]
    mean = tf.constant(MEAN_COLOR, tf.float32)
    canvas = tf.pad(resized - mean, padding) + mean
    # Not ensure_shape: ONNX has none, and its runtimes would not know the sides.
    leading = [-1 if side is None else side for side in images.shape[:-3]]
    return tf.reshape(canvas, [*leading, *output_size, 3]), window.scales


def transform_boxes(boxes_yxyx: tf.Tensor, window: CropWindow) -> tf.Tensor:
    """Returns the boxes as the window shows them.

    Args:
      boxes_yxyx: float32 [N, 4], px of the original.
      window: what was taken.

    Returns:
      float32 [N, 4], px of the canvas, clipped to the window.
    """
    start = tf.tile(tf.cast(window.start, tf.float32), [2])
    moved = (boxes_yxyx - start) * tf.tile(window.scales, [2])
    edge = tf.tile(tf.cast(window.resized, tf.float32), [2])
    return tf.clip_by_value(moved, 0.0, edge)


def flip(
    picture: tf.Tensor, boxes_yxyx: tf.Tensor, *, is_vertical: bool = False
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mirrors an image and its boxes.

    Args:
      image: uint8 [h, w, 3].
      boxes_yxyx: float32 [N, 4], px of the image.
      is_vertical: top to bottom, not left to right.
    """
    axis = 0 if is_vertical else 1
    side = tf.cast(tf.shape(picture)[axis], tf.float32)
    corners = tf.unstack(boxes_yxyx, axis=-1)
    corners[axis], corners[axis + 2] = side - corners[axis + 2], side - corners[axis]
    return tf.reverse(picture, axis=[axis]), tf.stack(corners, axis=-1)


def color_jitter(
    picture: tf.Tensor,
    brightness: tf.Tensor,
    contrast: tf.Tensor,
    saturation: tf.Tensor,
) -> tf.Tensor:
    """Returns the image in another light, uint8 [h, w, 3].

    All three in one matrix for each image: saturation moves a pixel from its gray,
    contrast from MEAN_COLOR, brightness from black.

    Args:
      image: uint8 [h, w, 3], RGB.
      brightness: float32 [], a factor; 1 changes nothing.
      contrast: the same.
      saturation: the same; 0 leaves gray.

    Source: the luma weights are those of ITU-R BT.601.
    """
    luma = tf.constant([0.299, 0.587, 0.114])
    # Row vectors: rgb @ matrix.
    to_gray = tf.tile(luma[:, tf.newaxis], [1, 3])
    matrix = saturation * tf.eye(3) + (1.0 - saturation) * to_gray
    middle = (1.0 - contrast) * tf.constant(MEAN_COLOR, tf.float32)
    rgb = tf.reshape(tf.cast(picture, tf.float32), [-1, 3])
    changed = brightness * (contrast * (rgb @ matrix) + middle)
    changed = tf.round(tf.clip_by_value(changed, 0.0, 255.0))
    return tf.reshape(tf.cast(changed, tf.uint8), tf.shape(picture))


def is_nonempty(boxes_yxyx: tf.Tensor) -> tf.Tensor:
    """Returns bool [N]: whether each float32 [N, 4] box has MIN_SIDE px either way."""
    sides = boxes_yxyx[:, 2:] - boxes_yxyx[:, :2]
    return tf.reduce_all(sides >= MIN_SIDE, axis=-1)


def largest_box_indices(boxes_yxyx: tf.Tensor, max_boxes: int) -> tf.Tensor:
    """Returns int32 [<= max_boxes]: the places of the largest boxes, rising.

    Args:
      boxes_yxyx: float32 [N, 4].
      max_boxes: how many there is room for.
    """
    sides = boxes_yxyx[:, 2:] - boxes_yxyx[:, :2]
    areas = tf.reduce_prod(sides, axis=-1)
    count = tf.minimum(max_boxes, tf.size(areas))
    return tf.sort(tf.math.top_k(areas, k=count).indices)


def pad_to_size(picture: tf.Tensor, output_size: tuple[int, int]) -> tf.Tensor:
    """Returns uint8 [H, W, 3]: the image top left on a canvas of the mean color."""
    height, width = output_size
    shape = tf.shape(picture)
    # Repeating rows takes a tenth of the time of repeating pixels.
    row = tf.constant([[MEAN_COLOR] * width], tf.uint8)
    right = tf.broadcast_to(row[:, shape[1] :], [shape[0], width - shape[1], 3])
    below = tf.broadcast_to(row, [height - shape[0], width, 3])
    canvas = tf.concat([tf.concat([picture, right], axis=1), below], axis=0)
    return tf.ensure_shape(canvas, [height, width, 3])


def _decoded_jpeg(encoded: tf.Tensor, window: CropWindow) -> tf.Tensor:
    """Returns float32 [h, w, 3], the window of a JPEG at 1 / ratio of its size."""

    def decoded_at(ratio: int) -> tf.Tensor:
        corner_and_size = tf.concat([window.start, window.size], axis=0) // ratio
        return tf.image.decode_and_crop_jpeg(
            encoded, corner_and_size, channels=3, ratio=ratio
        )

    # The ratio is an attribute of the operation, so that each needs one of its own.
    branches = [functools.partial(decoded_at, ratio) for ratio in _RATIOS]
    is_larger = tf.convert_to_tensor(window.ratio) >= _RATIOS[1:]
    index = tf.reduce_sum(tf.cast(is_larger, tf.int32))
    return tf.cast(tf.switch_case(index, branches), tf.float32)


def _reduced(images: tf.Tensor, window: CropWindow) -> tf.Tensor:
    """Returns float32 [..., h, w, 3], the window of decoded images at 1 / ratio.

    Args:
      images: uint8 or float32 [..., H, W, 3].
      window: What to take.
    """
    ratio = window.ratio
    height, width = tf.unstack(window.size)
    top, left = tf.unstack(window.start)
    images = tf.cast(
        images[..., top : top + height, left : left + width, :], tf.float32
    )
    # Means over rows, then over columns, each of few dimensions.
    rows = tf.reshape(images, [-1, ratio, 3 * width])
    columns = tf.reshape(tf.reduce_mean(rows, axis=1), [-1, ratio, 3])
    shape = tf.concat([tf.shape(images)[:-3], window.size // ratio, [3]], axis=0)
    reduced = tf.reshape(tf.reduce_mean(columns, axis=1), shape)
    return tf.ensure_shape(reduced, [*images.shape[:-3], None, None, 3])


def _resized(pixels: tf.Tensor, window: CropWindow) -> tf.Tensor:
    """Returns float32 [..., h, w, 3], whole numbers, of the window's resized size.

    Args:
      pixels: float32, which TensorFlow resizes in two thirds of the time of uint8.
      window: of the resized size.
    """
    return tf.round(tf.image.resize(pixels, window.resized, method="bilinear"))
