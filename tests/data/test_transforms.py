import functools
import io

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from retinanet_tpu.data import transforms

OUTPUT_SIZE = (96, 128)


def encoded(pixels, image_format, **options):
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, image_format, **options)
    return stream.getvalue()


def smooth_image(height=150, width=220):
    y, x = np.mgrid[:height, :width]
    channels = [128 + 90 * np.sin(x / 17), 128 + 90 * np.cos(y / 23), (x + y) / 2]
    return np.stack(channels, axis=-1).astype(np.uint8)


def window_of(image_size, scale, position, output_size=OUTPUT_SIZE):
    window = transforms.crop_window(
        tf.constant(image_size), output_size, scale=scale, position=position
    )
    return [value.numpy() for value in window]


def test_without_jitter_the_whole_image_fits_the_output():
    for size in [(480, 640), (640, 480), (31, 977), (1, 1), (96, 128), (4000, 3001)]:
        start, taken, resized, ratio = window_of(size, 1.0, (0.9, 0.9))
        np.testing.assert_array_equal(start, [0, 0])
        np.testing.assert_array_equal(taken, size - np.array(size) % ratio)
        zoom = min(96 / size[0], 128 / size[1])
        expected = np.maximum(np.round(np.multiply(size, zoom)), 1)
        np.testing.assert_allclose(resized, expected, atol=1)
        assert (resized <= OUTPUT_SIZE).all() and (resized == OUTPUT_SIZE).any()


def test_windows_lie_inside_the_image_and_keep_its_aspect_ratio():
    rng = np.random.default_rng(0)
    for _ in range(200):
        size = rng.integers(20, 900, 2).astype(np.int32)
        scale = np.float32(rng.uniform(0.1, 2.5))
        position = rng.choice([0.0, 0.5, np.nextafter(np.float32(1), 0)], 2)
        start, taken, resized, ratio = window_of(
            size, scale, position.astype(np.float32)
        )
        fitting = [r for r in (2, 4, 8) if (resized * r <= taken).all()]
        assert ratio == max([1, *fitting])
        assert not (start % ratio).any() and not (taken % ratio).any()
        assert (start >= 0).all() and (taken >= 1).all()
        assert (start + taken <= size).all()
        assert (resized >= 1).all() and (resized <= OUTPUT_SIZE).all()
        zoom = np.min(scale * np.array(OUTPUT_SIZE) / size)
        # Rounding to whole pixels before and after resizing: half a pixel each at most,
        # plus whole squares of pixels that are reduced to one.
        atol = 0.51 + (0.5 + ratio - 1) * zoom
        np.testing.assert_allclose(resized, taken * zoom, atol=atol)
        cropped = taken < size - size % ratio
        np.testing.assert_array_equal(resized[cropped], np.array(OUTPUT_SIZE)[cropped])


@pytest.mark.parametrize("size", [(150, 220), (60, 200), (5, 7), (900, 300)])
def test_without_its_aspect_ratio_an_image_fills_the_output(size):
    pixels = smooth_image(*size)
    window_fn = functools.partial(
        transforms.crop_window, output_size=OUTPUT_SIZE, keep_aspect_ratio=False
    )
    image, _, window = transforms.decode_and_resize(encoded(pixels, "PNG"), window_fn)
    assert image.shape == (*OUTPUT_SIZE, 3)
    # Squares of up to 8 pixels that are reduced to one leave out less than a square.
    cut = size - size % np.array(window.ratio)
    np.testing.assert_allclose(window.scales, np.divide(OUTPUT_SIZE, cut), rtol=1e-6)
    boxed, scales = transforms.letterbox(pixels, OUTPUT_SIZE, keep_aspect_ratio=False)
    np.testing.assert_allclose(boxed, image, atol=1)
    np.testing.assert_array_equal(scales, window.scales)


