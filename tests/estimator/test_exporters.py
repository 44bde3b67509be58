import json
import pathlib
import time

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu.estimator import exporters, spec
from retinanet_tpu.estimator.model_dir import checkpoints, files

BIAS = 2.5


@pytest.fixture(params=["local", "ram"])
def base_dir(request, tmp_path):
    base = str(tmp_path) if request.param == "local" else f"ram://{tmp_path.name}"
    return f"{base}/export/best"


class Module(tf.Module):
    def __init__(self):
        self.bias = tf.Variable(BIAS)

    @tf.function(input_signature=[tf.TensorSpec([], tf.float32)])
    def add(self, x):
        return {"y": x + self.bias}


MODULE = Module()
SERVING = spec.Serving(MODULE, {"serving_default": MODULE.add})


class Estimator:
    """Exports the same module of one addition for every checkpoint."""

    def __init__(self):
        self.exported = []

    def export_saved_model(self, base_dir, serving_fn, *, checkpoint_path, eval_result):
        self.exported.append(checkpoints.step_of(checkpoint_path))
        module = serving_fn()
        serving = spec.Serving(
            module,
            {"serving_default": module.add},
            {"step.txt": str(self.exported[-1])},
        )
        return exporters.export_saved_model(
            serving, base_dir, checkpoint_path, eval_result
        )


def export(exporter, base_dir, ap_by_step, estimator=None, is_final=False):
    """Calls an exporter with the AP of each step; returns the steps it exported."""
    estimator = estimator or Estimator()
    for step, ap in ap_by_step.items():
        path = f"somewhere/model.ckpt-{step}"
        exporter.export(estimator, base_dir, path, {"AP": ap}, is_final)
    return estimator.exported


def kept_steps(base_dir):
    """Returns the steps of the exports, and checks that the list has the same."""
    listed = exporters.list_exports(base_dir)
    names = {name.rstrip("/") for name in tf.io.gfile.listdir(base_dir)}
    assert names == {e.version for e in listed} | {exporters.LIST_FILE}
    for entry in listed:
        with tf.io.gfile.GFile(
            f"{base_dir}/{entry.version}/assets.extra/step.txt"
        ) as f:
            assert f.read() == str(entry.step)
    return sorted(entry.step for entry in listed)


def test_worse_checkpoints_never_replace_the_best(base_dir):
    exporter = exporters.BestExporter(Module, exports_to_keep=2)
    export(exporter, base_dir, {10: 0.3, 20: 0.5})
    assert kept_steps(base_dir) == [10, 20]
    assert export(exporter, base_dir, {30: 0.4, 40: 0.1, 50: 0.45}) == [30, 50]
    assert kept_steps(base_dir) == [20, 50]


def test_of_two_equal_checkpoints_the_earlier_is_kept(base_dir):
    exporter = exporters.BestExporter(Module)
    assert export(exporter, base_dir, {20: 0.5, 10: 0.5, 30: 0.5}) == [20, 10]
    assert kept_steps(base_dir) == [10]


def test_is_lower_better_keeps_the_lowest_metric(base_dir):
    exporter = exporters.BestExporter(Module, is_lower_better=True)
    export(exporter, base_dir, {1: 3.0, 2: -1.0, 3: 0.0})
    assert kept_steps(base_dir) == [2]


def test_after_a_restart_a_worse_export_does_not_replace_a_better_one(base_dir):
    export(exporters.BestExporter(Module), base_dir, {10: 0.5})
    assert export(exporters.BestExporter(Module), base_dir, {20: 0.4, 10: 0.5}) == []
    assert kept_steps(base_dir) == [10]


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"7",
        b"null",
        b"[" * 100_000,
        b'{"version": "1"}',
        b'[7, {"version": "1", "step": 1, "value": 1}]',
        b'[{"version": "../../x", "step": 1, "value": 1}]',
        b'[{"version": "1234567890", "step": "x", "value": 1}]',
    ],
)
def test_a_corrupt_list_is_reported_and_rewritten(base_dir, content, caplog):
    export(exporters.BestExporter(Module), base_dir, {10: 0.5})
    (before,) = exporters.list_exports(base_dir)
    with tf.io.gfile.GFile(f"{base_dir}/{exporters.LIST_FILE}", "wb") as file:
        file.write(content)
    assert export(exporters.BestExporter(Module), base_dir, {20: 0.4}) == [20]
    assert f"{base_dir}/{exporters.LIST_FILE} is corrupt" in caplog.text
    (listed,) = exporters.list_exports(base_dir)
    assert listed.step == 20
    assert tf.io.gfile.isdir(f"{base_dir}/{before.version}")


def test_valid_entries_of_a_corrupt_list_are_kept(base_dir):
    export(exporters.BestExporter(Module), base_dir, {10: 0.5})
    path = f"{base_dir}/{exporters.LIST_FILE}"
    listed = json.loads(files.read_if_there(path))
    files.write_whole(path, json.dumps([{"x": 1}, *listed]))
    assert export(exporters.BestExporter(Module), base_dir, {20: 0.4}) == []


@pytest.mark.parametrize("ap", [float("nan"), None, "0.5"])
def test_a_metric_that_is_not_a_number_is_not_exported(base_dir, ap):
    assert export(exporters.BestExporter(Module), base_dir, {10: ap}) == []


def test_an_unknown_metric_is_an_error_that_lists_the_known_ones():
    exporter = exporters.BestExporter(Module, metric="mAP")
    with pytest.raises(ValueError, match=r"metric is 'mAP'.*\['AP'\]"):
        export(exporter, "nowhere", {10: 0.5})


