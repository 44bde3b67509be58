import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import pytest

from retinanet_tpu import errors
from retinanet_tpu.estimator import gin_files, setting_types


def _paint(color="red", num_coats=1):
    return color, num_coats


def _room(paint_fn: Callable[..., Any] = _paint):
    return paint_fn()


KNOWN = {"paint": _paint, "room": _room}
BOUND = gin_files.register(KNOWN)


def _parse(*bindings):
    return gin_files.parse([], list(bindings), known=KNOWN)


def test_a_binding_reaches_the_function():
    _parse("paint.num_coats = 3")
    assert BOUND["paint"]() == ("red", 3)


def test_a_default_that_is_a_configurable_has_its_settings():
    text = _parse("paint.num_coats = 3")
    assert BOUND["room"]() == ("red", 3)
    assert "room" not in text
    _parse(
        "paint.num_coats = 3",
        "thick/paint.num_coats = 5",
        "room.paint_fn = @thick/paint",
    )
    assert BOUND["room"]() == ("red", 5)
    assert BOUND["room"](lambda: "bare") == "bare"


def test_a_misspelled_parameter_gets_a_suggestion():
    with pytest.raises(ValueError, match=r"(?s)num_coat'.*Did you mean num_coats\?"):
        _parse("paint.num_coat = 3")


def test_a_misspelled_function_gets_a_suggestion():
    with pytest.raises(ValueError, match=r"Did you mean paint\?"):
        _parse("piant.num_coats = 3")


def test_an_unused_macro_gets_a_suggestion():
    with pytest.raises(ValueError, match=r"COATZ is set.*Did you mean COATS\?"):
        _parse("COATS = 2", "paint.num_coats = %COATS", "COATZ = 3")


def test_an_unset_macro_is_an_error_with_its_name():
    with pytest.raises(ValueError, match="COATS is used, but never set"):
        _parse("paint.num_coats = %COATS")


def test_bad_syntax_is_an_error():
    with pytest.raises(errors.UserError, match="--gin_param='paint"):
        _parse("paint.num_coats = (1")


def test_later_bindings_override_and_files_include_their_neighbors(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "base.gin").write_text("paint.color = 'blue'\nCOATS = 1\n")
    run = tmp_path / "run.gin"
    run.write_text("include 'parts/base.gin'\npaint.num_coats = %COATS\n")
    gin_files.parse([str(run)], ["COATS = 5"], known=KNOWN)
    assert BOUND["paint"]() == ("blue", 5)


def test_the_text_parses_back_to_itself(tmp_path):
    text = _parse("COATS = 2", "paint.num_coats = %COATS", "paint.color = 'gold'")
    saved = tmp_path / "config.gin"
    saved.write_text(text)
    assert gin_files.parse([str(saved)], [], known=KNOWN) == text


def test_a_missing_file_is_an_error_with_its_name():
    with pytest.raises(FileNotFoundError, match=r"absent\.gin"):
        gin_files.parse(["absent.gin"], [], known=KNOWN)


@dataclasses.dataclass(frozen=True)
class Brush:
    width: float = 1.0


def _draw(
    *,
    sides: int = 3,
    size: tuple[int, int] = (1, 1),
    weights: Sequence[float] = (),
    shares: Mapping[str, float] = types.MappingProxyType({}),
    name: str | None = None,
    is_filled: bool = False,
    shade_fn: Callable = len,
    brush: Brush | None = None,
    style: Literal["dotted", "solid"] = "solid",
    anything: Any = None,
):
    return (
        sides,
        size,
        weights,
        shares,
        name,
        is_filled,
        shade_fn,
        brush,
        style,
        anything,
    )


SHAPES = {"draw": _draw, "Brush": Brush, "shade": _paint}
gin_files.register(SHAPES)
RANGES = {
    "draw.sides": setting_types.Range("at least 3", lambda x: x >= 3),
    "draw.weights": setting_types.Range("above 0", lambda x: x > 0),
    "draw.shares": setting_types.Range("above 0", lambda x: x > 0),
}


def _parse_shapes(*bindings, **more):
    return gin_files.parse([], list(bindings), known=SHAPES, ranges=RANGES, **more)


@pytest.mark.parametrize(
    "binding",
    [
        "draw.sides = 4",
        "draw.size = (2, 3)",
        "draw.size = [2, 3]",
        "draw.weights = (1, 2.5)",
        "draw.weights = ()",
        "draw.shares = {'a': 1, 'b': 0.5}",
        "draw.shares = {'a': %COUNT}\nCOUNT = 4",
        "draw.name = None",
        "draw.name = 'x'",
        "draw.is_filled = True",
        "draw.shade_fn = @shade",
        "draw.brush = @Brush()",
        "draw.brush = None",
        "draw.anything = {'a': 1}",
        "draw.style = 'dotted'",
        "Brush.width = 2",
    ],
)
def test_a_value_of_the_right_type_is_accepted(binding):
    assert binding.partition(" =")[0] in _parse_shapes(binding)


