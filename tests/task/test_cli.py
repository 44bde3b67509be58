"""Runs that may resume in a model_dir, and the paths of their settings."""

import os
import pathlib
import shutil

import pytest
import tensorflow as tf
from absl.testing import flagsaver

import commands
import toy_data
from retinanet_tpu import errors, evaluate, export, train
from retinanet_tpu.estimator import train_step
from retinanet_tpu.estimator.model_dir import checkpoints
from retinanet_tpu.task import cli, configurables, input_fn

SAVES = ("RunConfig.save_checkpoints_steps = 2", "MAX_STEPS = 2")


@pytest.fixture(scope="module")
def valid_dir(tmp_path_factory):
    """A data directory `data`, and beside it `run`, which is trained."""
    base = tmp_path_factory.mktemp("base")
    toy_data.write(base / "data")
    run = toy_data.make_run(base / "run", base / "data", *toy_data.TWO_LEVELS)
    network = run.make_network()
    state = train_step.TrainState(network, run.update_fn(network))
    state.step = 2
    (base / "run").mkdir()
    state.save(str(base / "run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(base)
        train_on(accept_changes=True)
    return base


@pytest.fixture
def base(valid_dir, tmp_path, monkeypatch):
    """A copy, as the working directory."""
    shutil.copytree(valid_dir, tmp_path / "base")
    config = tmp_path / "base" / "run" / cli.CONFIG_FILE
    text = config.read_text().replace(str(valid_dir), str(tmp_path / "base"))
    config.write_text(text)
    monkeypatch.chdir(tmp_path / "base")
    return tmp_path / "base"


def train_on(*bindings, data_dir="data", **more):
    bindings = (*SAVES, "TrainingPlan.evaluate_during_training = False", *bindings)
    commands.run(train.main, "run", data_dir, *bindings, **more)


def listing(directory):
    return sorted((p.name, p.stat().st_mtime_ns) for p in directory.iterdir())


@pytest.mark.long
def test_the_saved_configuration_has_absolute_paths(base):
    text = (base / "run" / cli.CONFIG_FILE).read_text()
    assert f"{base}/data'" in text
    train_on()
    train_on(data_dir=base / "data")


def test_a_run_finds_its_data_from_anywhere(base, monkeypatch):
    monkeypatch.chdir(base / "data")
    with flagsaver.flagsaver(model_dir="../run"):
        cli.parse_model_dir()
    run = configurables.make_run("../run", strategy_fn=tf.distribute.get_strategy)
    assert run.data.dir == f"{base}/data" and len(run.data.read_images(2)) == 2


def test_a_run_with_the_relative_paths_of_older_versions_resumes(base, monkeypatch):
    config = base / "run" / cli.CONFIG_FILE
    text = config.read_text().replace(f"{base}/", "").replace("\\\n    ", "")
    assert "DATA_DIR = 'data'" in text
    config.write_text(text)
    monkeypatch.chdir(base / "run")
    with pytest.raises(errors.MissingFileError, match=f"no directory {base}/run/data"):
        commands.run(evaluate.main, base / "run", None, once=True)
    monkeypatch.chdir(base)
    train_on()
    assert f"'{base}/data'" in config.read_text()


def test_missing_data_are_an_error_that_names_the_directory(base, caplog):
    data = input_fn.Data(f"{base}/away")
    assert data.read_images(3) == []
    assert f"There is no directory {base}/away" in caplog.text
    message = f"no directory away in the working directory {base}; set DATA_DIR"
    with pytest.raises(errors.MissingFileError, match=message):
        input_fn.Data("away").read_categories()


@pytest.mark.long
@pytest.mark.parametrize("name", [cli.CONFIG_FILE, "categories.json"])
def test_checkpoints_without_settings_are_an_error(base, name):
    (base / "run" / name).unlink()
    before = listing(base / "run")
    with pytest.raises(errors.UserError, match=f"has checkpoints, but no {name}"):
        train_on()
    assert listing(base / "run") == before
    train_on(accept_changes=True)
    assert (base / "run" / name).exists()


@pytest.mark.parametrize("content", [b"\xff\xfe", b"X = [", b"import os", b"[" * 9999])
def test_a_corrupt_configuration_is_named(base, content):
    (base / "run" / cli.CONFIG_FILE).write_bytes(content)
    before = listing(base / "run")
    for command in (train_on, lambda: commands.run(evaluate.main, "run", None)):
        with pytest.raises(errors.UserError, match=r"run/config\.gin"):
            command()
    assert listing(base / "run") == before


@pytest.mark.parametrize("content", [b"\xff\xfe", b"7", b"[]", b"[" * 100_000, b"{}"])
def test_corrupt_classes_are_named(base, content):
    (base / "run" / "categories.json").write_bytes(content)
    with pytest.raises(errors.UserError, match=r"run/categories\.json"):
        train_on()


@pytest.mark.parametrize("name", ["run[lr=0.1]", "back\\slash"])
def test_a_model_dir_that_tensorflow_cannot_read_is_refused(base, name):
    pattern = r"--model_dir is .* pattern; use a path without brackets"
    for main in (train.main, evaluate.main, export.main):
        with pytest.raises(errors.UserError, match=pattern):
            commands.run(main, base / name, "data", *SAVES)
    assert sorted(os.listdir(base)) == ["data", "run"]


@pytest.mark.parametrize("name", ["WARM_START", "BACKBONE_CHECKPOINT"])
def test_first_weights_that_tensorflow_cannot_read_are_refused(base, name):
    shutil.copytree("run", "other[1]")
    with pytest.raises(errors.UserError, match=r"treats '\[1\]' as a pattern"):
        commands.run(train.main, "new", "data", *SAVES, f"{name} = 'other[1]'")
    assert not (base / "new").exists()


def test_a_data_directory_may_have_any_name(base):
    (base / "data").rename(base / "data[*]\\?")
    data_dir = "data[*]\\\\?"
    train_on(data_dir=data_dir, accept_changes=True)
    assert checkpoints.steps("run") == [2]


def test_corrupt_checkpoints_leave_all_files_unchanged(base):
    path = checkpoints.latest("run")
    pathlib.Path(f"{path}.data-00000-of-00001").write_bytes(b"x")
    before = listing(base / "run")
    with pytest.raises(errors.UserError, match="but no valid checkpoint"):
        train_on("MAX_STEPS = 4", accept_changes=True)
    kept = dict(before)
    now = dict(listing(base / "run"))
    assert all(now[name] == kept[name] for name in kept if name.startswith("model"))
