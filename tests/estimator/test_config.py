import pytest

from retinanet_tpu.estimator import config


def _paint(color="red", num_coats=1):
    return color, num_coats


KNOWN = {"paint": _paint}
BOUND = config.register(KNOWN)


def _parse(*bindings):
    return config.parse([], list(bindings), known=KNOWN)


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
    config.parse([str(run)], ["COATS = 5"], known=KNOWN)
    assert BOUND["paint"]() == ("blue", 5)


def test_the_text_parses_back_to_itself(tmp_path):
    text = _parse("COATS = 2", "paint.num_coats = %COATS", "paint.color = 'gold'")
    saved = tmp_path / "config.gin"
    saved.write_text(text)
    assert config.parse([str(saved)], [], known=KNOWN) == text
    assert config.differences(text, text) == []
    changed = _parse("COATS = 2", "paint.num_coats = %COATS", "paint.color = 'pink'")
    assert config.differences(text, changed) == [
        "- paint.color = 'gold'",
        "+ paint.color = 'pink'",
    ]
    assert config.differences("A = 1\nAB = 2", "A = 3\nAB = 4", ["A"]) == [
        "- AB = 2",
        "+ AB = 4",
    ]


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"absent\.gin"):
        config.parse(["absent.gin"], [], known=KNOWN)


def test_saving_by_steps_and_by_time_exclude_each_other():
    with pytest.raises(ValueError, match="both save_checkpoints_steps"):
        config.RunConfig(save_checkpoints_steps=5, save_checkpoints_secs=5)


@pytest.mark.parametrize("value", [0, -1, 2.5])
def test_intervals_that_never_fire_are_refused(value):
    with pytest.raises(ValueError, match="at least 1"):
        config.TPUConfig(iterations_per_loop=value)
    with pytest.raises(ValueError, match="at least 1"):
        config.RunConfig(save_checkpoints_steps=value)


@pytest.mark.parametrize(
    "name", ["max_restarts", "restart_secs", "max_rollbacks", "heartbeat_secs"]
)
def test_counts_and_times_below_0_are_refused(name):
    with pytest.raises(ValueError, match=rf"RunConfig\.{name} is -1"):
        config.RunConfig(**{name: -1})
