import numpy as np
import pytest
import tensorflow as tf

import linear
from retinanet_tpu import replicas
from retinanet_tpu.estimator import warm_start
from retinanet_tpu.estimator.model_dir import checkpoints


class Wider(linear.Linear):
    """Has the bias of `Linear`, a matrix of another shape, and a vector of its own."""

    def __init__(self):
        super().__init__()
        with tf.name_scope("linear"):
            self.matrix = replicas.make_variable(np.zeros([3, 2]), name="matrix")
            self.extra = replicas.make_variable(np.zeros(2), name="extra")


@pytest.fixture
def trained(tmp_path):
    runner = linear.make_estimator(tmp_path / "old")
    return runner.train(linear.train_input_fn, 10)


def test_matching_variables_are_loaded_and_the_rest_is_reported(trained):
    network = Wider()
    settings = warm_start.WarmStartSettings(trained, min_share=0.3)
    report = warm_start.warm_start(network, settings)
    assert report.loaded == ["linear/bias"]
    assert report.mismatched == ["linear/matrix (3, 1) (3, 2)"]
    assert report.absent == ["linear/extra"]
    expected = checkpoints.read(trained, "weights/")["linear/bias"]
    np.testing.assert_array_equal(network.bias, expected)
    np.testing.assert_array_equal(network.matrix, np.zeros([3, 2]))
    assert "mismatched     1" in warm_start.table(report)


def test_a_pattern_limits_what_is_loaded(trained):
    network = linear.Linear()
    settings = warm_start.WarmStartSettings(trained, variables="linear/b")
    report = warm_start.warm_start(network, settings)
    assert (report.loaded, report.skipped) == (["linear/bias"], ["linear/matrix"])
    np.testing.assert_array_equal(network.matrix, np.zeros([3, 1]))


def test_too_few_variables_are_an_error_with_the_table(trained):
    with pytest.raises(ValueError, match=r"(?s)Only 1 of 3 .*absent         1"):
        warm_start.warm_start(Wider(), warm_start.WarmStartSettings(trained))


def test_only_a_new_run_is_warm_started(make_estimator, trained, tmp_path):
    old = checkpoints.read(trained, "weights/")
    settings = warm_start.WarmStartSettings(str(tmp_path / "old"))
    runner = make_estimator(
        tmp_path / "new", save_checkpoints_steps=None, warm_start_from=settings
    )
    first = checkpoints.read(runner.train(linear.train_input_fn, 1), "weights/")
    np.testing.assert_allclose(first["linear/bias"], old["linear/bias"], atol=0.05)
    gone = warm_start.WarmStartSettings(str(tmp_path / "gone"))
    resumed = make_estimator(
        tmp_path / "new", save_checkpoints_steps=None, warm_start_from=gone
    )
    assert resumed.train(linear.train_input_fn, 2).endswith("-2")


def test_a_missing_checkpoint_is_an_error(tmp_path):
    settings = warm_start.WarmStartSettings(str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match="gone"):
        warm_start.warm_start(linear.Linear(), settings)


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"variables": "(backbone"}, r"'\(backbone', not a regular expression"),
        ({"min_share": 50}, "min_share is 50; it must be 0 to 1"),
    ],
)
def test_wrong_settings_are_refused_at_once(setting, message):
    with pytest.raises(ValueError, match=message):
        warm_start.WarmStartSettings("somewhere", **setting)


def test_statistics_are_loaded_like_weights(tmp_path):
    path = checkpoints.save(
        str(tmp_path),
        5,
        {
            "weights/norm/moving_mean": np.full(2, 3.0, np.float32),
            "slots/momentum/norm/moving_mean": np.zeros(2, np.float32),
            "global_step": np.int64(5),
        },
    )
    network = tf.Module()
    with tf.name_scope("norm"):
        network.mean = replicas.make_variable(np.zeros(2), name="moving_mean")
    report = warm_start.warm_start(network, warm_start.WarmStartSettings(path))
    np.testing.assert_array_equal(network.mean, [3, 3])
    assert report == (["norm/moving_mean"], [], [], [], [])
