import pytest

from retinanet_tpu.estimator import run_config
from retinanet_tpu.planning import run_time
from retinanet_tpu.xla import roofline

V3_8, V3_32 = roofline.accelerator("v3-8"), roofline.accelerator("v3-32")
# ResNet-50 at 640 px, 8 images on each core of a v3-32, as libtpu 0.0.42.1 counts.
WORK = run_time.Work(
    images=8,
    flops=4422.559e9,
    hbm_bytes=16607.2e6,
    fixed_bytes=544.3e6,
    reduced_bytes=135.463e6,
    num_collectives=176,
)


def test_collectives_take_their_bytes_over_two_links_and_their_hops_twice():
    # 4 x 4 chips, corners with 2 links of 70 GB/s; 6 hops each way of 1 us.
    sent = 2 * 15 / 16 * 135.463e6 / 140e9
    assert run_time.exchange_secs(WORK, V3_32) == pytest.approx(sent + 176 * 12e-6)


def test_one_chip_has_no_collective():
    alone = roofline.accelerator("v5litepod-1")
    assert run_time.exchange_secs(WORK, alone) == 0


def test_a_step_takes_the_roofline_and_then_the_collectives():
    time = run_time.step_time(WORK, V3_32)
    assert time.images == 256
    assert time.device_secs == pytest.approx(4422.559e9 / 61.5e12)
    assert time.images_per_sec == pytest.approx(
        256 / (time.device_secs + time.exchange_secs)
    )
    half = run_time.step_time(WORK, V3_32, efficiency=0.5)
    assert half.device_secs == pytest.approx(2 * time.device_secs)
    assert half.exchange_secs == time.exchange_secs
    assert half.exchange_share < time.exchange_share


def test_fewer_images_still_move_all_weights():
    work = WORK._replace(flops=0.0, hbm_bytes=9.0 * 450e9, fixed_bytes=450e9)
    assert run_time.step_time(work, V3_32).device_secs == pytest.approx(9)
    one = run_time.step_time(work, V3_32, images=1)
    assert one.device_secs == pytest.approx(2)


def test_the_efficiency_of_a_measured_rate_predicts_the_rate():
    share = run_time.reached_efficiency(WORK, V3_32, 1275)
    time = run_time.step_time(WORK, V3_32, efficiency=share)
    assert time.images_per_sec == pytest.approx(1275)
    assert 0.3 < share < 0.4  # The specification's published run.


def test_a_rate_above_the_bound_is_refused():
    with pytest.raises(ValueError, match="more than the bound of 3,37"):
        run_time.reached_efficiency(WORK, V3_32, 3400)


def test_the_published_hours_follow_from_the_published_rate():
    # The published time of 168,750 steps of 256 images is 9 h 30.
    share = run_time.reached_efficiency(WORK, V3_32, 1275)
    rate = run_time.step_time(WORK, V3_32, efficiency=share).images_per_sec
    assert 168750 * 256 / rate / 3600 == pytest.approx(9.5, rel=0.02)


def test_with_equal_images_per_device_only_the_collectives_grow():
    rows = run_time.scaled(WORK, V3_32)
    assert [row.name for row in rows[:3]] == ["v3-8", "v3-32", "v3-64"]
    assert {row.time.device_secs for row in rows} == {rows[0].time.device_secs}
    shares = [row.time.exchange_share for row in rows]
    assert shares == sorted(shares)
    for row in rows:
        assert row.efficiency == pytest.approx(1 - row.time.exchange_share)


def test_one_batch_cannot_be_shared_by_more_devices_than_images():
    rows = run_time.scaled(WORK, V3_32, batch_size=256, max_images=16)
    assert [row.name for row in rows] == ["v3-32", "v3-64", "v3-128", "v3-256"]
    assert {row.time.images for row in rows} == {256}
    assert run_time.last_at_least(rows, 0.9).name == "v3-32"
    assert run_time.last_at_least(rows, 0.5).name == "v3-128"
    assert run_time.last_at_least(rows, 0.99) is None


def test_the_last_efficient_slice_is_the_one_before_the_first_that_is_not():
    row = run_time.scaled(WORK, V3_32)[0]
    rows = [row._replace(num_devices=n, efficiency=e) for n, e in enumerate((1, 0, 1))]
    assert run_time.last_at_least(rows, 0.5) == rows[0]


@pytest.mark.parametrize(
    "settings, num_saves, secs",
    [
        ({"save_checkpoints_steps": 1000}, 34, 500),
        ({"save_checkpoints_secs": 100}, 169, 100),
        ({}, 29, 600),
        ({"save_checkpoints_steps": 16875}, 2, 8437.5),
        ({"save_checkpoints_secs": 10**6}, 1, 16875),
    ],
)
def test_saves_are_counted_to_the_last_step(settings, num_saves, secs):
    saving = run_time.saving(
        run_config.RunConfig(**settings), max_steps=33750, steps_per_sec=2, num_bytes=10
    )
    assert saving.num_saves == num_saves
    assert saving.interval_secs == pytest.approx(secs)
    assert saving.written_bytes == 10 * num_saves
    assert saving.kept_bytes == 10 * min(5, num_saves)


def test_a_run_that_keeps_all_checkpoints_keeps_all_bytes():
    settings = run_config.RunConfig(save_checkpoints_steps=10, keep_checkpoint_max=None)
    saving = run_time.saving(settings, max_steps=95, steps_per_sec=1, num_bytes=1)
    assert saving.kept_bytes == saving.written_bytes == 10


def test_the_slowest_stage_limits_the_evaluation():
    assert run_time.evaluation_secs(100, rates=[50, 10], metric_secs=3) == 13
