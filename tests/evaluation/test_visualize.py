import numpy as np
import pytest

from retinanet_tpu.evaluation import visualize


def gray(height, width, value=128):
    return np.full((height, width, 3), value, np.uint8)


def draw(image, boxes, *, scores=None, classes=None, **options):
    scores = [0.9] * len(boxes) if scores is None else scores
    classes = [1] * len(boxes) if classes is None else classes
    return visualize.draw_detections(image, boxes, scores, classes, **options)


def changed(before, after):
    """Returns (ymin, xmin, ymax, xmax) of the pixels that differ."""
    ys, xs = np.nonzero((before != after).any(axis=-1))
    return ys.min(), xs.min(), ys.max() + 1, xs.max() + 1


def has_color(image, color):
    return (image == np.array(color)).all(axis=-1).any()


def test_frame_lies_on_the_edge_pixels_of_the_box_in_the_color_of_its_class():
    image = gray(400, 400)
    drawn = draw(image, [[100, 50, 300, 250]], classes=[7])
    for pixel in [(299, 150), (200, 50), (200, 249)]:
        assert tuple(drawn[pixel]) == visualize.class_color(7)
    for pixel in [(200, 150), (305, 150), (200, 40), (200, 260)]:
        assert tuple(drawn[pixel]) == (128, 128, 128)


def test_input_is_not_changed_and_no_detections_draw_nothing():
    image = gray(60, 80)
    draw(image, [[10, 10, 50, 50]])
    assert (image == 128).all()
    np.testing.assert_array_equal(draw(image, []), image)
    np.testing.assert_array_equal(draw(image, np.zeros([0, 4])), image)


def test_low_scores_and_boxes_that_are_not_finite_are_left_out():
    image = gray(100, 100)
    boxes = [[10, 10, 50, 50], [20, 20, 60, 60], [np.nan, 0, 9, 9]]
    drawn = draw(image, boxes, scores=[0.4, np.nan, 0.9], min_score=0.5)
    np.testing.assert_array_equal(drawn, image)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (100, 100), (3000, 4000)])
def test_any_box_on_any_image_is_drawn(size):
    height, width = size
    image = gray(height, width)
    boxes = [
        [-50, -50, 2 * height, 2 * width],
        [height + 9, width + 9, height + 20, width + 20],
        [height / 2, width / 2, height / 2, width / 2],
        [height - 1, width - 1, height, width],
    ]
    drawn = draw(image, boxes, ground_truth_yxyx=boxes, names={1: "name " * 9})
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    assert (drawn != image).any()


def test_lines_and_letters_grow_with_the_image():
    heights, frames = [], []
    for scale in (1, 4, 16):
        image = gray(200 * scale, 200 * scale)
        box = np.array([[50, 50, 150, 150]]) * scale
        drawn = draw(image, box)
        heights.append(50 * scale - changed(image, drawn)[0])
        column = (drawn[100 * scale] == visualize.class_color(1)).all(axis=-1)
        frames.append(column.sum())
    assert heights[0] >= 9 and heights[0] < heights[1] < heights[2]
    assert frames[0] < frames[1] < frames[2]


@pytest.mark.parametrize(
    "corners",
    [(0, 0, 29, 29), (170, 170, 199, 199), (170, 0, 199, 29), (0, 0, 199, 199)],
)
def test_label_of_a_box_at_the_border_stays_in_the_image(corners):
    plates = []
    for _ in range(2):
        plates.append(visualize._free_plate(corners, (90, 14), (200, 200), plates))
        x0, y0, x1, y1 = plates[-1]
        assert 0 <= x0 < x1 < 200 and 0 <= y0 < y1 < 200
        assert (x1 - x0 + 1, y1 - y0 + 1) == (90, 14)


def test_name_is_written_unless_better_detections_leave_no_room():
    image, box = gray(200, 200), [80, 80, 140, 140]
    names = {1: "duck-billed platypus"}
    named, numbered = draw(image, [box], names=names), draw(image, [box])
    assert changed(image, named)[3] > changed(image, numbered)[3]
    crowd = [box] * 30
    drawn = draw(image, crowd, names=names)
    one_more = draw(image, [*crowd, box], scores=[0.9] * 30 + [0.5], names=names)
    inside = np.s_[83:137, 83:137]
    np.testing.assert_array_equal(drawn[inside], one_more[inside])
    assert (drawn[inside] != numbered[inside]).any()


