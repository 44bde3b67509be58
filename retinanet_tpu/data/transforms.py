"""Crops, resizes, flips and pads images and their boxes.

The crop window is computed first, in whole pixels of the original image. The host then
decodes only that window, and the boxes follow the pixels exactly.

Large images are first reduced by 2, 4 or 8: each pixel becomes the mean of a square of
pixels. Bilinear resizing alone would sample single pixels. JPEGs are decoded at the
reduced size.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import tensorflow as tf

# The mean color of ImageNet, RGB. Normalization on the device maps it to zero.
MEAN_COLOR = (124, 116, 104)
# The shortest side of a box that is trained on, px. A box below a pixel shows nothing,
# and ln(side) would be a huge regression target.
MIN_SIDE = 1.0
# The share of a box that must remain visible if other pixels cover it or the image is
# deformed. If less is visible, the box has no label, and its rest counts as background.
MIN_VISIBLE = 0.2
# The factors by which libjpeg can reduce an image while decoding it.
_RATIOS = (1, 2, 4, 8)


class CropWindow(NamedTuple):
    """A region of an image and the size that it is resized to.

    Attributes:
      start: int32 [2], the top left corner (y, x), px of the original image, multiples
        of `ratio`.
      size: int32 [2], height and width, px of the original image, multiples of `ratio`.
      resized: int32 [2], height and width after resizing, at most the output size.
      ratio: int32 [], the factor of the reduction before resizing.
    """

    start: tf.Tensor
    size: tf.Tensor
    resized: tf.Tensor
    ratio: tf.Tensor | int = 1

    @property
    def scales(self) -> tf.Tensor:
        """Returns float32 [2]: (y, x) resized size / original size."""
        return tf.cast(self.resized, tf.float32) / tf.cast(self.size, tf.float32)


# Returns the window of an image from its int32 [2] size (height, width).
WindowFn: TypeAlias = Callable[[tf.Tensor], CropWindow]


def crop_window(
    image_size: tf.Tensor,
    output_size: tuple[int, int],
    *,
    scale: tf.Tensor | float = 1.0,
    position: tf.Tensor | tuple[float, float] = (0.0, 0.0),
    keep_aspect_ratio: bool = True,
) -> CropWindow:
    """Returns the crop window of a scale jitter, by default the whole image.

    Conceptually the image is resized to fit `scale` times the output, and the part
    beyond the output is cropped. Start and size are multiples of
    the window's ratio, so less than one output pixel may be lost at the right and
    bottom edges.

    Args:
      image_size: int32 [2], the height and width of the original image, px.
      output_size: The height and width of the network's input, px.
      scale: float32 [], the size of the resized image relative to the output. 1 fits
        the image into the output.
      position: float32 [2] in [0, 1), the place of the crop (y, x) between the top
        left (0) and the bottom right (1).
      keep_aspect_ratio: Whether both sides are resized by the same factor. Otherwise
        the image is stretched to `scale` times the output.

    Source: Mask R-CNN's large scale jitter as in Simple Copy-Paste, arXiv:2012.07177,
      section 3; whole-pixel windows are ours.
    """
    output = tf.constant(output_size, tf.float32)
    original = tf.cast(image_size, tf.float32)
    zoom = scale * output / original
    if keep_aspect_ratio:
        zoom = tf.reduce_min(zoom)
    size = tf.clip_by_value(tf.round(output / zoom), 1.0, original)
    whole = tf.clip_by_value(tf.round(original * zoom), 1.0, output)
    resized = tf.where(size < original, output, whole)
    start = tf.floor(position * (original - size + 1.0))
    # In float32 position * count can round up to count.
    start = tf.minimum(start, original - size)
    # The largest ratio that keeps at least the resized size. The ratios 1, 2, 4, 8 are
    # the partial sums of 1 + 1 + 2 + 4.
    is_larger = tf.reduce_min(size / resized) >= _RATIOS[1:]
    ratio = 1.0 + tf.reduce_sum(tf.where(is_larger, [1.0, 2.0, 4.0], 0.0))
    start, size = ratio * (start // ratio), ratio * (size // ratio)
    values = (start, size, resized, ratio)
    return CropWindow(*(tf.cast(value, tf.int32) for value in values))


def decode_and_resize(
    encoded: tf.Tensor, window_fn: WindowFn
) -> tuple[tf.Tensor, tf.Tensor, CropWindow]:
    """Decodes a window of an image and resizes it.

    Only the window of a JPEG is decoded, at a reduced size if the image is large. Gray,
    CMYK, palette and transparent images are converted to RGB.

    Args:
      encoded: string [], the content of a JPEG, PNG, BMP or GIF file.
      window_fn: The function that returns the window.

    Returns:
      The pixels, uint8 [h, w, 3] of the window's resized size; the size of the image,
      int32 [2]; and the window.
    """
    is_jpeg = tf.io.is_jpeg(encoded)

    def size_of_jpeg() -> tuple[tf.Tensor, tf.Tensor]:
        return tf.image.extract_jpeg_shape(encoded)[:2], tf.zeros([0, 0, 3], tf.uint8)

    def decoded_other() -> tuple[tf.Tensor, tf.Tensor]:
        pixels = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        return tf.shape(pixels)[:2], pixels

    image_size, pixels = tf.cond(is_jpeg, size_of_jpeg, decoded_other)
    pixels = tf.ensure_shape(pixels, [None, None, 3])
    window = window_fn(image_size)

    def jpeg_at(ratio: int) -> tf.Tensor:
        corner_and_size = tf.concat([window.start, window.size], axis=0) // ratio
        decoded = tf.image.decode_and_crop_jpeg(
            encoded, corner_and_size, channels=3, ratio=ratio
        )
        return tf.cast(decoded, tf.float32)

    # The ratio is an attribute of the operation, so each ratio needs its own operation.
    branches: list[Callable[[], tf.Tensor]] = [
        functools.partial(jpeg_at, ratio) for ratio in _RATIOS
    ]
    branches.append(lambda: _reduced(pixels, window))
    is_larger = tf.convert_to_tensor(window.ratio) >= _RATIOS[1:]
    index = tf.reduce_sum(tf.cast(is_larger, tf.int32))
    index = tf.where(is_jpeg, index, len(_RATIOS))
    reduced = tf.switch_case(index, branches)
    return tf.cast(_resized(reduced, window), tf.uint8), image_size, window


def letterbox(
    images: tf.Tensor, output_size: tuple[int, int], *, keep_aspect_ratio: bool = True
) -> tuple[tf.Tensor, tf.Tensor]:
    """Resizes and pads decoded images as evaluation does with encoded ones.

    Args:
      images: uint8 or float32 [..., H, W, 3], RGB in 0..255, all of one size.
      output_size: The height and width of the network's input, px.
      keep_aspect_ratio: As in `crop_window`.

    Returns:
      float32 [..., *output_size, 3], the same values as those of `decode_and_resize`
      and `pad_to_size`; and float32 [2], (y, x) resized size / original size.
    """
    images = tf.convert_to_tensor(images)
    window = crop_window(
        tf.shape(images)[-3:-1], output_size, keep_aspect_ratio=keep_aspect_ratio
    )
    reduced = tf.clip_by_value(_reduced(images, window), 0.0, 255.0)
    resized = _resized_by_sides(reduced, window)
    # Padded as rows of numbers: a TPU stores the last axis in tiles of 128, not of 3.
    below, right = tf.unstack(tf.constant(output_size) - window.resized)
    mean = tf.constant(MEAN_COLOR * output_size[1], tf.float32)
    padding = [[0, 0], [0, below], [0, 3 * right]]
    padded = tf.pad(resized - mean[: 3 * window.resized[1]], padding) + mean
    # ONNX has no ensure_shape. Without a static shape its runtimes lack the sides.
    leading = [-1 if side is None else side for side in images.shape[:-3]]
    return tf.reshape(padded, [*leading, *output_size, 3]), window.scales


def transform_boxes(boxes_yxyx: tf.Tensor, window: CropWindow) -> tf.Tensor:
    """Returns the boxes in the frame of a cropped and resized image.

    Args:
      boxes_yxyx: float32 [N, 4], px of the original image.
      window: The window of the image.

    Returns:
      float32 [N, 4], px of the network's input, clipped to the window.
    """
    corners_yx = tf.reshape(boxes_yxyx, [-1, 2, 2])
    moved = (corners_yx - tf.cast(window.start, tf.float32)) * window.scales
    clipped = tf.clip_by_value(moved, 0.0, tf.cast(window.resized, tf.float32))
    return tf.reshape(clipped, [-1, 4])


def flip(
    image: tf.Tensor, boxes_yxyx: tf.Tensor, *, is_vertical: bool = False
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mirrors an image and its boxes.

    Args:
      image: uint8 [h, w, 3].
      boxes_yxyx: float32 [N, 4], px of the image.
      is_vertical: Mirrors top to bottom instead of left to right.

    Returns:
      The image and the boxes, of the same types and shapes.
    """
    axis = 0 if is_vertical else 1
    side = tf.cast(tf.shape(image)[axis], tf.float32)
    corners = tf.unstack(boxes_yxyx, axis=-1)
    # What was the far edge becomes the near one.
    corners[axis], corners[axis + 2] = side - corners[axis + 2], side - corners[axis]
    return tf.reverse(image, axis=[axis]), tf.stack(corners, axis=-1)


