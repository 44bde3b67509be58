import pytest


@pytest.fixture
def tool(imported):
    return imported("coco_metric")


def test_both_engines_have_one_digest_and_another_set_has_another(tool):
    pytest.importorskip("hotcoco")
    truth = tool.make_ground_truth(20, 3, 5.0)
    measured = [tool.measure(fn, truth, 30) for fn in tool.ENGINES.values()]
    assert len({measurement.digest for measurement in measured}) == 1
    assert 0.1 < measured[0].result["AP"] < 0.9
    assert measured[0].result["num_detections"] == 600
    assert min(measurement.cpu_secs for measurement in measured) > 0
    other = tool.measure(tool.ENGINES["hotcoco"], truth, 29)
    assert other.digest != measured[0].digest
