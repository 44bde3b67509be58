"""The guide that adds a network."""

import pytest

import repository
import tool_processes
import toy_data
from retinanet_tpu import errors
from retinanet_tpu.estimator import gin_files
from retinanet_tpu.task import configurables, setting_ranges

PAGE = (repository.ROOT / "docs/guides/networks.md").read_text("utf-8")


def _block(text):
    """Returns the first block of code that contains a text."""
    blocks = [part.partition("\n")[2] for part in PAGE.split("```")[1::2]]
    return next(block for block in blocks if text in block)


def _parse(files, **options):
    return gin_files.parse(
        [str(file) for file in files],
        [],
        known=configurables.CONFIGURABLES,
        ranges=setting_ranges.RANGES,
        search_path=[str(toy_data.GIN_CONFIGS)],
        **options,
    )


def _write_files(folder):
    """Writes the files of the guide to a folder."""
    (folder / "my_backbone.py").write_text(_block("class PlainBackbone"))
    (folder / "my_run.gin").write_text(_block("import my_backbone\ninclude"))
    (folder / "import.gin").write_text("import my_backbone\n")


def _run(command, *options, cwd):
    done = tool_processes.run_python(
        "-m", f"retinanet_tpu.{command}", "--model_dir=run", *options, cwd=cwd
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.mark.long
def test_the_files_of_the_guide_train_and_evaluate(tmp_path):
    _write_files(tmp_path)
    settings = [f"DATA_DIR = '{toy_data.write(tmp_path / 'data')}'", *toy_data.TINY]
    settings += toy_data.TWO_LEVELS
    # The command evaluate follows.
    settings += ["TrainingPlan.evaluate_during_training = False"]
    settings = [x for x in settings if not x.startswith("ResNet")]
    options = [f"--gin_param={x}" for x in settings]
    _run("train", "--gin_file=my_run.gin", *options, cwd=tmp_path)
    assert "import" not in (tmp_path / "run/config.gin").read_text()
    output = _run("evaluate", "--gin_file=import.gin", "--once", cwd=tmp_path)
    assert "Average Precision" in output


def test_a_saved_configuration_without_the_import_says_what_to_do(tmp_path):
    (tmp_path / "config.gin").write_text("Unknown1Backbone.width = 3\n")
    message = (
        r"No configurable matching 'Unknown1Backbone'[\s\S]*--gin_file that imports"
    )
    with pytest.raises(errors.UserError, match=message):
        _parse([], saved=str(tmp_path / "config.gin"))


def test_a_module_that_cannot_be_imported_is_an_error(tmp_path):
    (tmp_path / "a.gin").write_text("import no_such_module\n")
    with pytest.raises(errors.UserError, match=r"imports no_such_module.*PYTHONPATH"):
        _parse([tmp_path / "a.gin"])