def color_jitter(
    image: tf.Tensor,
    brightness: tf.Tensor,
    contrast: tf.Tensor,
    saturation: tf.Tensor,
) -> tf.Tensor:
    """Returns an image of changed brightness, contrast and saturation.

    Saturation scales the distance of a pixel from its gray, contrast that from
    MEAN_COLOR, and brightness that from black. All three are one matrix for each image.

    Args:
      image: uint8 [h, w, 3], RGB.
      brightness: float32 [], a factor; 1 changes nothing.
      contrast: float32 [], a factor; 1 changes nothing.
      saturation: float32 [], a factor; 1 changes nothing and 0 gives a gray image.

    Returns:
      uint8 [h, w, 3].

    Source: the luma weights are those of ITU-R BT.601.
    """
    luma = tf.constant([0.299, 0.587, 0.114])
    # Row vectors: rgb @ matrix.
    to_gray = tf.tile(luma[:, tf.newaxis], [1, 3])
    matrix = saturation * tf.eye(3) + (1.0 - saturation) * to_gray
    middle = (1.0 - contrast) * tf.constant(MEAN_COLOR, tf.float32)
    rgb = tf.reshape(tf.cast(image, tf.float32), [-1, 3])
    changed = brightness * (contrast * (rgb @ matrix) + middle)
    changed = tf.round(tf.clip_by_value(changed, 0.0, 255.0))
    return tf.reshape(tf.cast(changed, tf.uint8), tf.shape(image))