def test_labels_do_not_cover_each_other():
    plates = []
    for _ in range(3):
        plates.append(
            visualize._free_plate((50, 50, 149, 149), (60, 14), (200, 200), plates)
        )
    assert plates[0] == (50, 36, 109, 49)  # above the box, flush left
    assert plates[1] == (50, 50, 109, 63)  # then inside
    assert None not in plates
    filled = [(0, 0, 199, 199)]
    plate = visualize._free_plate((50, 50, 149, 149), (60, 14), (200, 200), filled)
    assert plate is None


def test_label_covers_a_small_box_only_without_other_room():
    plates = []
    for _ in range(3):
        plates.append(
            visualize._free_plate((50, 50, 79, 79), (30, 14), (200, 200), plates)
        )
    assert [plate[1] for plate in plates] == [50 - 14, 80, 50]


def test_labels_leave_two_thirds_of_a_small_image_visible(monkeypatch):
    image, names = gray(100, 100), {1: "potted plant"}
    corners = np.random.default_rng(0).uniform(0, 70, (30, 2))
    boxes = np.concatenate([corners, corners + 30], axis=1)
    labeled = draw(image, boxes, names=names)
    monkeypatch.setattr(visualize, "_draw_labels", lambda *_: None)
    share = (labeled != draw(image, boxes)).any(axis=-1).mean()
    assert 0.2 < share < 1 / 3


def test_better_detection_lies_on_top():
    boxes = [[20, 20, 80, 80], [20, 20, 80, 80]]
    for scores, top in (([0.9, 0.5], 3), ([0.5, 0.9], 4)):
        drawn = draw(gray(100, 100), boxes, scores=scores, classes=[3, 4])
        assert tuple(drawn[50, 20]) == visualize.class_color(top)


def test_colors_of_a_dataset_are_distinct_and_constant():
    colors = [visualize.class_color(i) for i in range(91)]
    assert len(set(colors)) == 91
    assert colors == [visualize.class_color(np.int64(i)) for i in range(91)]
    neighbors = np.abs(np.diff(np.array(colors, int), axis=0)).sum(axis=1)
    assert neighbors.min() > 150


@pytest.mark.parametrize("value", [0, 128, 255])
def test_ground_truth_is_black_and_white_on_any_background(value):
    image = gray(100, 100, value)
    drawn = draw(image, [], ground_truth_yxyx=[[20, 30, 60, 70]])
    frame = drawn[20, 30:70]
    assert has_color(frame[None], (0, 0, 0)) and has_color(frame[None], (255, 255, 255))
    inside, outside = drawn[30:50, 40:60], drawn[:20]
    assert (inside == value).all() and (outside == value).all()


@pytest.mark.parametrize(
    "image", [np.zeros((9, 9, 3), np.float32), np.zeros((9, 9), np.uint8)]
)
def test_image_of_another_type_is_rejected(image):
    with pytest.raises(ValueError, match=r"expected uint8 \[H, W, 3\]"):
        draw(image, [])


def test_arrays_of_different_lengths_are_rejected():
    with pytest.raises(ValueError, match="1 boxes, 2 scores and 1 classes"):
        draw(gray(9, 9), [[0, 0, 5, 5]], scores=[1, 1])


def test_grid_scales_every_image_to_the_same_height():
    images = [gray(100, 200, 250), gray(50, 50, 250), gray(400, 100, 250)]
    laid_out = visualize.grid(images, 2, height=40, gap=4)
    assert laid_out.shape == (2 * 44 + 4, 4 + 80 + 4 + 40 + 4, 3)
    ys, xs = np.nonzero((laid_out == 250).all(axis=-1))
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (4, 87, 4, 127)
    assert (laid_out == 250).all(axis=-1).sum() == 40 * (80 + 40 + 10)


def test_grid_without_images_or_columns_is_rejected():
    with pytest.raises(ValueError, match="0 images in 2 columns"):
        visualize.grid([], 2)
    with pytest.raises(ValueError, match="1 images in 0 columns"):
        visualize.grid([gray(5, 5)], 0)
