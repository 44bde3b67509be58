import pytest

from retinanet_tpu.estimator import config


def test_saving_by_steps_and_by_time_exclude_each_other():
    with pytest.raises(ValueError, match="both save_checkpoints_steps"):
        config.RunConfig(save_checkpoints_steps=5, save_checkpoints_secs=5)


@pytest.mark.parametrize("value", [0, -1, 2.5])
def test_intervals_that_never_fire_are_refused(value):
    with pytest.raises(ValueError, match="at least 1"):
        config.TPUConfig(iterations_per_loop=value)
    with pytest.raises(ValueError, match="at least 1"):
        config.RunConfig(save_checkpoints_steps=value)


@pytest.mark.parametrize(
    "name", ["max_restarts", "restart_secs", "max_rollbacks", "heartbeat_secs"]
)
def test_counts_and_times_below_0_are_refused(name):
    with pytest.raises(ValueError, match=rf"RunConfig\.{name} is -1"):
        config.RunConfig(**{name: -1})
