import random

import pytest

from retinanet_tpu.conversion.formats import yolo_lines


def lines(*texts, keypoints=None):
    return yolo_lines.parse("\n".join(texts).encode(), "a.txt", keypoints=keypoints)


def polygons(count, num_points, seed=0):
    """Returns lines of polygons around random centers."""
    generator, texts = random.Random(seed), []
    for _ in range(count):
        cx, cy = generator.uniform(0.3, 0.7), generator.uniform(0.3, 0.7)
        fractions = [c + generator.uniform(-0.2, 0.2) for c in (cx, cy) * num_points]
        texts.append(f"0 {' '.join(f'{fraction:.5f}' for fraction in fractions)}")
    return lines(*texts)


def poses(count, num_points, dimension, seed=0):
    """Returns lines of boxes with keypoints in them."""
    generator, texts = random.Random(seed), []
    for _ in range(count):
        cx, cy = generator.uniform(0.3, 0.7), generator.uniform(0.3, 0.7)
        fractions = [cx, cy, 0.4, 0.4]
        for _ in range(num_points):
            fractions += [c + generator.uniform(-0.2, 0.2) for c in (cx, cy)]
            fractions += [generator.choice([0, 1, 2])] * (dimension == 3)
        texts.append(f"0 {' '.join(f'{fraction:.5f}' for fraction in fractions)}")
    return lines(*texts)


@pytest.mark.parametrize("num_points", [1, 2, 4, 17, 21])
@pytest.mark.parametrize("has_yaml", [False, True])
def test_keypoints_with_visibility_are_recognized(num_points, has_yaml):
    many = poses(3, num_points, 3)
    assert yolo_lines.may_be_keypoints(many, has_yaml=has_yaml)


@pytest.mark.parametrize("num_points", [1, 2, 3, 17])
def test_keypoints_without_visibility_are_recognized_without_a_yaml(num_points):
    assert yolo_lines.may_be_keypoints(poses(3, num_points, 2), has_yaml=False)
    many = poses(30, num_points, 2)
    assert yolo_lines.may_be_keypoints(many, has_yaml=True) == (num_points > 2)


@pytest.mark.parametrize("num_points", [3, 4, 5, 8, 30])
def test_polygons_are_recognized(num_points):
    assert not yolo_lines.may_be_keypoints(polygons(30, num_points), has_yaml=False)
    mixed = polygons(2, 4) + polygons(2, 5)
    assert not yolo_lines.may_be_keypoints(mixed, has_yaml=True)


def test_oriented_boxes_are_polygons_even_where_they_look_like_keypoints():
    # Rotated around the center of the image, so that all points lie in the "box".
    oriented = lines("0 .45 .4 .6 .45 .55 .6 .4 .55", "0 .5 .4 .6 .5 .5 .6 .4 .5")
    assert not yolo_lines.may_be_keypoints(oriented, has_yaml=False)


def test_data_without_longer_lines_has_no_keypoints():
    assert not yolo_lines.may_be_keypoints([], has_yaml=False)


@pytest.mark.parametrize(
    ("keypoints", "counts"),
    [
        (None, {4, 6, 7, 8, 10, 12, 13, 14, 16, 18, 19, 20}),
        ((0, 0), {4, 6, 8, 10, 12, 14, 16, 18, 20}),
        ((4, 3), {4, 16}),
        ((3, 2), {4, 10}),
    ],
)
def test_lines_have_a_box_a_polygon_or_keypoints(keypoints, counts):
    for count in range(21):
        line = " ".join(["1", *["0.5"] * count])
        if count in counts:
            (parsed,) = lines(line, keypoints=keypoints)
            assert parsed == ("1", (0.5,) * count, 1)
        else:
            with pytest.raises(ValueError, match="expected class cx cy width height"):
                lines(line, keypoints=keypoints)


def test_box_of_a_line():
    (line,) = lines("7 0.3 0.4 0.2 0.2 0.9 0.8")
    assert yolo_lines.box(line, is_polygon=False) == pytest.approx((0.2, 0.3, 0.2, 0.2))
    assert yolo_lines.box(line, is_polygon=True) == pytest.approx((0.2, 0.2, 0.7, 0.6))


@pytest.mark.parametrize(
    ("value", "shape"), [(["17", "3"], (17, 3)), (["0", "0"], (0, 0)), ("", None)]
)
def test_shape_of_keypoints(value, shape):
    assert yolo_lines.kpt_shape(value, "data.yaml") == shape


@pytest.mark.parametrize(
    "value", [["17"], ["17", "4"], ["-1", "2"], ["a", "2"], {"a": "b"}, "17", "17, 3"]
)
def test_invalid_shape_of_keypoints_is_refused(value):
    with pytest.raises(
        ValueError, match=r"data\.yaml has kpt_shape .* expected \[number"
    ):
        yolo_lines.kpt_shape(value, "data.yaml")
