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
    """Exports a module of one addition, whatever the checkpoint."""

    def __init__(self):
        self.exported = []

    def export_saved_model(self, base_dir, serving_fn, *, checkpoint_path, scores):
        self.exported.append(checkpoints.step_of(checkpoint_path))
        module = serving_fn()
        serving = spec.Serving(
            module,
            {"serving_default": module.add},
            {"step.txt": str(self.exported[-1])},
        )
        return exporters.export_saved_model(serving, base_dir, checkpoint_path, scores)


def export(exporter, base_dir, scores, estimator=None, is_final=False):
    """Lets an exporter see results by step; returns the steps it exported."""
    estimator = estimator or Estimator()
    for step, score in scores.items():
        path = f"somewhere/model.ckpt-{step}"
        exporter.export(estimator, base_dir, path, {"AP": score}, is_final)
    return estimator.exported


def kept_steps(base_dir):
    """Returns the steps of what lies there, which must be what is listed."""
    listed = exporters.list_exports(base_dir)
    names = {name.rstrip("/") for name in tf.io.gfile.listdir(base_dir)}
    assert names == {e.version for e in listed} | {exporters.LIST_FILE}
    for entry in listed:
        with tf.io.gfile.GFile(
            f"{base_dir}/{entry.version}/assets.extra/step.txt"
        ) as f:
            assert f.read() == str(entry.step)
    return sorted(entry.step for entry in listed)


def test_the_best_stay_whatever_comes_later(base_dir):
    exporter = exporters.BestExporter(Module, exports_to_keep=2)
    export(exporter, base_dir, {10: 0.3, 20: 0.5})
    assert kept_steps(base_dir) == [10, 20]
    assert export(exporter, base_dir, {30: 0.4, 40: 0.1, 50: 0.45}) == [30, 50]
    assert kept_steps(base_dir) == [20, 50]


def test_of_two_that_scored_the_same_the_earlier_stays(base_dir):
    exporter = exporters.BestExporter(Module)
    assert export(exporter, base_dir, {20: 0.5, 10: 0.5, 30: 0.5}) == [20, 10]
    assert kept_steps(base_dir) == [10]


def test_lower_is_better_where_it_is_said(base_dir):
    exporter = exporters.BestExporter(Module, is_lower_better=True)
    export(exporter, base_dir, {1: 3.0, 2: -1.0, 3: 0.0})
    assert kept_steps(base_dir) == [2]


def test_after_a_restart_a_worse_one_does_not_replace_a_better_one(base_dir):
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
def test_a_damaged_list_is_named_and_written_anew(base_dir, content, caplog):
    export(exporters.BestExporter(Module), base_dir, {10: 0.5})
    (before,) = exporters.list_exports(base_dir)
    with tf.io.gfile.GFile(f"{base_dir}/{exporters.LIST_FILE}", "wb") as file:
        file.write(content)
    assert export(exporters.BestExporter(Module), base_dir, {20: 0.4}) == [20]
    assert f"{base_dir}/{exporters.LIST_FILE} is damaged" in caplog.text
    (listed,) = exporters.list_exports(base_dir)
    assert listed.step == 20
    assert tf.io.gfile.isdir(f"{base_dir}/{before.version}")


def test_what_is_sound_in_a_damaged_list_stays(base_dir):
    export(exporters.BestExporter(Module), base_dir, {10: 0.5})
    path = f"{base_dir}/{exporters.LIST_FILE}"
    listed = json.loads(files.read_if_there(path))
    files.write_whole(path, json.dumps([{"x": 1}, *listed]))
    assert export(exporters.BestExporter(Module), base_dir, {20: 0.4}) == []


@pytest.mark.parametrize("score", [float("nan"), None, "0.5"])
def test_what_is_not_a_number_is_not_exported(base_dir, score):
    assert export(exporters.BestExporter(Module), base_dir, {10: score}) == []


def test_a_metric_that_is_not_there_is_an_error_that_names_those_that_are():
    exporter = exporters.BestExporter(Module, metric="mAP")
    with pytest.raises(ValueError, match=r"metric is 'mAP'.*\['AP'\]"):
        export(exporter, "nowhere", {10: 0.5})


