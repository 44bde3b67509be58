import inspect
import re

import pytest

import repository
from retinanet_tpu import errors
from retinanet_tpu.estimator import gin_files
from retinanet_tpu.task import cli, configurables
from retinanet_tpu.task.renamed_settings import RENAMED

QUICKSTART = str(repository.ROOT / "gin_configs" / "quickstart.gin")


def parse(*bindings, files=(QUICKSTART,), saved=None):
    return gin_files.parse(
        files,
        ["DATA_DIR = 'data'", *bindings] if files else bindings,
        known=configurables.CONFIGURABLES,
        saved=saved,
        search_path=[cli.GIN_CONFIGS],
        renamed=RENAMED,
    )


@pytest.mark.parametrize("old", RENAMED)
def test_a_new_name_exists_and_an_old_one_does_not(old):
    for name, exists in ((RENAMED[old], True), (old, False)):
        configurable, _, setting = name.partition(".")
        target = configurables.CONFIGURABLES.get(configurable)
        found = target is not None and (
            not setting or setting in inspect.signature(target).parameters
        )
        assert found == exists, name


@pytest.mark.parametrize("old", [name for name in RENAMED if "." in name])
def test_an_old_name_is_an_error_that_contains_the_new_one(old):
    with pytest.raises(errors.UserError, match=re.escape(RENAMED[old])):
        parse(f"{old} = 1")


def test_an_old_reference_is_an_error_that_contains_the_new_name():
    with pytest.raises(errors.UserError, match="nms is now NMS"):
        parse("Recipe.nms_fn = @nms()")


@pytest.mark.long
def test_the_saved_configuration_of_an_older_run_is_read(tmp_path):
    new = parse()
    old = new
    for name in sorted(RENAMED, key=len, reverse=True):
        old = re.sub(
            rf"(^|@){re.escape(RENAMED[name])}(?=[.( ])", rf"\1{name}", old, flags=re.M
        )
    assert "@experiment" not in old and "experiment.params = @retinanet_params()" in old
    path = tmp_path / "config.gin"
    path.write_text(old)
    assert parse(files=(), saved=str(path)) == new
