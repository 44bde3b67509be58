import os

from retinanet_tpu.estimator import setting_differences


class Brush:
    def __init__(self, width=2.0, colors=("red", "blue"), is_wet=False, bristles=None):
        pass


KNOWN = {"Brush": Brush}
BASE = "COATS = 2\nwall.color = 'gold'\n"


def _differences(before, after, **settings):
    return setting_differences.differences(before, after, KNOWN, **settings)


def test_a_changed_setting_is_a_line_of_each():
    assert _differences(BASE, BASE) == []
    assert _differences(BASE, BASE.replace("gold", "pink")) == [
        "- wall.color = 'gold'",
        "+ wall.color = 'pink'",
    ]


def test_ignored_names_may_differ():
    assert _differences("A = 1\nAB = 2", "A = 3\nAB = 4", ignoring=["A"]) == [
        "- AB = 2",
        "+ AB = 4",
    ]


def test_a_path_that_became_absolute_is_the_same():
    old = "A = 'x'\nB = 'y'\n"
    new = f"A = {os.path.abspath('x')!r}\nB = '/y'\n"
    assert _differences(old, new) == ["- B = 'y'", "+ B = '/y'"]


def test_a_default_that_only_one_sets_is_the_same():
    explicit = (
        "Brush.width = 2.0\nart.Brush.is_wet = False\nBrush.bristles = None\n"
        "Brush.colors = \\\n    ('red', 'blue')\n"
    )
    assert _differences(BASE, BASE + explicit) == []
    assert _differences(BASE + explicit, BASE) == []


def test_a_default_that_replaces_another_value_is_a_change():
    changed = _differences(f"{BASE}Brush.width = 3.0\n", f"{BASE}Brush.width = 2.0\n")
    assert changed == ["- Brush.width = 3.0", "+ Brush.width = 2.0"]


def test_a_new_setting_that_is_no_default_is_a_change():
    for line in (
        "Brush.width = 3.0", "Brush.is_wet = 0", "thin/Brush.width = 2.0",
        "Brush.width = %WIDTH", "Brush.length = None", "Comb.width = 2.0",
    ):  # fmt: skip
        assert _differences(BASE, BASE + line) == [f"+ {line}"]
