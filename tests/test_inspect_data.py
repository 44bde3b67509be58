import pathlib

import numpy as np
import PIL.Image
import pytest

import edited_records
import tool_processes
import toy_data

pytestmark = pytest.mark.long

pytest.importorskip("matplotlib")


@pytest.fixture
def data_dir(tmp_path):
    return toy_data.write(tmp_path / "data")


def inspect(*flags):
    return tool_processes.run_python("-m", "retinanet_tpu.inspect_data", *flags)


def with_run(data_dir, *bindings):
    settings = [*toy_data.TINY, f"DATA_DIR = '{data_dir}'", *bindings]
    run_file = toy_data.GIN_CONFIGS / "quickstart.gin"
    return [f"--gin_file={run_file}", *(f"--gin_param={s}" for s in settings)]


def test_the_report_of_valid_data_needs_no_other_file(data_dir, tmp_path):
    page = tmp_path / "report.html"
    result = inspect(*with_run(data_dir), "--draw_targets=2", f"--output={page}")
    assert result.returncode == 0, result.stderr
    assert "Fit to train on" in result.stdout
    assert "1 batches of 8 and 4 images" in result.stdout
    content = page.read_text()
    for heading in ("Splits", "Classes", "Anchors at 128 x 128", "Samples of val"):
        assert f"<h2>{heading}</h2>" in content
    # Charts of data and of anchors; targets and samples of two splits.
    assert content.count("src='data:image/png;base64,") == 2
    assert content.count("src='data:image/jpeg;base64,") == 3
    assert "http" not in content and content.count("src=") == 5


def test_data_that_lead_to_an_ap_of_0_are_refused_and_drawn(data_dir, tmp_path):
    edited_records.edit(data_dir, "train", edited_records.add_to_boxes(3.0))
    page = tmp_path / "report.png"
    result = inspect(f"--data_dir={data_dir}", f"--output={page}")
    assert result.returncode == 2, result.stderr
    assert "error: " in result.stdout and "leave no pixel" in result.stdout
    assert np.asarray(PIL.Image.open(page)).std() > 10


def test_an_empty_split_and_anchors_without_recall_are_refused(data_dir, tmp_path):
    for path in pathlib.Path(data_dir).glob("val-*.tfrecord"):
        path.write_bytes(b"")
    size = "Anchors.size = 60.0"
    page = tmp_path / "report.html"
    result = inspect(*with_run(data_dir, size), f"--output={page}", "--draw_targets=1")
    assert result.returncode == 2, result.stderr
    assert "val has no images" in result.stdout
    assert "No box of train" in result.stdout
    assert "Not fit to train on: 2 errors" in page.read_text()
