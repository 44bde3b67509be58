import math

import numpy as np
import pytest

from retinanet_tpu.data.annotation_formats import shapes

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
    turned = (corners - center) @ [[cos, sin], [-sin, cos]] + center
    np.testing.assert_allclose(turned.min(0), (left, top), atol=1e-9)
    np.testing.assert_allclose(turned.max(0), (left + width, top + height), atol=1e-9)


@pytest.mark.parametrize("degrees", [0, 30, 90, 200])
def test_an_ellipse_touches_its_box(degrees):
    left, top, width, height = shapes.ellipse(50, 40, 20, 10, degrees)
    t, turn = np.linspace(0, 2 * np.pi, 10_001), math.radians(degrees)
    x = 50 + 20 * np.cos(t) * math.cos(turn) - 10 * np.sin(t) * math.sin(turn)
    y = 40 + 20 * np.cos(t) * math.sin(turn) + 10 * np.sin(t) * math.cos(turn)
    found = (x.min(), y.min(), np.ptp(x), np.ptp(y))
    np.testing.assert_allclose(found, (left, top, width, height), atol=1e-4)


def test_quarter_turns_are_exact():
    assert shapes.rectangle(BOX, 90, pivot=(0.5, 0.5)) == (15, 15, 30, 40)
    assert shapes.rectangle(BOX, -360, pivot=(0, 0)) == BOX
    assert shapes.ellipse(50, 40, 20, 10, 270) == (40, 20, 20, 40)


def test_what_is_wrong_with_a_shape_shows_in_its_box():
    assert math.isnan(shapes.rectangle(BOX, math.nan, pivot=(0, 0))[0])
    assert math.isnan(shapes.rectangle(BOX, math.inf, pivot=(0, 0))[0])
    assert math.isnan(shapes.ellipse(1, 2, math.nan, 4)[0])
    assert math.isnan(shapes.polygon([1, 2, 3], [1, math.nan, 3], "")[0])
    assert shapes.ellipse(1, 2, -3, 4)[2] == -6
    inverted = (50.0, 20.0, -40.0, 30.0)
    assert shapes.rectangle(inverted, 45, pivot=(0, 0)) == inverted