@pytest.mark.parametrize("size", [(480, 640), (31, 977), (640, 200)])
def test_a_scale_stretches_both_sides_of_the_output(size):
    low, high = (
        transforms.crop_window(
            tf.constant(size), OUTPUT_SIZE, scale=scale, keep_aspect_ratio=False
        )
        for scale in (0.5, 2.0)
    )
    np.testing.assert_array_equal(low.resized, np.array(OUTPUT_SIZE) // 2)
    np.testing.assert_array_equal(high.resized, OUTPUT_SIZE)
    np.testing.assert_allclose(high.size, np.array(size) / 2, atol=8)


def test_position_covers_both_ends_of_the_image():
    low = window_of((200, 300), 2.0, (0.0, 0.0))
    high = window_of((200, 300), 2.0, (0.99999, 0.99999))
    np.testing.assert_array_equal(low[0], [0, 0])
    np.testing.assert_array_equal(high[0] + high[1], [200, 300])


def test_partly_decoded_jpeg_equals_decode_then_crop():
    file = encoded(smooth_image(), "JPEG", quality=95)
    window = transforms.CropWindow(*map(tf.constant, ([31, 57], [80, 101], [80, 101])))
    image, size, _ = transforms.decode_and_resize(tf.constant(file), lambda _: window)
    whole = tf.io.decode_jpeg(file, channels=3)[31:111, 57:158].numpy()
    np.testing.assert_array_equal(size, [150, 220])
    # Color is stored at half resolution: its interpolation differs at the cut.
    np.testing.assert_array_equal(image[1:-1, 1:-1], whole[1:-1, 1:-1])
    np.testing.assert_allclose(image, whole, atol=8)


def load(file, scale=1.0, position=(0.0, 0.0)):
    """Returns the resized image, the size of the original, and the window."""
    return transforms.decode_and_resize(
        tf.constant(file),
        lambda size: transforms.crop_window(
            size, OUTPUT_SIZE, scale=scale, position=tf.constant(position)
        ),
    )


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(191, 255), (150, 255), (96, 128), (5, 7), (191, 60)])
def test_images_below_twice_the_output_size_are_only_resized(size, image_format):
    pixels = np.random.default_rng(3).integers(0, 256, [*size, 3], np.uint8)
    file = encoded(pixels, image_format)
    image, _, window = load(file)
    decoded = tf.io.decode_image(file, channels=3)
    expected = tf.image.resize(tf.cast(decoded, tf.float32), window.resized)
    np.testing.assert_array_equal(image, tf.round(expected))
    boxed, _ = transforms.letterbox(decoded, OUTPUT_SIZE)
    np.testing.assert_array_equal(boxed, transforms.pad_to_size(image, OUTPUT_SIZE))


LARGE = [(192, 256), (400, 530), (777, 1025), (1029, 400), (1100, 1531)]


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", LARGE)
def test_fine_patterns_of_large_images_become_their_mean(size, image_format):
    # A checkerboard of single pixels. A resize that samples single pixels makes it
    # black, white, or another pattern.
    board = 40 + 180 * (np.indices(size).sum(axis=0) % 2)
    pixels = np.repeat(board[..., None], 3, axis=-1).astype(np.uint8)
    image, image_size, window = load(encoded(pixels, image_format, quality=98))
    np.testing.assert_array_equal(image_size, size)
    assert window.ratio > 1
    np.testing.assert_allclose(image, np.full(image.shape, 130), atol=2)