def test_the_latest_stay_and_the_final_is_the_last(base_dir):
    latest = exporters.LatestExporter(Module, exports_to_keep=2)
    assert export(latest, base_dir, dict.fromkeys((10, 20, 30))) == [10, 20, 30]
    assert export(latest, base_dir, {30: None}) == []
    assert kept_steps(base_dir) == [20, 30]
    final = exporters.FinalExporter(Module)
    assert export(final, f"{base_dir}-f", {10: 0.1, 20: 0.2}) == []
    assert export(final, f"{base_dir}-f", {30: 0.1}, is_final=True) == [30]


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("number", range(1, 9))
def test_killed_at_any_moment_the_next_start_keeps_the_best(
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


def test_what_was_not_listed_is_not_touched(tmp_path):
    base_dir = str(tmp_path)
    by_hand = exporters.export_saved_model(SERVING, base_dir, "model.ckpt-1")
    other = tmp_path / "notes"
    other.mkdir()
    exporter = exporters.LatestExporter(Module, exports_to_keep=1)
    export(exporter, base_dir, dict.fromkeys((1, 2, 3)))
    assert tf.io.gfile.isdir(by_hand) and other.exists()
    assert [e.step for e in exporters.list_exports(base_dir)] == [3]


def test_what_finishes_an_export_sees_it_before_others_do(tmp_path):
    told = []

    def finish(directory, checkpoint_path, scores):
        assert not [p for p in tmp_path.iterdir() if p.name.isdigit()]
        assert tf.saved_model.contains_saved_model(directory)
        (pathlib.Path(directory) / "more.txt").write_text("more")
        told.append((checkpoint_path, scores))

    serving = SERVING._replace(finish_fn=finish)
    path = exporters.export_saved_model(
        serving, str(tmp_path), "model.ckpt-1", {"AP": 0.5}
    )
    assert told == [("model.ckpt-1", {"AP": 0.5})]
    assert (pathlib.Path(path) / "more.txt").read_text() == "more"


def test_an_export_that_is_refused_leaves_nothing(tmp_path):
    def refuse(directory, checkpoint_path, scores):
        raise ValueError("It finds other boxes.")

    with pytest.raises(ValueError, match="other boxes"):
        exporters.export_saved_model(
            SERVING._replace(finish_fn=refuse), str(tmp_path), "model.ckpt-1"
        )
    assert not list(tmp_path.iterdir())


def test_without_signatures_no_saved_model_is_written(tmp_path):
    serving = spec.Serving(MODULE, {}, {"a.txt": "a"})
    path = exporters.export_saved_model(serving, str(tmp_path), "model.ckpt-1")
    assert not tf.saved_model.contains_saved_model(path)
    assert (pathlib.Path(path) / "assets.extra" / "a.txt").read_text() == "a"


def test_half_an_export_of_a_day_ago_is_removed_a_younger_one_is_not(tmp_path):
    now = int(time.time())
    old, young = f"temp-{now - 90_000}", f"temp-{now - 80_000}"
    for name in (old, young, "temp-mine"):
        (tmp_path / name).mkdir()
    exporters.export_saved_model(SERVING, str(tmp_path), "model.ckpt-1")
    assert not (tmp_path / old).exists()
    assert (tmp_path / young).exists() and (tmp_path / "temp-mine").exists()


def test_versions_rise_though_the_clock_goes_back(tmp_path, monkeypatch):
    versions = []
    for now in (1_800_000_000, 1_700_000_000, 1_800_000_000):
        monkeypatch.setattr(time, "time", lambda now=now: now + 0.5)
        path = exporters.export_saved_model(SERVING, str(tmp_path), "model.ckpt-1")
        versions.append(int(path.rpartition("/")[2]))
    assert list(np.diff(versions)) == [1, 1]


def test_two_exporters_of_one_name_are_an_error():
    pair = [exporters.BestExporter(Module), exporters.LatestExporter(Module, "best")]
    with pytest.raises(ValueError, match=r"\['best', 'best'\]; give each its own"):
        exporters.check_names(pair)


def test_the_list_is_plain_json(tmp_path):
    export(exporters.BestExporter(Module), str(tmp_path), {10: 0.5})
    (entry,) = json.loads((tmp_path / exporters.LIST_FILE).read_text())
    assert entry["step"] == 10 and entry["value"] == 0.5
    assert len(entry["version"]) == 10 and entry["version"].isdigit()