@pytest.mark.parametrize(
    ("binding", "expected"),
    [
        (
            "draw.sides = 4.0",
            r"draw\.sides is 4\.0; it must .* number\. Write 4",
        ),
        ("draw.sides = 4.5", r"a whole number\.$"),
        ("draw.sides = '4'", r"Write 4\."),
        ("draw.sides = True", "a whole number"),
        ("draw.sides = None", "a whole number"),
        ("draw.sides = 2", r"draw\.sides is 2; it must be at least 3"),
        ("draw.size = (2.0, 3.0)", r"Write \(2, 3\)"),
        ("draw.size = (2, 3, 4)", r"\(a whole number, a whole number\)"),
        ("draw.size = 2", r"\(a whole number, a whole number\)"),
        ("draw.weights = 2.0", "a list, each element a number"),
        ("draw.weights = ('a',)", "a list, each element a number"),
        ("draw.weights = (1, 0)", "must be above 0"),
        ("draw.shares = {'a': 'b'}", r"a dictionary \{a string in quotes: a number\}"),
        ("draw.shares = {1: 2}", r"a dictionary \{a string in quotes: a number\}"),
        ("draw.shares = ('a', 2)", r"a dictionary \{a string in quotes: a number\}"),
        ("draw.shares = {'a': 1, 'b': 0}", "must be above 0"),
        ("draw.name = 5", "a string in quotes or None"),
        ("draw.is_filled = 'False'", r"True or False\. Write False\."),
        ("draw.is_filled = 1", "True or False"),
        ("draw.shade_fn = 0.1", "a function, @name"),
        ("draw.brush = @Brush", r"Write @Brush\(\)"),
        ("draw.brush = 'round'", r"@Brush\(\) or None"),
        ("draw.style = 'dashed'", "one of 'dotted', 'solid'"),
        ("Brush.width = 'thick'", r"Brush\.width is 'thick'; it must be a number\.$"),
    ],
)
def test_a_value_of_another_type_or_range_is_refused(binding, expected):
    with pytest.raises(errors.UserError, match=expected):
        _parse_shapes(binding)


def test_the_error_for_a_wrong_value_contains_its_macro():
    expected = r"SIDES is 2e5|SIDES is 200000\.0; draw\.sides must be .* Write 200000\."
    with pytest.raises(errors.UserError, match=expected):
        _parse_shapes("SIDES = 2e5", "draw.sides = %SIDES")
    with pytest.raises(errors.UserError, match=r"size is \(1, '2'\)"):
        _parse_shapes("HEIGHT = '2'", "draw.size = (1, %HEIGHT)")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("NAME = data/one", r"""--gin_param="NAME = 'data/one'"\.$"""),
        ("NAME = gs://bucket/x", r"""--gin_param="NAME = 'gs://bucket/x'"\.$"""),
        ("draw.is_filled = true", r'write "draw\.is_filled = True"\.$'),
        ("draw.size = (1,", "--gin_param='draw.size = "),
        ("draw.sides == 3", "--gin_param='draw.sides == 3'"),
        ("draw.sides", "--gin_param='draw.sides'"),
    ],
)
def test_the_error_for_a_setting_that_is_not_gin_suggests_quotes(setting, expected):
    with pytest.raises(errors.UserError, match=expected):
        _parse_shapes(setting)


def test_a_macro_in_a_scope_that_nothing_uses_is_refused():
    with pytest.raises(errors.UserError, match="a/SIDES is set, but nothing uses it"):
        _parse_shapes("a/SIDES = 3")


@pytest.mark.parametrize(
    "line",
    [
        "import os",
        "from os import path",
        "from __gin__ import dynamic_registration",
        "include '/tmp/other.gin'",
        "Brush.width = 2\nimport os.path",
    ],
)
def test_a_saved_configuration_may_only_set_values(tmp_path, line):
    saved = tmp_path / "config.gin"
    saved.write_text(f"draw.sides = 5\n{line}\n")
    with pytest.raises(errors.UserError, match=r"config\.gin, line [23] imports or"):
        _parse_shapes(saved=str(saved))
    saved.write_text("draw.sides = 5\n")
    assert "draw.sides = 5" in _parse_shapes(saved=str(saved))
    assert "draw.sides = 6" in _parse_shapes("draw.sides = 6", saved=str(saved))


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00", b"draw.sides = (1,", b"(" * 5000, b"draw = = 1"]
)
def test_a_corrupt_saved_configuration_is_an_error_with_its_path(tmp_path, content):
    saved = tmp_path / "config.gin"
    saved.write_bytes(content)
    with pytest.raises(errors.UserError, match=r"config\.gin is corrupt"):
        _parse_shapes(saved=str(saved))
