import pytest

import toy_data
from retinanet_tpu.estimator import exporters
from retinanet_tpu.task import serving_fn


@pytest.fixture
def data_dir(tmp_path):
    return toy_data.write(tmp_path / "data")


def test_exporters_are_chosen_in_gin(data_dir, tmp_path):
    run = toy_data.make_run(
        tmp_path / "run",
        data_dir,
        "make_run.exporter_fns = (@BestExporter, @FinalExporter)",
        "BestExporter.metric = 'AP50'",
        "BestExporter.exports_to_keep = 3",
    )
    best, final = run.eval_spec.exporters
    assert best == exporters.BestExporter(
        serving_fn.serving_fn, metric="AP50", exports_to_keep=3
    )
    assert final == exporters.FinalExporter(serving_fn.serving_fn)


def test_reconnecting_makes_a_strategy_of_the_same_size(data_dir, tmp_path):
    run = toy_data.make_run(tmp_path / "run", data_dir, num_replicas=2)
    before = run.estimator.strategy
    run.estimator.reconnect()
    assert run.estimator.strategy is not before and run.estimator.num_replicas == 2
