import math
from functools import partial

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu.learning import schedules

PIECEWISE = dict(values=(0.32, 0.032, 0.0032), boundaries=(2000, 3000))
WARM_UP = dict(warmup_steps=1000, warmup_from=0.0067)


def rates_at(schedule, steps):
    return [float(schedule(step)) for step in steps]


@pytest.mark.parametrize(
    "schedule",
    [
        partial(schedules.piecewise, **PIECEWISE, **WARM_UP),
        partial(schedules.cosine, base=0.32, total_steps=5000, **WARM_UP),
        partial(schedules.constant, base=0.32, **WARM_UP),
    ],
)
def test_warm_up_equals_the_specification(schedule):
    rates = rates_at(schedule, (200, 400, 600))
    assert [round(rate, 3) for rate in rates] == [0.069, 0.132, 0.195]
    np.testing.assert_allclose(rates_at(schedule, (0, 1000)), [0.0067, 0.32], rtol=1e-6)


def test_a_rate_begins_at_its_boundary():
    rates = rates_at(
        partial(schedules.piecewise, **PIECEWISE), (0, 1999, 2000, 2999, 3000, 9999)
    )
    expected = [0.32, 0.32, 0.032, 0.032, 0.0032, 0.0032]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_cosine_decreases_from_the_end_of_the_warm_up_to_the_last_step():
    schedule = partial(
        schedules.cosine, base=0.5, total_steps=3000, alpha=0.01, **WARM_UP
    )
    steps = np.arange(1000, 3001, 250)
    cosine = 0.5 * (1 + np.cos(math.pi * (steps - 1000) / 2000))
    expected = 0.5 * (0.01 + 0.99 * cosine)
    np.testing.assert_allclose(rates_at(schedule, steps), expected, rtol=1e-5)
    assert rates_at(schedule, (3000, 3500)) == [np.float32(0.005)] * 2
    before, after = rates_at(schedule, (999, 1000))
    assert 0 < after - before < 0.001


def test_cosine_without_warm_up_begins_at_the_base():
    schedule = partial(schedules.cosine, base=0.5, total_steps=10)
    np.testing.assert_allclose(
        rates_at(schedule, (0, 5, 10)), [0.5, 0.25, 0], atol=1e-7
    )


def test_constant_never_changes():
    assert rates_at(partial(schedules.constant, base=0.25), (0, 10**7)) == [0.25, 0.25]


@pytest.mark.parametrize(
    "schedule",
    [
        partial(schedules.piecewise, **PIECEWISE, **WARM_UP),
        partial(schedules.cosine, base=0.32, total_steps=5000, **WARM_UP),
    ],
)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_traced_schedules_agree_with_eager_ones(schedule, jit_compile):
    traced = tf.function(schedule, jit_compile=jit_compile)
    steps = (0, 1, 999, 1000, 2000, 4999)
    rates = [traced(tf.constant(step, tf.int64)) for step in steps]
    assert all(rate.dtype == tf.float32 and rate.shape == () for rate in rates)
    np.testing.assert_allclose(rates, rates_at(schedule, steps), rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(values=(0.1, 0.2)), "one value more"),
        (dict(boundaries=(3000, 2000)), "rising"),
        (dict(boundaries=(2000, 2000)), "rising"),
        (dict(warmup_steps=2500), "warm-up"),
    ],
)
def test_inconsistent_piecewise_settings_are_rejected(changes, message):
    with pytest.raises(ValueError, match=message):
        schedules.piecewise(0, **{**PIECEWISE, **changes})


def test_warm_up_longer_than_the_run_is_rejected():
    with pytest.raises(ValueError, match="below total_steps, got 100 and 100"):
        schedules.cosine(0, base=1.0, total_steps=100, warmup_steps=100)


def test_a_scaled_rate_is_proportional_to_the_batch_size():
    def schedule_fn(step):
        return schedules.constant(step, base=0.32)

    rate = schedules.scaled(
        0, schedule_fn=schedule_fn, batch_size=64, reference_batch=256
    )
    np.testing.assert_allclose(rate, 0.08, rtol=1e-6)


def test_a_boundary_beyond_the_run_is_rejected():
    settings = {"values": [1.0, 0.1], "boundaries": [100], "warmup_steps": 0}
    schedules.piecewise(0, total_steps=101, **settings)
    with pytest.raises(ValueError, match="never reaches its last rate"):
        schedules.piecewise(0, total_steps=100, **settings)
