import math

import numpy as np
import pytest
from pycocotools import mask as mask_lib

from retinanet_tpu.conversion.formats import shapes

BOX = (10.0, 20.0, 40.0, 30.0)


@pytest.mark.parametrize("pivot", [(0, 0), (0.5, 0.5), (1, 0.25)])
@pytest.mark.parametrize("degrees", [0, 12.5, 90, 123, 180, 270, -30, 360, 450])
def test_a_rotated_rectangle_is_inside_the_box_and_touches_it(degrees, pivot):
    left, top, width, height = shapes.rectangle(BOX, degrees, pivot=pivot)
    center = BOX[:2] + np.array(pivot) * BOX[2:]
    corners = [
        (BOX[0] + x * BOX[2], BOX[1] + y * BOX[3]) for x in (0, 1) for y in (0, 1)
    ]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    rotated = (corners - center) @ [[cos, sin], [-sin, cos]] + center
    np.testing.assert_allclose(rotated.min(0), (left, top), atol=1e-9)
    np.testing.assert_allclose(rotated.max(0), (left + width, top + height), atol=1e-9)


@pytest.mark.parametrize("degrees", [0, 30, 90, 200])
def test_an_ellipse_touches_its_box(degrees):
    left, top, width, height = shapes.ellipse(50, 40, 20, 10, degrees)
    t, turn = np.linspace(0, 2 * np.pi, 10_001), math.radians(degrees)
    x = 50 + 20 * np.cos(t) * math.cos(turn) - 10 * np.sin(t) * math.sin(turn)
    y = 40 + 20 * np.cos(t) * math.sin(turn) + 10 * np.sin(t) * math.cos(turn)
    box_xywh = (x.min(), y.min(), np.ptp(x), np.ptp(y))
    np.testing.assert_allclose(box_xywh, (left, top, width, height), atol=1e-4)


def test_quarter_turns_are_exact():
    assert shapes.rectangle(BOX, 90, pivot=(0.5, 0.5)) == (15, 15, 30, 40)
    assert shapes.rectangle(BOX, -360, pivot=(0, 0)) == BOX
    assert shapes.ellipse(50, 40, 20, 10, 270) == (40, 20, 20, 40)


def test_invalid_shapes_have_invalid_boxes():
    assert math.isnan(shapes.rectangle(BOX, math.nan, pivot=(0, 0))[0])
    assert math.isnan(shapes.rectangle(BOX, math.inf, pivot=(0, 0))[0])
    assert math.isnan(shapes.ellipse(1, 2, math.nan, 4)[0])
    assert math.isnan(shapes.polygon([1, 2, 3], [1, math.nan, 3], "")[0])
    assert shapes.ellipse(1, 2, -3, 4)[2] == -6
    inverted = (50.0, 20.0, -40.0, 30.0)
    assert shapes.rectangle(inverted, 45, pivot=(0, 0)) == inverted


@pytest.mark.parametrize(
    "segmentation",
    [
        [[30, 20, 90, 20, 90, 60, 30, 60]],
        [[30, 20, 40, 20, 40, 30], [80, 50, 90, 50, 90, 60]],
        [30, 20, 90, 60],
        [[30, 20], [90, 20], [90, 60]],
        [["30", "20", "90", "60"]],
    ],
)
def test_box_is_around_all_polygons(segmentation):
    assert shapes.segmentation_box(segmentation) == (30, 20, 60, 40)


@pytest.mark.parametrize("seed", range(20))
def test_box_of_a_mask_equals_that_of_pycocotools(seed):
    generator = np.random.default_rng(seed)
    height, width = generator.integers(1, 40, 2)
    pixels = np.zeros([height, width], np.uint8, order="F")
    top, left = generator.integers(0, (height, width))
    pixels[top : top + 9, left : left + 9] = generator.random() < 0.9
    pixels *= generator.random([height, width]) < generator.choice([0.1, 0.9, 1])
    encoded = mask_lib.encode(np.asfortranarray(pixels))
    compressed = {"size": [height, width], "counts": encoded["counts"].decode()}
    flat = pixels.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *changes, len(flat)]).tolist()
    plain = {"size": [height, width], "counts": [0] * flat[0] + counts}
    expected = tuple(mask_lib.toBbox(encoded)) if pixels.any() else None
    assert shapes.segmentation_box(compressed) == expected
    assert shapes.segmentation_box(plain) == expected


@pytest.mark.parametrize(
    "segmentation",
    [
        None, [], [[]], {}, "abc", [[1, 2]], [[1, 2, 3]], [["a", 1, 2, 3]], [1], 7,
        {"size": [9, 9], "counts": "abc"}, {"size": [9, 9], "counts": "o"},
        {"size": [9, 9], "counts": [1, 100]}, {"size": [9, 9], "counts": [1, -1]},
        {"size": [0, 0], "counts": [0, 0]}, {"size": [9], "counts": []},
        {"size": [9, 9], "counts": "\u00ff" * 9}, {"size": [9, 9], "counts": [81]},
        {"size": ["a", 9], "counts": [1, 2]}, {"size": [9, 9], "counts": ["a", "b"]},
    ],
)  # fmt: skip
def test_invalid_segmentations_have_no_box(segmentation):
    assert shapes.segmentation_box(segmentation) is None
