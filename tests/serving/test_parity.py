import numpy as np
import pytest

from retinanet_tpu import structures
from retinanet_tpu.serving import parity

CLOSE = parity.Tolerance(iou=0.9, score=0.05)
BOXES = [[0, 0, 10, 10], [20, 20, 60, 40], [5, 50, 25, 90]]
WIDER = [[0, 0, 10, 10], [20, 20, 60, 46], [5, 50, 25, 90]]
TURNED = [[x, y, w, h] for y, x, h, w in BOXES]
FOURTH = [70, 70, 90, 90]


def detections(boxes, scores, classes=None, *, padding=2):
    """Returns one image's Detections, padded with zeros."""
    count = len(scores)
    rows = [(0, padding)]
    return structures.Detections(
        np.pad(np.reshape(boxes, [-1, 4]).astype(np.float32), [*rows, (0, 0)])[None],
        np.pad(np.asarray(scores, np.float32), rows)[None],
        np.pad(np.asarray(classes or [1] * count, np.int32), rows)[None],
        np.array([count], np.int32),
    )


EXPECTED = detections(BOXES, [0.9, 0.8, 0.3])


def test_equal_detections_match_without_drift():
    result = parity.compare([EXPECTED] * 2, [EXPECTED] * 2, CLOSE)
    # The lowest score of each image, and equal ones, require no match.
    assert result[:4] == (8, 8, 0.0, 0.0) and result.mean_iou == 1.0
    assert result.is_within(CLOSE)


def test_drifts_are_the_greatest_and_the_mean_of_all_matches():
    other = detections(BOXES, [0.9, 0.8 - 0.03, 0.3])
    result = parity.compare([other], [EXPECTED], CLOSE)
    np.testing.assert_allclose(result.score_drift, 0.03, atol=1e-6)
    np.testing.assert_allclose(result.mean_score_drift, 0.01, atol=1e-6)
    nothing = parity.compare([detections([], [])], [EXPECTED], CLOSE)
    assert np.isnan(nothing.mean_score_drift)


def test_padding_and_order_do_not_matter():
    turned = detections(BOXES[::-1], [0.3, 0.8, 0.9], padding=9)
    result = parity.compare([turned], [EXPECTED], CLOSE)
    assert result.num_matched == result.num_compared == 4


@pytest.mark.parametrize(
    ("boxes", "scores", "classes"),
    [
        pytest.param(BOXES, [0.9, 0.7, 0.3], None, id="another score"),
        pytest.param(BOXES, [0.9, 0.8, 0.3], [1, 2, 1], id="another class"),
        pytest.param(WIDER, [0.9, 0.8, 0.3], None, id="another box"),
        pytest.param(TURNED, [0.9, 0.8, 0.3], None, id="x and y swapped"),
        pytest.param([BOXES[0], BOXES[2]], [0.9, 0.3], None, id="missing"),
        pytest.param([*BOXES, FOURTH], [0.9, 0.8, 0.3, 0.7], None, id="extra"),
        pytest.param([], [], None, id="nothing"),
    ],
)  # fmt: skip
def test_differences_are_reported_from_either_side(boxes, scores, classes):
    other = detections(boxes, scores, classes)
    for pair in (([other], [EXPECTED]), ([EXPECTED], [other])):
        result = parity.compare(*pair, CLOSE)
        assert result.num_matched < result.num_compared
        assert not result.is_within(CLOSE)
        assert result.is_within(CLOSE._replace(share=0.0))
        num_unmatched = result.num_compared - result.num_matched
        assert result.is_within(CLOSE._replace(max_unmatched=num_unmatched))
        assert not result.is_within(CLOSE._replace(max_unmatched=num_unmatched - 1))


def test_drift_is_the_greatest_among_matches():
    moved = [[0, 0, 10, 10], [20, 20, 62, 41], [5, 50, 25, 90]]
    actual = detections(moved, [0.88, 0.8, 0.3])
    result = parity.compare([actual], [EXPECTED], CLOSE)
    assert result.is_within(CLOSE)
    assert result.score_drift == pytest.approx(0.02) and result.box_drift == 2.0
    assert "4 of 4 detections agree, scores to 0.02, boxes to 2 px" in str(result)


def test_boxes_without_area_match_by_their_position():
    point = detections([[3, 3, 3, 3], *BOXES], [0.95, 0.9, 0.8, 0.3])
    assert parity.compare([point], [point], CLOSE).is_within(CLOSE)


def test_the_weakest_detections_may_differ():
    more = detections([*BOXES, FOURTH], [0.9, 0.8, 0.3, 0.28])
    assert parity.compare([more], [EXPECTED], CLOSE).is_within(CLOSE)


def test_report_without_detections_contains_a_note():
    nothing = detections([], [])
    result = parity.compare([nothing], [nothing], CLOSE)
    assert str(result) == "no detection to compare" and result.is_within(CLOSE)
