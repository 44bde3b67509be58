import pytest

from retinanet_tpu.estimator import gin_files


def _paint(color="red", num_coats=1):
    return color, num_coats


KNOWN = {"paint": _paint}
BOUND = gin_files.register(KNOWN)


def _parse(*bindings):
    return gin_files.parse([], list(bindings), known=KNOWN)


def test_a_binding_reaches_the_function():
    _parse("paint.num_coats = 3")
    assert BOUND["paint"]() == ("red", 3)


def test_a_misspelt_parameter_is_told_the_right_one():
    with pytest.raises(ValueError, match=r"(?s)num_coat'.*Did you mean num_coats\?"):
        _parse("paint.num_coat = 3")


def test_a_misspelt_function_is_told_the_right_one():
    with pytest.raises(ValueError, match=r"Did you mean paint\?"):
        _parse("piant.num_coats = 3")


def test_a_macro_that_nothing_uses_is_told_the_right_one():
    with pytest.raises(ValueError, match=r"COATZ is set.*Did you mean COATS\?"):
        _parse("COATS = 2", "paint.num_coats = %COATS", "COATZ = 3")


def test_a_macro_that_is_never_set_is_named():
    with pytest.raises(ValueError, match="COATS is used, but never set"):
        _parse("paint.num_coats = %COATS")


def test_bad_syntax_is_an_error():
    with pytest.raises(ValueError, match="configuration is wrong"):
        _parse("paint.num_coats = (1")


def test_later_bindings_win_and_files_include_their_neighbours(tmp_path):
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
    assert gin_files.differences(text, text) == []
    changed = _parse("COATS = 2", "paint.num_coats = %COATS", "paint.color = 'pink'")
    assert gin_files.differences(text, changed) == [
        "- paint.color = 'gold'",
        "+ paint.color = 'pink'",
    ]
    assert gin_files.differences("A = 1\nAB = 2", "A = 3\nAB = 4", ["A"]) == [
        "- AB = 2",
        "+ AB = 4",
    ]


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"absent\.gin"):
        gin_files.parse(["absent.gin"], [], known=KNOWN)
