"""The table of configurables in docs/guides/configuration.md."""

import ast
import inspect
import re

import pytest

import repository
from retinanet_tpu.task import configurables, settings

PAGE = (repository.ROOT / "docs/guides/configuration.md").read_text("utf-8")
TABLE = PAGE.partition("<!-- configurables:begin -->")[2]
TABLE = TABLE.partition("<!-- configurables:end -->")[0]
ROWS = dict(re.findall(r"^\| `(\w+)` \| (.*?) \| .* \|$", TABLE, re.MULTILINE))


def default_of(parameter):
    """Returns a default as the page writes it; None if it is no literal."""
    if parameter.default is inspect.Parameter.empty:
        return "required"
    return parameter.default


def documented(cell):
    """Returns the settings of a row: name -> the default's text, or "required"."""
    settings = {}
    for text, required in re.findall(r"`([^`]+)`( \(required\))?", cell):
        name, _, default = text.partition(" = ")
        settings[name] = "required" if required else default
    return settings


def test_every_configurable_has_a_row():
    assert ROWS.keys() == configurables.CONFIGURABLES.keys()


@pytest.mark.parametrize("name", ROWS)
def test_the_settings_and_the_defaults_of_a_row_are_those_of_the_code(name):
    parameters = inspect.signature(configurables.CONFIGURABLES[name]).parameters
    for setting, text in documented(ROWS[name]).items():
        assert setting in parameters, setting
        default = default_of(parameters[setting])
        if text == "required":
            assert default == "required", setting
        elif not text.startswith("@"):
            expected = ast.literal_eval(text)
            if isinstance(expected, tuple) and all(
                isinstance(x, float | int) for x in expected
            ):
                assert default == pytest.approx(expected, abs=1e-3), setting
            else:
                assert default == expected, setting


def test_no_row_has_a_setting_that_the_network_overrides():
    for part in settings._PARTS:
        for parameter in set(documented(ROWS[part])) & set(settings._PASSED):
            assert f"{part}.{parameter}" in settings._SET_BY_GIN
