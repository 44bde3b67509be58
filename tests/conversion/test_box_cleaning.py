import math

import numpy as np
import pytest

from retinanet_tpu.conversion import box_cleaning
from retinanet_tpu.data import annotations, image_decoding

PICTURE = image_decoding.StoredImage(b"", "png", 24, 30, 1, ())


def mended(*boxes, is_norm=False, area=100.0):
    objects = tuple(
        annotations.AnnotatedObject(i, 1, box, area, False, i)
        for i, box in enumerate(boxes, start=1)
    )
    image = annotations.AnnotatedImage(
        5, "a.jpg", 24, 30, objects, "a.xml", "object", is_norm
    )
    findings = []
    kept = list(box_cleaning.clip_and_filter_boxes(image, PICTURE, findings))
    return [item.box_xywh for item in kept], findings, kept


@pytest.mark.parametrize(
    ("box", "what"),
    [
        ((3, 4, 0, 9), box_cleaning.NO_AREA),
        ((3, 4, 5, -1), box_cleaning.WRONG_ORDER),
        ((40, 4, 9, 9), box_cleaning.OUTSIDE),
        ((-9, 4, 9, 9), box_cleaning.OUTSIDE),
        ((math.nan, 1, 2, 3), box_cleaning.NOT_FINITE),
        ((1, 1, math.inf, 3), box_cleaning.NOT_FINITE),
        ((0.1, 0.2, 0.5, 0.5), box_cleaning.NOT_PIXELS),
    ],
)
def test_box_of_no_use_is_dropped_and_named(box, what):
    kept, (finding,), _ = mended((3, 4, 5, 6), box)
    assert kept == [(3, 4, 5, 6)]
    assert finding[:2] == (what, "a.xml, object 2")
    assert finding.detail.startswith("a.jpg, (")


def test_finding_shows_the_corners_as_annotated():
    _, (finding,), _ = mended((9, 4, -3, 2.5))
    assert finding.detail == "a.jpg, (9, 4, 6, 6.5)"
    _, (finding,), _ = mended((0.5, 0.25, 0.75, 0.25), is_norm=True)
    assert finding.detail == "a.jpg, (0.5, 0.25, 1.25, 0.5)"


@pytest.mark.parametrize("box", [(320, 100, 64, 64), (0.5, 0.5, 3, 0.1)])
def test_pixels_where_shares_were_expected_are_dropped(box):
    kept, (finding,), _ = mended(box, is_norm=True)
    assert kept == [] and finding.kind == box_cleaning.NOT_SHARES


def test_shares_become_pixels_of_the_picture():
    kept, findings, (item,) = mended((0.5, 0.25, 0.25, 0.5), is_norm=True, area=0.125)
    assert kept == [(15, 6, 7.5, 12)]
    assert item.area == 90 and findings == []


def test_box_beyond_the_edge_is_clipped_and_its_area_follows():
    kept, (finding,), (item,) = mended((-5.0, 10.0, 20.0, 50.0), area=1000.0)
    assert kept == [(0, 10, 15, 14)]
    assert item.area == 15 * 14
    assert finding.kind == box_cleaning.FAR_BEYOND


def test_box_beyond_the_edge_by_rounding_stays_as_annotated():
    box = (20.0, 10.0, 10.02, 5.0)
    assert mended(box)[:2] == ([box], [])


def test_box_that_training_passes_over_stays_and_is_named():
    kept, (finding,), (item,) = mended((3, 4, 0.5, 9))
    assert kept == [(3, 4, 0.5, 9)]
    assert finding.kind == "boxes narrower than a pixel, which training passes over"
    assert not box_cleaning.is_learnable(item)
    assert box_cleaning.is_learnable(item._replace(box_xywh=(3, 4, 1, 1)))
    assert not box_cleaning.is_learnable(
        item._replace(box_xywh=(3, 4, 9, 9), is_crowd=True)
    )


def test_what_is_kept_lies_in_the_picture_whatever_came():
    rng = np.random.default_rng(0)
    boxes = [tuple(b) for b in rng.normal(10, 30, [500, 4]).tolist()]
    kept, findings, _ = mended(*boxes)
    dropped = [f for f in findings if f.kind.endswith("dropped")]
    assert len(kept) + len(dropped) == 500 and len(kept) > 50
    for left, top, width, height in kept:
        assert width > 0 and height > 0 and left >= -0.5 and top >= -0.5
        assert left + width <= 30.5 and top + height <= 24.5
