import math

import numpy as np
import pytest

from retinanet_tpu.conversion import box_cleaning
from retinanet_tpu.data import annotations, image_decoding

BoxIssue = box_cleaning.BoxIssue
STORED = image_decoding.StoredImage(b"", "png", 24, 30, 1, ())


def cleaned(*boxes, is_norm=False, area=100.0):
    objects = tuple(
        annotations.AnnotatedObject(i, 1, box, area, False, i)
        for i, box in enumerate(boxes, start=1)
    )
    image = annotations.AnnotatedImage(
        5, "a.jpg", 24, 30, objects, "a.xml", "object", is_norm
    )
    kept, events = box_cleaning.clip_and_filter_boxes(image, STORED)
    return [item.box_xywh for item in kept], events, kept


@pytest.mark.parametrize(
    ("box", "issue"),
    [
        ((3, 4, 0, 9), BoxIssue.NO_AREA),
        ((3, 4, 5, -1), BoxIssue.WRONG_ORDER),
        ((40, 4, 9, 9), BoxIssue.OUTSIDE),
        ((-9, 4, 9, 9), BoxIssue.OUTSIDE),
        ((math.nan, 1, 2, 3), BoxIssue.NOT_FINITE),
        ((1, 1, math.inf, 3), BoxIssue.NOT_FINITE),
        ((0.1, 0.2, 0.5, 0.5), BoxIssue.NOT_PIXELS),
    ],
)
def test_an_unusable_box_is_dropped_with_an_event(box, issue):
    kept, (event,), _ = cleaned((3, 4, 5, 6), box)
    assert kept == [(3, 4, 5, 6)]
    assert event[:2] == (issue.kind, "a.xml, object 2")
    assert event.detail.startswith("a.jpg, (")


def test_an_event_contains_the_corners_as_annotated():
    _, (event,), _ = cleaned((9, 4, -3, 2.5))
    assert event.detail == "a.jpg, (9, 4, 6, 6.5)"
    _, (event,), _ = cleaned((0.5, 0.25, 0.75, 0.25), is_norm=True)
    assert event.detail == "a.jpg, (0.5, 0.25, 1.25, 0.5)"


@pytest.mark.parametrize("box", [(320, 100, 64, 64), (0.5, 0.5, 3, 0.1)])
def test_pixels_where_fractions_were_expected_are_dropped(box):
    kept, (event,), _ = cleaned(box, is_norm=True)
    assert kept == [] and event.kind == BoxIssue.NOT_FRACTIONS.kind


def test_fractions_become_pixels_of_the_image():
    kept, events, (item,) = cleaned((0.5, 0.25, 0.25, 0.5), is_norm=True, area=0.125)
    assert kept == [(15, 6, 7.5, 12)]
    assert item.area == 90 and events == []


def test_a_box_beyond_the_edge_is_clipped_with_its_area():
    kept, (event,), (item,) = cleaned((-5.0, 10.0, 20.0, 50.0), area=1000.0)
    assert kept == [(0, 10, 15, 14)]
    assert item.area == 15 * 14
    assert event.kind == BoxIssue.FAR_BEYOND.kind


def test_a_box_beyond_the_edge_by_rounding_is_unchanged():
    box = (20.0, 10.0, 10.02, 5.0)
    assert cleaned(box)[:2] == ([box], [])


def test_a_box_that_training_ignores_is_kept_with_an_event():
    kept, (event,), (item,) = cleaned((3, 4, 0.5, 9))
    assert kept == [(3, 4, 0.5, 9)]
    assert event.kind == "boxes narrower than a pixel, ignored by training"
    assert not box_cleaning.is_learnable(item)
    assert box_cleaning.is_learnable(item._replace(box_xywh=(3, 4, 1, 1)))
    assert not box_cleaning.is_learnable(
        item._replace(box_xywh=(3, 4, 9, 9), is_crowd=True)
    )


def test_kept_boxes_lie_in_the_image_for_any_input():
    rng = np.random.default_rng(0)
    boxes = [tuple(b) for b in rng.normal(10, 30, [500, 4]).tolist()]
    kept, events, _ = cleaned(*boxes)
    dropped = [e for e in events if e.kind.endswith("dropped")]
    assert len(kept) + len(dropped) == 500 and len(kept) > 50
    for left, top, width, height in kept:
        assert width > 0 and height > 0 and left >= -0.5 and top >= -0.5
        assert left + width <= 30.5 and top + height <= 24.5