def is_nonempty(boxes_yxyx: tf.Tensor) -> tf.Tensor:
    """Returns bool [N]: whether both sides of a box are at least MIN_SIDE.

    Args:
      boxes_yxyx: float32 [N, 4], px.
    """
    sides = boxes_yxyx[:, 2:] - boxes_yxyx[:, :2]
    return tf.reduce_all(sides >= MIN_SIDE, axis=-1)


def largest_box_indices(boxes_yxyx: tf.Tensor, max_boxes: int) -> tf.Tensor:
    """Returns int32 [<= max_boxes]: the indices of the largest boxes, ascending.

    Args:
      boxes_yxyx: float32 [N, 4], px. Those that are not `is_nonempty` are left out.
      max_boxes: The number of boxes to keep.
    """
    nonempty = is_nonempty(boxes_yxyx)
    sizes = tf.where(nonempty, areas(boxes_yxyx), -1.0)
    num_kept = tf.minimum(max_boxes, tf.math.count_nonzero(nonempty, dtype=tf.int32))
    largest = tf.math.top_k(sizes, k=num_kept).indices
    return -tf.math.top_k(-largest, k=num_kept).values  # Sorted.


def areas(boxes_yxyx: tf.Tensor) -> tf.Tensor:
    """Returns float32 [N]: the areas of boxes, px^2.

    Args:
      boxes_yxyx: float32 [N, 4], px.
    """
    return tf.reduce_prod(boxes_yxyx[:, 2:] - boxes_yxyx[:, :2], axis=-1)


def drop_hidden(
    boxes_yxyx: tf.Tensor, visible: tf.Tensor, whole: tf.Tensor
) -> tf.Tensor:
    """Replaces boxes by zeros if less than MIN_VISIBLE of their area is visible.

    Args:
      boxes_yxyx: float32 [N, 4], px.
      visible: float32 [N], the visible area of each box, px^2.
      whole: float32 [N], the area of each box with its hidden part, px^2.
    """
    is_visible = visible >= MIN_VISIBLE * whole
    return tf.where(is_visible[:, tf.newaxis], boxes_yxyx, 0.0)


