"""Tests views with a detector of colored rectangles, which is exact at any place."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest
from absl import flags

from retinanet_tpu import errors, structures
from retinanet_tpu.data import transforms
from retinanet_tpu.serving import artifacts, batching, multi_view, view_flags, views
from retinanet_tpu.serving.multi_view import Views

MAX_DETECTIONS = 12
CLASSES = 3
# The red values of rectangles; the color of padding has none of them.
FIRST_RED = 200


def detect_rectangles(images):
    """Detects the bounding box of each color, with a score that depends on it."""
    shape = (len(images), MAX_DETECTIONS)
    batch = structures.Detections(
        np.zeros([*shape, 4], np.float32),
        np.zeros(shape, np.float32),
        np.zeros(shape, np.int32),
        np.zeros(len(images), np.int32),
    )
    for row, image in enumerate(images):
        numbers = image[..., 1][image[..., 0] >= FIRST_RED]
        for slot, number in enumerate(np.unique(numbers)):
            is_object = (image[..., 0] >= FIRST_RED) & (image[..., 1] == number)
            ys, xs = np.nonzero(is_object)
            box = [ys.min(), xs.min(), ys.max() + 1, xs.max() + 1]
            batch.boxes_yxyx[row, slot] = box
            batch.scores[row, slot] = 0.95 - 0.07 * number
            batch.classes[row, slot] = image[ys[0], xs[0], 0] - FIRST_RED
            batch.num_detections[row] = slot + 1
    return batch


ARTIFACT = artifacts.Artifact("model.onnx", "ONNX", None, detect_rectangles)


def draw(rng, size, *, max_side, step=1):
    """Returns an image with rectangles that do not overlap."""
    image = np.zeros([*size, 3], np.uint8)
    for number in range(8):
        sides = step * rng.integers(1, max_side // step + 1, 2)
        top, left = (
            step * rng.integers(0, (length - side) // step + 1)
            for length, side in zip(size, sides, strict=True)
        )
        window = image[top : top + sides[0], left : left + sides[1]]
        if not window.any():
            window[:] = (FIRST_RED + rng.integers(CLASSES), number, 7)
    return image


def detect(images, settings):
    return multi_view.detect(images, artifact=ARTIFACT, settings=settings)


def assert_same(actual, expected):
    for row in range(len(expected.scores)):
        for a, b in zip(
            artifacts.select_image(actual, row),
            artifacts.select_image(expected, row),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)


ALL = list(
    itertools.product(
        (False, True),
        (None, (1.0,), (0.7,), (1.3,), (0.5, 1.0, 1.25)),
        (None, 40, 64, 500),
        multi_view.MERGE_FNS,
    )
)


@pytest.mark.parametrize("seed", range(3))
def test_any_views_have_the_detections_of_the_whole_image(seed):
    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(50, 130, 2))
    # Below the overlap of any two windows, so that a window shows each object whole.
    images = np.stack([draw(rng, size, max_side=10) for _ in range(2)])
    expected = detect_rectangles(images)
    assert expected.num_detections.min() > 2
    for flip, scales, tile_size, merge in ALL[seed::3]:
        settings = Views(flip, scales, tile_size, 0.35, merge)
        actual = detect(images, settings)
        assert actual.scores.shape == (2, MAX_DETECTIONS)
        assert_same(actual, expected)


def test_the_image_as_the_only_view_has_the_same_bits():
    rng = np.random.default_rng(0)
    boxes = rng.random([3, 9, 4]).astype(np.float32) * 30
    boxes[..., 2:] += boxes[..., :2]
    scores = -np.sort(-rng.choice(rng.random(5), [3, 9])).astype(np.float32)
    plain = structures.Detections(
        np.minimum(boxes, np.float32([40, 50, 40, 50])),
        scores,
        rng.integers(0, 2, [3, 9], np.int32),
        np.array([9, 4, 0], np.int32),
    )
    artifact = dataclasses.replace(ARTIFACT, detect_fn=lambda images: plain)
    images = np.zeros([3, 40, 50, 3], np.uint8)
    for merge in multi_view.MERGE_FNS:
        settings = Views(merge=merge)
        actual = multi_view.detect(images, artifact=artifact, settings=settings)
        assert_same(actual, plain)
    assert multi_view.wrap(artifact, Views(scales=(1.0,))) is artifact


@pytest.mark.parametrize("merge", multi_view.MERGE_FNS)
def test_an_object_on_the_border_of_tiles_is_detected_once(merge):
    image = np.zeros([1, 40, 72, 3], np.uint8)
    image[0, 10:20, 34:42] = (FIRST_RED, 1, 0)  # Tiles end at 40 and begin at 32.
    found = detect(image, Views(tile_size=40, merge=merge))
    assert found.num_detections == [1]
    np.testing.assert_array_equal(found.boxes_yxyx[0, 0], [10, 34, 20, 42])
    assert found.scores[0, 0] == detect_rectangles(image).scores[0, 0]


def test_the_parts_of_an_object_larger_than_the_overlap_remain():
    image = np.zeros([1, 40, 72, 3], np.uint8)
    image[0, 10:20, 10:62] = (FIRST_RED, 1, 0)
    parts = detect(image, Views(tile_size=40, tile_overlap=0))
    assert parts.boxes_yxyx[0, :2].tolist() == [[10, 10, 20, 40], [10, 32, 20, 62]]
    # The whole image as a further view shows the object whole.
    found = detect(image, Views(tile_size=40, tile_overlap=0, scales=(1,)))
    assert found.num_detections == [1]
    assert found.boxes_yxyx[0, 0].tolist() == [10, 10, 20, 62]


def test_an_object_that_one_of_two_views_misses_has_half_of_its_score():
    def miss_some(images):
        found = detect_rectangles(images)
        is_missed = images[:, 0, 0, 2] != 1
        return found._replace(
            num_detections=np.where(is_missed, 0, found.num_detections)
        )

    image = np.zeros([1, 30, 40, 3], np.uint8)
    image[0, 0, 0] = (0, 0, 1)  # Only the view that is not mirrored begins with it.
    image[0, 10:20, 10:30] = (FIRST_RED, 1, 0)
    artifact = dataclasses.replace(ARTIFACT, detect_fn=miss_some)
    for merge, factor in (("fusion", 0.5), ("nms", 1.0)):
        wrapped = multi_view.wrap(artifact, Views(flip=True, merge=merge))
        expected = np.float32(factor * detect_rectangles(image).scores[0, 0])
        assert wrapped.detect(image).scores[0, 0] == expected


def test_parts_of_an_object_in_mirrored_tiles_are_merged_like_whole_objects():
    image = np.zeros([1, 40, 72, 3], np.uint8)
    image[0, 10:20, 10:62] = (FIRST_RED, 1, 0)  # Cut by both tiles.
    expected = detect_rectangles(image).scores[0, 0]

    def detect_parts(images, *, is_missed_fn):
        found = detect_rectangles(images)
        # In the mirrored view, the part begins at another column.
        is_missed = is_missed_fn(found.boxes_yxyx[:, 0, 1])
        return found._replace(
            num_detections=np.where(is_missed, 0, found.num_detections)
        )

    for factor, is_missed_fn in ((1.0, lambda x: x < -1), (0.5, lambda x: x > 0)):
        artifact = dataclasses.replace(
            ARTIFACT,
            detect_fn=functools.partial(detect_parts, is_missed_fn=is_missed_fn),
        )
        settings = Views(flip=True, tile_size=40, tile_overlap=0)
        parts = multi_view.wrap(artifact, settings).detect(image)
        assert parts.num_detections == [2]
        assert parts.scores[0, :2].tolist() == [np.float32(factor * expected)] * 2


def naive_count(boxes, indices, all_views, image_size):
    """Returns the views that show each box whole, one view and box after the other."""
    counts, is_part = np.zeros(len(boxes), int), np.ones(len(boxes), bool)
    for row, box in enumerate(boxes.astype(np.float64)):
        for index, view in enumerate(all_views):
            margin = 0.01 * max(view.height, view.width)
            is_whole = all(
                (start == 0 or box[axis] >= start + margin)
                and (
                    start + side >= image_size[axis]
                    or box[axis + 2] <= start + side - margin
                )
                for axis, (start, side) in enumerate(
                    zip(view[:2], view[2:4], strict=True)
                )
            )
            counts[row] += is_whole
            if is_whole and indices[row] == index:
                is_part[row] = False
    return counts, is_part


@pytest.mark.parametrize("seed", range(4))
def test_the_views_of_a_box_are_counted_as_by_a_simple_loop(seed):
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(50, 90)), int(rng.integers(50, 90)))
    all_views = Views(seed % 2 == 0, (1.0, 1.4, 0.8), 30, 0.3).of_image(*size)
    corners = rng.uniform(0, 60, [40, 2])
    boxes = np.concatenate([corners, corners + rng.uniform(1, 30, [40, 2])], axis=1)
    boxes = np.round(boxes).astype(np.float32)  # Many boxes end at an edge.
    indices = rng.integers(0, len(all_views), 40).astype(np.int32)
    actual = views.count_views(boxes, indices, all_views, size)
    expected = naive_count(boxes, indices, all_views, size)
    assert expected[0].max() > 2 and expected[1].any() and not expected[1].all()
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_views_are_counted_per_axis(monkeypatch):
    all_views = Views(tile_size=100, tile_overlap=0.5).of_image(3000, 3000)
    boxes, calls = np.zeros([5, 4], np.float32), []
    between_fn = views._is_between
    monkeypatch.setattr(
        views, "_is_between", lambda *a: calls.append(a) or between_fn(*a)
    )
    views.count_views(boxes, np.zeros(5, np.int32), all_views, (3000, 3000))
    assert len(all_views) == 59 * 59 and len(calls) == 2 * 59 + 2


def test_batches_do_not_matter(monkeypatch):
    rng = np.random.default_rng(3)
    images = np.stack([draw(rng, (60, 90), max_side=9) for _ in range(3)])
    settings = Views(flip=True, scales=(1, 1.5), tile_size=32, tile_overlap=0.4)
    expected = detect(images, settings)
    for size in (1, 5, 1000):
        monkeypatch.setattr(multi_view, "_BATCH_SIZE", size)
        assert_same(detect(images, settings), expected)
        for row in range(3):
            one = structures.Detections(*(x[row : row + 1] for x in expected))
            assert_same(detect(images[row : row + 1], settings), one)


def test_large_views_are_reduced_and_batches_are_small(monkeypatch):
    limit = 1500
    monkeypatch.setattr(batching, "MAX_PIXELS", limit)
    shapes = []

    def detect_fn(images):
        shapes.append(images.shape)
        return detect_rectangles(images)

    image = draw(np.random.default_rng(4), (50, 90), max_side=16, step=2)
    artifact = dataclasses.replace(ARTIFACT, detect_fn=detect_fn)
    for settings in (
        Views(scales=(1.0,), flip=True),
        Views(scales=(0.9,), flip=True),
        Views(tile_size=20, tile_overlap=0.8),
    ):
        found = multi_view.detect(image[None], artifact=artifact, settings=settings)
        assert_same(found, detect_rectangles(image[None]))
    assert max(np.prod(shape[:3]) for shape in shapes) <= limit
    assert (3, 20, 20, 3) in shapes


def test_detections_in_the_padding_of_a_view_are_dropped():
    def detect_corners(images):
        """Detects the top left quarter, and the top right one with a higher score."""
        count, height, width, _ = images.shape
        y, x = height / 2, width / 2
        return structures.Detections(
            np.float32([[[0, x + 1, y, width], [0, 0, y, x]]] * count),
            np.float32([[0.9, 0.5]] * count),
            np.ones([count, 2], np.int32),
            np.full(count, 2, np.int32),
        )

    artifact = dataclasses.replace(ARTIFACT, detect_fn=detect_corners)
    wrapped = multi_view.wrap(artifact, Views(scales=(0.5,)))
    found = wrapped.detect(np.zeros([1, 30, 40, 3], np.uint8))
    assert found.num_detections == [1]
    assert found.boxes_yxyx[0, 0].tolist() == [0, 0, 30, 40]


def test_padding_has_the_color_of_the_models_padding(monkeypatch):
    image = np.full([7, 9, 3], 50, np.uint8)
    image[:, 8] = 60
    monkeypatch.setattr(batching, "MAX_PIXELS", 40)
    # The last squares have fewer pixels of the image; their mean is not darkened.
    pixels = views.cut(image, views.View(0, 0, 8, 12))
    assert pixels.shape == (4, 6, 3)
    assert (pixels[:, :4] == 50).all() and (pixels[:, 4] == 60).all()
    assert (pixels[:, 5] == transforms.MEAN_COLOR).all()
    mirrored = views.cut(image, views.View(0, 0, 8, 12, is_mirrored=True))
    assert (mirrored[:, 0] == 55).all() and (mirrored[:, 1:5] == 50).all()
    assert (mirrored[:, 5] == transforms.MEAN_COLOR).all()


def test_max_detections_is_that_of_the_model_or_of_the_settings():
    image = draw(np.random.default_rng(5), (60, 90), max_side=9)[None]
    expected = detect_rectangles(image)
    for maximum in (1, 3, 50):
        wrapped = multi_view.wrap(ARTIFACT, Views(max_detections=maximum))
        found = wrapped.detect(image)
        count = min(maximum, int(expected.num_detections[0]))
        assert found.scores.shape == (1, maximum) and found.num_detections == [count]
        np.testing.assert_array_equal(
            found.scores[0, :count], expected.scores[0, :count]
        )


def test_windows_cover_a_side_with_at_least_the_overlap():
    rng = np.random.default_rng(6)
    for _ in range(200):
        side, window = rng.integers(1, 300, 2)
        overlap = rng.random() * 0.95
        starts = views.window_starts(side, window, overlap)
        assert starts[0] == 0 and (window >= side or starts[-1] == side - window)
        steps = np.diff(starts)
        assert (steps >= 1).all() and (steps <= max(1, window * (1 - overlap))).all()
        # Fewer windows would not do.
        fewest = -(-(side - window) // max(1, int(window * (1 - overlap)))) + 1
        assert len(starts) == max(1, fewest)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scales": (1, 0)}, "scales contains 0; a scale must be between 0.01 and 100"),
        ({"scales": (1e-9,)}, "scales contains 1e-09; a scale must be between"),
        ({"scales": (101,)}, "scales contains 101"),
        ({"scales": (float("nan"),)}, "scales contains nan"),
        ({"scales": (float("inf"),)}, "scales contains inf"),
        ({"tile_size": 0}, "tile_size is 0; it must be >= 1"),
        ({"max_detections": 0}, "max_detections is 0; it must be >= 1"),
        ({"tile_overlap": 1.0}, r"tile_overlap is 1\.0.* must be in \[0, 1\)"),
        ({"tile_overlap": -0.1}, r"tile_overlap is -0\.1"),
        ({"iou_threshold": 1.0}, r"iou_threshold is 1\.0; .* between 0 and 1"),
        ({"merge": "best"}, "merge is 'best'; choose one of fusion, nms"),
        ({"scales": ()}, "There is no view: scales is empty and there is no tile_size"),
    ],
)
def test_wrong_settings_are_errors(values, message):
    with pytest.raises(errors.UserError, match=message):
        Views(**values)


def test_too_many_views_are_an_error():
    image = np.zeros([1, 300, 400, 3], np.uint8)
    error = multi_view.TooManyViewsError
    with pytest.raises(error, match=r"120000 views \(tiles of 1 px.*most 10000 are"):
        detect(image, Views(tile_size=1))
    # The mirrored views and those of all scales count too.
    assert len(Views(tile_size=4, tile_overlap=0).of_image(300, 400)) == 7500
    with pytest.raises(error, match=r"would have 15000 views"):
        Views(tile_size=4, tile_overlap=0, flip=True).of_image(300, 400)
    with pytest.raises(error, match=r"would have 13501 views"):
        Views(scales=(1, 75), tile_size=4, tile_overlap=0).of_image(300, 400)


def test_flags_are_the_settings():
    values = flags.FlagValues()
    view_flags.define(values)
    values(["predict"])
    assert view_flags.wrap(ARTIFACT, values) is ARTIFACT
    texts = ("flip", "scales=1,1.5", "tile_size=64", "tile_overlap=.3", "merge=nms")
    texts += ("merge_iou=0.5", "max_detections=7")
    values(["predict", *(f"--{text}" for text in texts)])
    settings = view_flags.wrap(ARTIFACT, values).detect_fn.keywords["settings"]
    assert settings == Views(True, (1.0, 1.5), 64, 0.3, "nms", 0.5, 7)
    assert str(settings) == (
        "scale 1, scale 1.5, tiles of 64 px, each also mirrored, merged by nms"
    )
    values(["predict", "--scales=1,x"])
    with pytest.raises(errors.UserError, match="--scales=1,x is not a list of numbers"):
        view_flags.wrap(ARTIFACT, values)
    values(["predict", "--scales=", "--tile_size=5"])
    assert view_flags.wrap(ARTIFACT, values).detect_fn.keywords["settings"].scales == ()


@pytest.mark.parametrize("text", ["merge=nms", "merge_iou=0.5", "tile_overlap=0.4"])
def test_flags_without_effect_are_an_error(text):
    values = flags.FlagValues()
    view_flags.define(values)
    name = text.partition("=")[0]
    for more in ([], ["--scales=1"], ["--max_detections=5"]):
        values(["predict", f"--{text}", *more])
        message = f"--{name} has no effect without further views; add --flip"
        with pytest.raises(errors.UserError, match=message):
            view_flags.wrap(ARTIFACT, values)
        values.unparse_flags()
        values[name].unparse()
    values(["predict", f"--{text}", "--scales=1.5"])
    assert view_flags.wrap(ARTIFACT, values) is not ARTIFACT