@pytest.mark.long
@pytest.mark.parametrize("size", LARGE)
@pytest.mark.parametrize("scale", [0.3, 1.0, 1.7])
def test_formats_and_decoded_images_agree_about_large_images(size, scale):
    pixels = (smooth_image(1100, 1531) // 2)[: size[0], : size[1]]
    options = {"scale": scale, "position": (0.3, 0.8)}
    png, _, window = load(encoded(pixels, "PNG"), **options)
    jpeg, _, other = load(
        encoded(pixels, "JPEG", quality=100, subsampling=0), **options
    )
    for value, same in zip(window, other, strict=True):
        np.testing.assert_array_equal(value, same)
    error = png.numpy().astype(int) - jpeg.numpy()
    assert abs(error).max() <= 6 and np.sqrt((error**2).mean()) < 1.5
    if scale == 1:
        boxed, scales = transforms.letterbox(pixels, OUTPUT_SIZE)
        np.testing.assert_array_equal(boxed, transforms.pad_to_size(png, OUTPUT_SIZE))
        np.testing.assert_array_equal(scales, window.scales)
        batch, _ = transforms.letterbox(np.stack([pixels, pixels[::-1]]), OUTPUT_SIZE)
        np.testing.assert_array_equal(batch[0], boxed)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", LARGE)
def test_boxes_of_large_images_fit_their_objects(size, image_format):
    rng = np.random.default_rng(sum(size))
    for _ in range(8):
        pixels = np.zeros([*size, 3], np.uint8)
        start, sides = rng.uniform(0, 0.6, 2) * size, rng.uniform(0.2, 0.4, 2) * size
        top, left, bottom, right = np.round([*start, *(start + sides)]).astype(int)
        pixels[top:bottom, left:right] = 255
        scale, position = rng.uniform(0.4, 1.5), np.float32(rng.random(2))
        file = encoded(pixels, image_format, quality=95)
        image, _, window = load(file, scale, position)
        box = tf.constant([[top, left, bottom, right]], tf.float32)
        (moved,) = transforms.transform_boxes(box, window).numpy()
        # Half-covered pixels at the edges count half.
        light = image.numpy().mean(axis=-1) / 255
        seen = [light.max(axis=1).sum(), light.max(axis=0).sum()]
        np.testing.assert_allclose(seen, moved[2:] - moved[:2], atol=0.6)
        if min(seen) > 0:
            middle = np.argwhere(light > 0.5).mean(axis=0) + 0.5
            np.testing.assert_allclose(middle, (moved[:2] + moved[2:]) / 2, atol=0.6)


def test_resizing_is_bilinear_about_pixel_centers():
    pixels = smooth_image(12, 15)
    window = transforms.CropWindow(*map(tf.constant, ([0, 0], [12, 15], [24, 30])))
    file = tf.constant(encoded(pixels, "PNG"))
    image, _, _ = transforms.decode_and_resize(file, lambda _: window)
    padded = np.pad(pixels.astype(np.float64), [(1, 1), (1, 1), (0, 0)], mode="edge")

    def sample(y, x):  # at continuous coordinates, pixel (0, 0) centered at (.5, .5)
        y, x = y + 0.5, x + 0.5
        i, j = int(y), int(x)
        rows = padded[i : i + 2, j : j + 2]
        a, b = y - i, x - j
        return np.einsum("y,x,yxc->c", [1 - a, a], [1 - b, b], rows)

    expected = [
        [sample((i + 0.5) / 2, (j + 0.5) / 2) for j in range(30)] for i in range(24)
    ]
    np.testing.assert_allclose(image, expected, atol=0.51)


@pytest.mark.parametrize("resized", [[96, 128], [50, 97], [12, 15], [5, 4]])
def test_resizing_equals_tensorflow_on_uint8(resized):
    pixels = np.random.default_rng(2).integers(0, 256, [12, 15, 3], np.uint8)
    window = transforms.CropWindow(*map(tf.constant, ([0, 0], [12, 15], resized)))
    file = tf.constant(encoded(pixels, "PNG"))
    image, _, _ = transforms.decode_and_resize(file, lambda _: window)
    expected = tf.image.resize(pixels, resized).numpy().round()
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize(
    "size", [(96, 128), (48, 64), (7, 200), (200, 7), (1, 1), (13, 9), (301, 500)]
)
def test_letterbox_returns_the_pixels_that_evaluation_reads(size):
    pixels = np.random.default_rng(3).integers(0, 256, [2, *size, 3], np.uint8)
    boxed, scales = transforms.letterbox(pixels, OUTPUT_SIZE)
    for image, result in zip(pixels, boxed, strict=True):
        file = tf.constant(encoded(image, "PNG"))
        resized, _, window = transforms.decode_and_resize(
            file, lambda s: transforms.crop_window(s, OUTPUT_SIZE)
        )
        expected = transforms.pad_to_size(resized, OUTPUT_SIZE)
        np.testing.assert_array_equal(result, expected)
        np.testing.assert_array_equal(scales, window.scales)
        single, _ = transforms.letterbox(image, OUTPUT_SIZE)
        np.testing.assert_array_equal(single, expected)


def test_letterbox_of_any_size_is_that_of_a_known_size():
    spec = tf.TensorSpec([None, None, None, 3], tf.uint8)
    function = tf.function(
        lambda images: transforms.letterbox(images, OUTPUT_SIZE), input_signature=[spec]
    )
    for size in (96, 128), (48, 64), (301, 500), (1400, 900):
        pixels = np.random.default_rng(4).integers(0, 256, [2, *size, 3], np.uint8)
        for got, expected in zip(
            function(pixels), transforms.letterbox(pixels, OUTPUT_SIZE), strict=True
        ):
            np.testing.assert_array_equal(got, expected)


def test_letterbox_clips_colors_out_of_range():
    image = tf.stack([tf.fill([4, 5], v) for v in (-7.0, 255.0, 300.0)], axis=-1)
    padded, _ = transforms.letterbox(image, (8, 10))
    np.testing.assert_array_equal(padded[3, 3], [0, 255, 255])


@pytest.mark.parametrize(
    ("mode", "image_format"),
    [
        ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "JPEG"), ("L", "PNG"), ("P", "PNG"),
        ("RGBA", "PNG"), ("LA", "PNG"), ("1", "PNG"), ("RGB", "BMP"), ("L", "BMP"),
        ("RGB", "GIF"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("ratio", [1, 4])
def test_every_pixel_format_is_decoded_to_rgb(mode, image_format, ratio):
    size = (40 * ratio, 30 * ratio)
    color = PIL.Image.new("RGB", size, (255, 0, 255)).convert(mode)
    stream = io.BytesIO()
    color.save(stream, image_format)
    image, size, window = transforms.decode_and_resize(
        tf.constant(stream.getvalue()), lambda s: transforms.crop_window(s, (30, 40))
    )
    assert window.ratio == ratio
    assert image.dtype == tf.uint8 and image.shape == (30, 40, 3)
    np.testing.assert_array_equal(size, [30 * ratio, 40 * ratio])
    expected = np.asarray(color.convert("RGB").reduce(ratio))
    np.testing.assert_allclose(image, expected, atol=3)


def test_boxes_are_moved_and_clipped_with_the_window():
    window = transforms.CropWindow(*map(tf.constant, ([10, 20], [50, 100], [100, 50])))
    boxes = tf.constant([[15.0, 40.0, 30.0, 80.0], [0.0, 0.0, 500.0, 500.0]])
    moved = transforms.transform_boxes(boxes, window)
    np.testing.assert_allclose(moved, [[10, 10, 40, 30], [0, 0, 100, 50]])


@pytest.mark.parametrize("is_vertical", [False, True])
def test_flip_mirrors_pixels_and_boxes_and_is_its_own_inverse(is_vertical):
    image = tf.constant(smooth_image(20, 30))
    boxes = tf.constant([[2.0, 3.0, 9.0, 28.0], [0.0, 0.0, 20.0, 30.0]])
    flipped, moved = transforms.flip(image, boxes, is_vertical=is_vertical)
    mirror = np.flipud if is_vertical else np.fliplr
    np.testing.assert_array_equal(flipped, mirror(image))
    np.testing.assert_array_equal(
        moved[0], [11, 3, 18, 28] if is_vertical else [2, 2, 9, 27]
    )
    again, back = transforms.flip(flipped, moved, is_vertical=is_vertical)
    np.testing.assert_array_equal(again, image)
    np.testing.assert_array_equal(back, boxes)


def color_jittered(pixels, brightness=1.0, contrast=1.0, saturation=1.0):
    """Returns saturation, contrast and brightness applied in turn, in NumPy."""
    rgb = pixels.astype(np.float64)
    gray = (rgb @ [0.299, 0.587, 0.114])[..., None]
    rgb = gray + saturation * (rgb - gray)
    middle = np.array(transforms.MEAN_COLOR)
    rgb = brightness * (middle + contrast * (rgb - middle))
    return np.clip(np.round(rgb), 0, 255)


@pytest.mark.parametrize(
    "factors", [(1, 1, 1), (1.3, 1, 1), (1, 0.7, 1), (1, 1, 0), (0.8, 1.2, 1.4)]
)
def test_color_jitter_equals_its_three_steps_in_numpy(factors):
    pixels = smooth_image(20, 30)
    result = transforms.color_jitter(pixels, *map(tf.constant, np.float32(factors)))
    assert result.dtype == tf.uint8
    difference = result.numpy() - color_jittered(pixels, *factors)
    # A half may be rounded up in float32 and down in float64, or the other way around.
    assert np.abs(difference).max() <= 1 and (difference != 0).mean() < 0.05


def test_boxes_narrower_than_a_pixel_are_empty():
    boxes = tf.constant(
        [[0.0, 0.0, 9.0, 0.5], [3.0, 3.0, 3.0, 8.0], [0.0, 0.0, 1.0, 1.0]]
    )
    np.testing.assert_array_equal(transforms.is_nonempty(boxes), [False, False, True])


def test_the_largest_boxes_keep_their_order():
    sides = tf.constant([3.0, 9.0, 1.0, 5.0])
    boxes = tf.stack([tf.zeros(4), tf.zeros(4), sides, sides], axis=-1)
    np.testing.assert_array_equal(transforms.largest_box_indices(boxes, 2), [1, 3])
    np.testing.assert_array_equal(
        transforms.largest_box_indices(boxes, 9), [0, 1, 2, 3]
    )
    assert transforms.largest_box_indices(tf.zeros([0, 4]), 9).shape == (0,)


@pytest.mark.parametrize(
    ("height", "width"), [(5, 7), (8, 7), (5, 9), (8, 9), (1, 1), (0, 0)]
)
def test_padding_is_below_and_right_in_the_mean_color(height, width):
    image = tf.constant(smooth_image(height, width))
    padded = transforms.pad_to_size(image, (8, 9)).numpy()
    np.testing.assert_array_equal(padded[:height, :width], image)
    padded[:height, :width] = transforms.MEAN_COLOR
    assert (padded == transforms.MEAN_COLOR).all()