def pad_to_size(image: tf.Tensor, output_size: tuple[int, int]) -> tf.Tensor:
    """Pads an image below and at the right with MEAN_COLOR.

    Args:
      image: uint8 [h, w, 3], at most of the output size.
      output_size: The height and width of the network's input, px.

    Returns:
      uint8 [*output_size, 3].
    """
    height, width = output_size
    image_height, image_width = tf.unstack(tf.shape(image)[:2])
    # Broadcasting rows takes a tenth of the time of broadcasting pixels.
    row = tf.constant([[MEAN_COLOR] * width], tf.uint8)

    def padded_at_right() -> tf.Tensor:
        size = [image_height, width - image_width, 3]
        return tf.concat([image, tf.broadcast_to(row[:, image_width:], size)], axis=1)

    def padded_below() -> tf.Tensor:
        size = [height - image_height, width, 3]
        return tf.concat([wide, tf.broadcast_to(row, size)], axis=0)

    # Most images fill at least one side. Joining with nothing would copy them.
    wide = tf.cond(image_width < width, padded_at_right, lambda: image)
    padded = tf.cond(image_height < height, padded_below, lambda: wide)
    return tf.ensure_shape(padded, [height, width, 3])


def _reduced(images: tf.Tensor, window: CropWindow) -> tf.Tensor:
    """Returns float32 [..., h, w, 3], the window of decoded images at 1 / ratio.

    Args:
      images: uint8 or float32 [..., H, W, 3].
      window: The window.
    """
    ratio = window.ratio
    height, width = tf.unstack(window.size)
    top, left = tf.unstack(window.start)
    has_static_size = images.shape[-3:-1].is_fully_defined()
    images = tf.cast(
        images[..., top : top + height, left : left + width, :], tf.float32
    )
    shape = tf.concat([tf.shape(images)[:-3], window.size // ratio, [3]], axis=0)

    def means() -> tf.Tensor:
        # Two means over tensors of rank 3: first over rows, then over columns.
        rows = tf.reshape(images, [-1, ratio, 3 * width])
        columns = tf.reshape(tf.reduce_mean(rows, axis=1), [-1, ratio, 3])
        return tf.reshape(tf.reduce_mean(columns, axis=1), shape)

    if has_static_size:
        reduced = means()  # XLA has no branches with results of different sizes.
    else:  # A mean of single pixels is a copy, but a slow one.
        reduced = tf.cond(tf.convert_to_tensor(ratio) > 1, means, lambda: images)
    return tf.ensure_shape(reduced, [*images.shape[:-3], None, None, 3])


def _resized(pixels: tf.Tensor, window: CropWindow) -> tf.Tensor:
    """Returns float32 [..., h, w, 3], whole numbers, of the window's resized size.

    Args:
      pixels: float32. TensorFlow resizes it in two thirds of the time of uint8.
      window: The window with the resized size.
    """
    return tf.round(tf.image.resize(pixels, window.resized, method="bilinear"))


def _resized_by_sides(pixels: tf.Tensor, window: CropWindow) -> tf.Tensor:
    """Returns float32 [B, h, w * 3], the values of `_resized`.

    It resizes the columns, then the rows, each as images of one column whose channels
    are all numbers of a row. XLA gathers whole rows then: 0.2 instead of 4.8 GB for an
    image of 640 x 480 px on a TPU v3. The values are equal to the bit, because
    TensorFlow interpolates in the same order.

    Args:
      pixels: float32 [..., H, W, 3].
      window: The window with the resized size.
    """
    height, width = tf.unstack(tf.shape(pixels)[-3:-1])
    columns = _columns_as_rows(tf.reshape(pixels, [-1, height, width, 3]))
    columns = _resized_rows(columns, window.resized[1])
    rows = _columns_as_rows(tf.reshape(columns, [-1, window.resized[1], height, 3]))
    return tf.round(_resized_rows(rows, window.resized[0]))


def _columns_as_rows(pixels: tf.Tensor) -> tf.Tensor:
    """Returns float32 [B, W, H * 3] from [B, H, W, 3]."""
    height, width = tf.unstack(tf.shape(pixels)[1:3])
    return tf.reshape(tf.transpose(pixels, [0, 2, 1, 3]), [-1, width, 3 * height])


def _resized_rows(rows: tf.Tensor, num_rows: tf.Tensor) -> tf.Tensor:
    """Returns float32 [B, num_rows, M] from [B, N, M]."""
    size = tf.stack([num_rows, 1])
    return tf.image.resize(rows[:, :, None], size, method="bilinear")[:, :, 0]
