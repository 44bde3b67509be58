import numpy as np
import pytest

from retinanet_tpu import errors
from retinanet_tpu.estimator import run_config


def test_saving_by_steps_and_by_time_exclude_each_other():
    with pytest.raises(ValueError, match="both save_checkpoints_steps"):
        run_config.RunConfig(save_checkpoints_steps=5, save_checkpoints_secs=5)


@pytest.mark.parametrize("value", [0, -1, 2.5])
def test_intervals_that_never_fire_are_refused(value):
    with pytest.raises(ValueError, match="at least 1"):
        run_config.TPUConfig(iterations_per_loop=value)
    with pytest.raises(ValueError, match="at least 1"):
        run_config.RunConfig(save_checkpoints_steps=value)


@pytest.mark.parametrize(
    "name", ["max_restarts", "restart_secs", "max_rollbacks", "heartbeat_secs"]
)
def test_counts_and_times_below_0_are_refused(name):
    with pytest.raises(ValueError, match=rf"RunConfig\.{name} is -1"):
        run_config.RunConfig(**{name: -1})


@pytest.mark.parametrize("steps", [2e5, "7", 0, -1, True, None])
def test_max_steps_that_is_not_a_count_is_refused_before_training(steps):
    with pytest.raises(errors.UserError, match=r"max_steps is .*whole number"):
        run_config.RunConfig().check_save_interval(steps)
    run_config.RunConfig().check_save_interval(np.int64(7))