def test_the_latest_are_kept_and_the_final_is_the_last(base_dir):
    latest = exporters.LatestExporter(Module, exports_to_keep=2)
    assert export(latest, base_dir, dict.fromkeys((10, 20, 30))) == [10, 20, 30]
    assert export(latest, base_dir, {30: None}) == []
    assert kept_steps(base_dir) == [20, 30]
    final = exporters.FinalExporter(Module)
    assert export(final, f"{base_dir}-f", {10: 0.1, 20: 0.2}) == []
    assert export(final, f"{base_dir}-f", {30: 0.1}, is_final=True) == [30]


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.long
@pytest.mark.parametrize("number", range(1, 9))
def test_after_a_kill_at_any_moment_the_next_start_keeps_the_best(
    base_dir, monkeypatch, number
):
    exporter = exporters.BestExporter(Module, exports_to_keep=1)
    export(exporter, base_dir, {10: 0.3})
    moments = iter(range(1, 100))

    def mortal(fn):
        def killed(*args, **kwargs):
            if next(moments) == number:
                raise KilledError
            return fn(*args, **kwargs)

        return killed

    with monkeypatch.context() as patch:
        patch.setattr(tf.saved_model, "save", mortal(tf.saved_model.save))
        for name in ("rename_directory", "remove_directory", "write_whole"):
            patch.setattr(files, name, mortal(getattr(files, name)))
        try:
            export(exporter, base_dir, {20: 0.5})
            was_killed = False
        except KilledError:
            was_killed = True
    # Save, rename, list; rename and remove the old, list.
    assert was_killed or number > 6
    export(exporter, base_dir, {20: 0.5, 30: 0.4})
    (best,) = exporters.list_exports(base_dir)
    assert best.step == 20
    served = tf.saved_model.load(f"{base_dir}/{best.version}")
    assert served.signatures["serving_default"](x=tf.constant(1.0))["y"] == 1 + BIAS


def test_unlisted_directories_are_not_touched(tmp_path):
    base_dir = str(tmp_path)
    by_hand = exporters.export_saved_model(SERVING, base_dir, "model.ckpt-1")
    other = tmp_path / "notes"
    other.mkdir()
    exporter = exporters.LatestExporter(Module, exports_to_keep=1)
    export(exporter, base_dir, dict.fromkeys((1, 2, 3)))
    assert tf.io.gfile.isdir(by_hand) and other.exists()
    assert [e.step for e in exporters.list_exports(base_dir)] == [3]


def test_finish_fn_runs_before_the_export_is_visible(tmp_path):
    calls = []

    def finish(directory, checkpoint_path, eval_result):
        assert not [p for p in tmp_path.iterdir() if p.name.isdigit()]
        assert tf.saved_model.contains_saved_model(directory)
        (pathlib.Path(directory) / "more.txt").write_text("more")
        calls.append((checkpoint_path, eval_result))

    serving = SERVING._replace(finish_fn=finish)
    path = exporters.export_saved_model(
        serving, str(tmp_path), "model.ckpt-1", {"AP": 0.5}
    )
    assert calls == [("model.ckpt-1", {"AP": 0.5})]
    assert (pathlib.Path(path) / "more.txt").read_text() == "more"


def test_a_refused_export_leaves_nothing(tmp_path):
    def refuse(directory, checkpoint_path, eval_result):
        raise ValueError("The boxes differ.")

    with pytest.raises(ValueError, match="boxes differ"):
        exporters.export_saved_model(
            SERVING._replace(finish_fn=refuse), str(tmp_path), "model.ckpt-1"
        )
    assert not list(tmp_path.iterdir())


def test_without_signatures_no_saved_model_is_written(tmp_path):
    serving = spec.Serving(MODULE, {}, {"a.txt": "a"})
    path = exporters.export_saved_model(serving, str(tmp_path), "model.ckpt-1")
    assert not tf.saved_model.contains_saved_model(path)
    assert (pathlib.Path(path) / "assets.extra" / "a.txt").read_text() == "a"


def test_partial_exports_older_than_a_day_are_removed(tmp_path):
    now = int(time.time())
    old, young = f"temp-{now - 90_000}", f"temp-{now - 80_000}"
    for name in (old, young, "temp-mine"):
        (tmp_path / name).mkdir()
    exporters.export_saved_model(SERVING, str(tmp_path), "model.ckpt-1")
    assert not (tmp_path / old).exists()
    assert (tmp_path / young).exists() and (tmp_path / "temp-mine").exists()


def test_versions_rise_even_if_the_clock_goes_back(tmp_path, monkeypatch):
    versions = []
    for now in (1_800_000_000, 1_700_000_000, 1_800_000_000):
        monkeypatch.setattr(time, "time", lambda now=now: now + 0.5)
        path = exporters.export_saved_model(SERVING, str(tmp_path), "model.ckpt-1")
        versions.append(int(path.rpartition("/")[2]))
    assert list(np.diff(versions)) == [1, 1]


def test_two_exporters_with_one_name_are_an_error():
    pair = [exporters.BestExporter(Module), exporters.LatestExporter(Module, "best")]
    with pytest.raises(ValueError, match=r"\['best', 'best'\]; give each its own"):
        exporters.check_names(pair)


def test_the_list_is_plain_json(tmp_path):
    export(exporters.BestExporter(Module), str(tmp_path), {10: 0.5})
    (entry,) = json.loads((tmp_path / exporters.LIST_FILE).read_text())
    assert entry["step"] == 10 and entry["value"] == 0.5
    assert len(entry["version"]) == 10 and entry["version"].isdigit()
