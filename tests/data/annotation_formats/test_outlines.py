import numpy as np
import pytest
from pycocotools import mask as mask_lib

from retinanet_tpu.data.annotation_formats import outlines


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
    assert outlines.segmentation_box(segmentation) == (30, 20, 60, 40)


@pytest.mark.parametrize("seed", range(20))
def test_box_of_a_mask_is_that_of_pycocotools(seed):
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
    assert outlines.segmentation_box(compressed) == expected
    assert outlines.segmentation_box(plain) == expected


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
def test_what_is_no_outline_has_no_box(segmentation):
    assert outlines.segmentation_box(segmentation) is None


def test_box_around_a_turned_box():
    assert outlines.turned_box(10, 10, 4, 2, 0) == (8, 9, 4, 2)
    turned = outlines.turned_box(10, 10, 4, 2, np.pi / 2)
    np.testing.assert_allclose(turned, (9, 8, 2, 4))
    diagonal = outlines.turned_box(0, 0, 2, 2, np.pi / 4)
    np.testing.assert_allclose(diagonal[2:], (8**0.5, 8**0.5))
