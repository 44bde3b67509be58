import pytest

from retinanet_tpu import annotation_fields


@pytest.mark.parametrize("value", [1, True, 1.0, "1", " TRUE ", "yes", "1.0"])
def test_set_flags_are_true(value):
    assert annotation_fields.is_set(value, "here") is True


@pytest.mark.parametrize(
    "value", [0, False, 0.0, None, "", "0", "false", "No", "0.0", "null", "None"]
)
def test_unset_and_absent_flags_are_false(value):
    assert annotation_fields.is_set(value, "here") is False


@pytest.mark.parametrize("value", [2, -1, 0.5, float("nan"), "maybe", [], {}, [1]])
def test_other_values_of_a_flag_are_an_error(value):
    with pytest.raises(ValueError, match=r"annotation 7 has iscrowd .*; expected 0 or"):
        annotation_fields.is_set(value, "annotation 7 has iscrowd")


@pytest.mark.parametrize(
    ("value", "number"),
    [(7, 7), ("7", 7), (" 007 ", 7), (7.0, 7), ("-1", -1), (2**70, 2**70), (True, None),
     (7.5, None), ("7.0", None), ("a1", None), ("", None), (None, None), ([7], None),
     (float("inf"), None), (float("nan"), None), ("\u0667", None), ("9" * 10**6, None)],
)  # fmt: skip
def test_integers_are_read_from_numbers_and_digits(value, number):
    assert annotation_fields.integer(value) == number


@pytest.mark.parametrize(
    ("value", "text"), [("a", "a"), (7, "7"), (0, "0"), (True, None), (None, None)]
)
def test_text_is_read_from_texts_and_numbers(value, text):
    assert annotation_fields.text(value) == text


@pytest.mark.parametrize(
    ("value", "label"),
    [(" cat ", "cat"), (1, "1"), (1.0, "1"), ("-2.00", "-2"), ("v1.0", "v1.0"),
     ("1.5", "1.5"), (1.5, None), (True, None), (None, None), ("", "")],
)  # fmt: skip
def test_whole_numbers_as_classes_have_no_decimals(value, label):
    assert annotation_fields.label(value) == label


@pytest.mark.parametrize(
    ("area", "is_kept"),
    [
        (40_000, True), (40_100, True), (35_000.5, True), ("35000", True), (400, True),
        (0, False), (1, False), (-3, False), (1e9, False), (41_000, False),
        (0.7, False), (30, False), (float("nan"), False), (float("inf"), False),
        ("big", False),
        ([], False), (True, False), (10**400, False),
    ],
)  # fmt: skip
def test_an_area_must_be_a_part_of_its_box(area, is_kept):
    expected = float(area) if is_kept else None
    assert annotation_fields.areas([area], [(200, 200)]) == [expected]


def test_the_area_of_a_small_box_may_be_small():
    assert annotation_fields.areas([1, 0.5, 3], [(1, 1), (1, 1), (2, 2)]) == [1, 0.5, 3]


def test_one_area_for_boxes_of_many_sizes_is_a_constant():
    sizes = [(20, 20), (20, 21), (40, 40)]
    assert annotation_fields.areas([100] * 3, sizes) == [None] * 3
    assert annotation_fields.areas([100] * 3, sizes[:1] * 3) == [100] * 3
    assert annotation_fields.areas([400] * 3, sizes) == [400] * 3
    assert annotation_fields.areas([100, 100, 101], sizes) == [100, 100, 101]
