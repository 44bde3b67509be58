import math

import numpy as np
import pytest

from retinanet_tpu.boxes import anchors


def plain_anchors(image_size, levels, scales, ratios, size):
    for level in levels:
        stride = 2**level
        for row in range(image_size[0] // stride):
            for column in range(image_size[1] // stride):
                for ratio in ratios:
                    for scale in scales:
                        side = size * stride * scale
                        height, width = side / math.sqrt(ratio), side * math.sqrt(ratio)
                        center = (row + 0.5) * stride, (column + 0.5) * stride
                        yield (*center, height, width)


@pytest.mark.parametrize("image_size", [(128, 128), (128, 256)])
def test_anchors_agree_with_a_plain_loop(image_size):
    scales, ratios = (1, 2 ** (1 / 3), 2 ** (2 / 3)), (0.5, 1, 2)
    expected = list(plain_anchors(image_size, range(3, 8), scales, ratios, 4))
    boxes = np.concatenate(anchors.Anchors().boxes_cyxhw(image_size))
    assert boxes.dtype == np.float32
    np.testing.assert_allclose(boxes, expected, rtol=1e-6)


def test_other_shapes_agree_with_a_plain_loop():
    arguments = dict(scales=(1, 1.5), aspect_ratios=(0.25, 3), size=3.0)
    other = anchors.Anchors(min_level=2, max_level=4, **arguments)
    expected = list(plain_anchors((32, 48), (2, 3, 4), (1, 1.5), (0.25, 3), 3))
    assert other.levels == (2, 3, 4)
    assert other.num_per_cell == 4
    np.testing.assert_allclose(
        np.concatenate(other.boxes_cyxhw((32, 48))), expected, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("side", "count"), [(512, 49104), (640, 76725), (1024, 196416)]
)
def test_number_of_anchors_is_that_of_the_paper(side, count):
    boxes = anchors.Anchors().boxes_cyxhw((side, side))
    assert sum(len(level) for level in boxes) == count


def test_first_cell_of_p3_equals_values_computed_by_hand():
    boxes = anchors.Anchors().boxes_cyxhw((128, 128))[0]
    assert boxes[:9, :2].tolist() == [[4, 4]] * 9
    np.testing.assert_allclose(boxes[0, 2:], [45.25, 22.63], atol=0.01)
    np.testing.assert_allclose(boxes[3:6, 2], [32, 40.32, 50.80], atol=0.01)
    np.testing.assert_allclose(boxes[6, 2:], [22.63, 45.25], atol=0.01)
    assert boxes[9, :2].tolist() == [4, 12]


def test_areas_run_from_32_to_512_squared():
    boxes = anchors.Anchors(scales=(1,)).boxes_cyxhw((640, 640))
    areas = [level[:, 2] * level[:, 3] for level in boxes]
    for area, side in zip(areas, (32, 64, 128, 256, 512), strict=True):
        np.testing.assert_allclose(area, side**2, rtol=1e-6)


def test_grids_are_rows_by_columns():
    assert anchors.Anchors().grid_sizes((128, 256)) == (
        (16, 32),
        (8, 16),
        (4, 8),
        (2, 4),
        (1, 2),
    )


def test_the_error_of_an_invalid_image_size_contains_the_nearest_valid_ones():
    with pytest.raises(ValueError, match=r"\(600, 640\).*128.*P7.*IMAGE_SIZE") as error:
        anchors.Anchors().boxes_cyxhw((600, 640))
    assert "[512, 640]" in str(error.value)


@pytest.mark.parametrize("image_size", [(0, 128), (-128, 128), (128, 100)])
def test_sizes_that_are_no_multiples_of_the_stride_are_rejected(image_size):
    with pytest.raises(ValueError, match="128"):
        anchors.Anchors().grid_sizes(image_size)


@pytest.mark.parametrize(
    "arguments",
    [
        dict(min_level=5, max_level=4),
        dict(scales=()),
        dict(aspect_ratios=(1, -1)),
        dict(size=0),
    ],
)
def test_settings_without_any_box_are_rejected(arguments):
    with pytest.raises(ValueError, match="Anchors needs"):
        anchors.Anchors(**arguments)


# The settings of torchvision's RetinaNets; their ratios are height / width.
TORCHVISION = anchors.Anchors(
    aspect_ratios=(2.0, 1.0, 0.5), center=0.0, whole_pixels=True
)


def test_whole_pixels_are_those_of_torchvision():
    first = TORCHVISION.boxes_cyxhw((128, 128))[0][:9]
    # AnchorGenerator(((32, 40, 50),), ((0.5, 1.0, 2.0),)).cell_anchors, as xyxy.
    corners = [(23, 11), (28, 14), (35, 18), (16, 16), (20, 20), (25, 25)]
    corners += [(11, 23), (14, 28), (18, 35)]
    assert first.tolist() == [[0, 0, 2 * y, 2 * x] for x, y in corners]


def test_whole_strides_allow_more_sizes_of_images():
    assert TORCHVISION.grid_sizes((800, 1344))[2:] == ((25, 42), (13, 21), (7, 11))
    p6, p7 = (x.reshape(-1, 9, 4) for x in TORCHVISION.boxes_cyxhw((800, 1344))[3:])
    assert p6[[1, 21], 0, :2].tolist() == [[0, 64], [61, 0]]
    assert p7[[1, 11], 0, :2].tolist() == [[0, 122], [114, 0]]
    with pytest.raises(ValueError, match="multiple of 32, the stride of P5"):
        TORCHVISION.grid_sizes((800, 1333))
