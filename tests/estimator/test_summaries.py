import json
import threading

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.pr_curve import metadata

from retinanet_tpu.estimator import result_types, summaries


@pytest.fixture(params=["local", "ram"])
def directory(request, tmp_path):
    return str(tmp_path) if request.param == "local" else f"ram://{tmp_path.name}"


def write(directory, step, **results):
    results = {"global_step": step, "AP": step / 100} | results
    path = f"run/model.ckpt-{step}"
    summaries.write_evaluation(directory, path, results, secs=1.23)


def text(directory):
    with tf.io.gfile.GFile(f"{directory}/eval.jsonl") as file:
        return file.read()


def append(directory, piece):
    with tf.io.gfile.GFile(f"{directory}/eval.jsonl", "a") as file:
        file.write(piece)


def steps(directory):
    return [r["global_step"] for r in summaries.read_evaluations(directory)]


def test_an_evaluation_is_a_line(directory):
    assert summaries.read_evaluations(directory) == []
    images = np.zeros([2, 4, 4, 3], np.uint8)
    others = {"per_class": {"red": 0.5}, "metric_engine": "hotcoco 1.3.0"}
    write(directory, 10, detections=images, **others)
    head = {"global_step": 10, "checkpoint": "model.ckpt-10", "AP": 0.1}
    record = {**head, **others, "secs": 1.2}
    assert text(directory) == json.dumps(record) + "\n"
    assert summaries.read_evaluations(directory) == [record]


def test_a_report_is_a_file_beside_and_sees_the_other_evaluations(directory):
    def html_fn(step, records):
        return f"{step} after {[r['global_step'] for r in records]}"

    write(directory, 10)
    write(directory, 20, analysis=result_types.Report(html_fn))
    with tf.io.gfile.GFile(f"{directory}/analysis-20.html") as file:
        assert file.read() == "20 after [10]"
    assert "analysis" not in text(directory)


def test_a_report_that_fails_loses_no_results(directory, caplog):
    with caplog.at_level("ERROR", logger="absl"):
        write(directory, 10, analysis=result_types.Report(lambda step, records: 1 / 0))
    assert steps(directory) == [10] and "ZeroDivisionError" in caplog.text


def test_tensorboard_reads_the_curves(tmp_path):
    counts = np.array([[8, 5, 0], [2, 0, 0], [2, 5, 10]])
    write(str(tmp_path), 10, pr=result_types.Curves({"cat": counts}))
    assert "pr" not in json.loads(text(tmp_path))
    events = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    about = events.SummaryMetadata("pr/cat").plugin_data
    assert about.plugin_name == "pr_curves"
    assert metadata.parse_plugin_metadata(about.content).num_thresholds == 3
    (event,) = events.Tensors("pr/cat")
    rows = tf.make_ndarray(event.tensor_proto)
    assert event.step == 10 and rows.shape == (6, 3)
    np.testing.assert_array_equal(rows[[0, 1, 3]], counts)
    np.testing.assert_allclose(rows[metadata.PRECISION_INDEX], [0.8, 1, 1])
    np.testing.assert_allclose(rows[metadata.RECALL_INDEX], [0.8, 0.5, 0])


def test_numbers_that_are_not_finite_become_null(directory):
    write(directory, 10, AP=float("nan"), loss=np.float32("inf"))
    assert '"AP": null, "loss": null' in text(directory)


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_partial_last_line_is_removed_by_the_next_write(directory, cut):
    write(directory, 10)
    whole = text(directory)
    append(directory, whole.replace("10", "20")[:cut])
    assert steps(directory) == [10]
    write(directory, 30)
    assert steps(directory) == [10, 30]
    assert text(directory).startswith(whole)
    assert [json.loads(line) for line in text(directory).splitlines()]


def test_a_last_line_without_a_newline_is_read(directory):
    write(directory, 10)
    append(directory, text(directory).replace("10", "20").rstrip())
    assert steps(directory) == [10, 20]
    write(directory, 30)
    assert steps(directory) == [10, 20, 30]


@pytest.mark.parametrize(
    "corruption",
    [
        b"[1]\n",
        b"7\n",
        b"{}\n",
        b"\0\0\n",
        b'{"x": NaN}\n',
        b"\xff\xfe\x80\n",
        b'{"global_step": 1e999}\n',
        b'{"global_step": []}\n',
        b"[" * 100_000 + b"\n",
    ],
)
def test_a_corrupt_line_in_the_middle_is_skipped_alone(directory, corruption, caplog):
    write(directory, 10)
    with tf.io.gfile.GFile(f"{directory}/eval.jsonl", "ab") as file:
        file.write(corruption)
    write(directory, 20)
    assert steps(directory) == [10, 20]
    assert f"{directory}/eval.jsonl, line 2 is corrupt" in caplog.text


def test_a_nan_that_another_program_wrote_does_not_stop_the_next_line(directory):
    append_first = '{"global_step": 5, "AP": NaN}\n'
    append(directory, append_first)
    write(directory, 10)
    assert summaries.read_evaluations(directory)[0] == {"global_step": 5, "AP": None}


def test_a_step_evaluated_again_has_only_its_new_line(directory):
    write(directory, 10, AP=0.1)
    write(directory, 20)
    write(directory, 10, AP=0.3)
    records = summaries.read_evaluations(directory)
    assert [(r["global_step"], r["AP"]) for r in records] == [(20, 0.2), (10, 0.3)]


def test_the_line_is_written_after_everything_else(tmp_path, monkeypatch):
    def killed(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(summaries.Writer, "close", killed)
    with pytest.raises(KeyboardInterrupt):
        write(str(tmp_path), 10)
    assert list(tmp_path.glob("events.*")) and steps(str(tmp_path)) == []


def test_a_killed_writer_leaves_the_file_unchanged(tmp_path, monkeypatch):
    write(str(tmp_path), 10)
    whole = text(str(tmp_path))

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tf.io.gfile, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            write(str(tmp_path), 20)
    assert text(str(tmp_path)) == whole
    write(str(tmp_path), 30)
    assert steps(str(tmp_path)) == [10, 30]


def test_no_line_is_lost_among_many_writers(directory):
    threads = [
        threading.Thread(target=write, args=(directory, step)) for step in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(steps(directory)) == list(range(8))
    assert text(directory).count("\n") == 8
