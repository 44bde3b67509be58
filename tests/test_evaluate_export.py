"""The metrics of an export are tested in test_end_to_end.py."""

import pytest
import tensorflow as tf

import tool_processes
from retinanet_tpu import evaluate_export

pytestmark = pytest.mark.long

COMMAND = ("-m", "retinanet_tpu.evaluate_export")


def test_invalid_annotations_are_an_error_in_one_sentence(tmp_path):
    path = tmp_path / "truth.json"
    path.write_bytes(b"[" * 9999)
    options = ("--model=absent", "--images=absent", f"--annotations={path}")
    done = tool_processes.run_python(*COMMAND, *options)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (last,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert "truth.json" in last


def test_missing_annotation_file_is_an_error_with_its_path(tmp_path, monkeypatch):
    flags = {"annotations": f"{tmp_path}/absent.json", "images": "", "model": ""}
    monkeypatch.setattr(evaluate_export, "FLAGS", type("Flags", (), flags))
    with pytest.raises(tf.errors.NotFoundError, match=r"absent\.json"):
        evaluate_export.main()
