import copy
import json
import re

import pytest

import tool_processes
import toy_data

# The format of preflight --json; an image takes 1 TFLOP, which is 16 ms of a v3.
STEP = {
    "images": 1,
    "num_devices": 8,
    "fits": True,
    "outcome": "fits",
    "hbm_gib": 1.0,
    "hbm_gib_there": 15.48,
    "temporary_mb": 100.0,
    "gflop": 1000.0,
    "hbm_traffic_mb": 100.0,
    "ms_at_least": 1e3 * 1000 / 61.5e3,
    "bound": "compute",
    "images_per_sec_at_most": 8 * 61.5,
    "images_per_core_sec": 2.0,
}
REPORT = {"topology": "v3-8", "num_devices": 8, "num_hosts": 1}


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """Returns a function from a report and flags to the output and the error."""
    path = tmp_path_factory.mktemp("plan") / "report.json"
    always = [f"--gin_file={toy_data.GIN_CONFIGS / 'quickstart.gin'}"]
    settings = [*toy_data.TINY, "TrainingPlan.eval_batch_per_replica = 1"]
    always += [f"--gin_param={setting}" for setting in settings]
    always += [f"--preflight_json={path}", "--topology=v3-8"]
    with tool_processes.serve("plan") as run_once:

        def run(report, *flags):
            path.write_text(report if isinstance(report, str) else json.dumps(report))
            done = run_once(*always, *flags)
            return done.stdout, done.stderr.partition("Error: ")[2] or None

        yield run


@pytest.fixture(scope="module")
def report(plan):
    """A report whose training step has the bytes of this run."""
    report = REPORT | {"steps": {"train": {**STEP, "argument_mb": 0.0}, "eval": STEP}}
    _, error = plan(report)
    needed = re.search(r"takes 0\.0 MB, but .* this run are ([\d.]+) MB", error)
    report["steps"]["train"]["argument_mb"] = float(needed[1]) + 1
    return report


def changed(report, step, **figures):
    copied = copy.deepcopy(report)
    copied["steps"][step] |= figures
    return copied


def value(out, label):
    return re.search(rf"^ *{re.escape(label)} +(.+)$", out, re.MULTILINE)[1]


@pytest.mark.long
def test_all_bounds_of_a_run_are_printed(plan, report):
    out, error = plan(report)
    assert error is None
    assert out.splitlines()[0] == "v3-8: 8 devices, 8 images per step"
    assert value(out, "device bound, images/s") == "492"
    assert value(out, "host bound, images/s (1 x 96 CPUs)") == "192"
    # At the host's rate, which is the lower one.
    assert value(out, "schedule 30x of COCO") == f"{30 * 22500 * 64 / 192 / 3600:.2f}"
    # 5,000 images of 1,000 GFLOP on 16 CPUs of 100 GFLOP/s, and the metric.
    assert value(out, "16 CPUs").split(",")[0] == f"{5000 / 1.6 + 51:.0f}"
    # Eight images per device fit any slice, eight images in total only one.
    assert out.count("\n  v3-2048 ") == 1 and out.count("\n  v3-8 ") == 2


def test_a_lower_efficiency_lowers_the_rate(plan, report):
    out, _ = plan(report, "--efficiency=0.25")
    assert value(out, "device bound, images/s") == "492"
    assert value(out, "efficiency") == "0.250"
    assert 120 < float(value(out, "devices with collectives, images/s")) <= 123


def test_the_efficiency_follows_from_a_measured_rate(plan, report):
    out, _ = plan(report, "--measured=100")
    assert value(out, "devices with collectives, images/s") == "100"
    assert 0.2 < float(value(out, "efficiency")) < 0.21


@pytest.mark.long
def test_unmeasured_hosts_are_no_bound(plan, report):
    unmeasured = changed(report, "train", images_per_core_sec=None)
    out, error = plan(unmeasured)
    assert error is None and "host bound" not in out


@pytest.mark.parametrize(
    "step, figures, message",
    [
        ("train", {"images": 2}, "BATCH_SIZE is 8, preflight's was 16"),
        ("eval", {"images": 2}, "TrainingPlan.eval_batch_per_replica is 1, .* was 2"),
        ("train", {"argument_mb": 1e4}, "another network or IMAGE_SIZE"),
        ("train", {"fits": False, "outcome": "does not fit"}, "train does not fit"),
    ],
)
def test_figures_of_another_run_are_refused(plan, report, step, figures, message):
    out, error = plan(changed(report, step, **figures))
    assert out == "" and re.search(message, error)


def test_figures_of_another_slice_are_refused(plan, report):
    _, error = plan(report | {"topology": "v2-8"})
    assert "--topology is v3-8, preflight's was v2-8" in error


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--topology=v3-9", "'v3-9'; known are v3-8"),
        ("--gin_param=BATCH_SIZE = 12", "12 does not divide by 8"),
        ("--preflight_json=nowhere.json", "No nowhere.json; preflight --json"),
        ("--measured=1000", "more than the bound of"),
    ],
)
def test_invalid_flags_are_errors(plan, report, flag, message):
    _, error = plan(report, flag)
    assert message in error


@pytest.mark.long
@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"steps": {"train": {}}}'])
def test_a_file_of_another_format_is_refused(plan, text):
    _, error = plan(text)
    assert "is not the output of preflight --json" in error
