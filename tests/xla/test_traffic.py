import pytest

from retinanet_tpu.xla import traffic


def program(*lines, others=""):
    """Returns the text of a module whose entry has these instructions."""
    body = "\n".join(f"  {line}" for line in lines)
    return (
        f"HloModule step\n\n{others}\nENTRY %main (a: bf16[4,8]) -> f32[8] {{\n"
        f"{body}\n}}\n"
    )


def moved(*lines, others=""):
    moves = traffic.moves(program(*lines, others=others))
    return [(m.num_bytes, m.on_chip_bytes, m.operation, m.source) for m in moves]


def test_hbm_counts_apart_from_on_chip_memory():
    moves = moved(
        "%a = bf16[4,8]{1,0} parameter(0)",
        "%b = f32[8]{0:S(1)} parameter(1)",
        '%c = f32[16]{0} add(%a, %b), metadata={op_name="step/conv"}',
        "%d = (f32[16]{0:S(1)}, f32[16]{0}, u32[]{:S(2)}) copy-start(%c)",
        "%e = f32[16]{0:S(1)} copy-done(%d)",
        '%f = f32[8]{0} tanh(%e), metadata={op_name="step/tanh"}',
        "ROOT %g = (f32[8]{0}) tuple(%f)",
    )
    assert moves == [
        (4 * 8 * 2 + 16 * 4, 8 * 4, "add", "step/conv"),
        (16 * 4, 16 * 4, "copy-start", "step/tanh"),  # Who wants it.
        (8 * 4, 16 * 4, "tanh", "step/tanh"),
    ]


@pytest.mark.parametrize(
    "shape, stored",
    [
        ("f32[5]{0}", 5),
        ("f32[]{:T(256)}", 256),
        ("f32[5]{0:T(256)}", 256),
        ("f32[3,5]{1,0:T(8,128)}", 8 * 128),
        ("f32[3,5]{0,1:T(8,128)}", 8 * 128),
        ("f32[2,9,129]{2,1,0:T(8,128)}", 2 * 16 * 256),
        ("f32[2,9,129]{0,2,1:T(8,128)}", 9 * 136 * 128),
        ("f32[9,5]{1,0:T(8,128)(2,1)}", 16 * 128),
    ],
)
def test_arrays_count_in_whole_tiles(shape, stored):
    assert moved("%a = u8[1]{0} parameter(0)", f"ROOT %b = {shape} broadcast(%a)") == [
        (4 * stored + 1, 0, "broadcast", "")
    ]


def test_only_the_slice_of_a_sliced_array_counts():
    moves = moved(
        "%a = f32[100]{0} parameter(0)",
        "ROOT %b = f32[10]{0} slice(%a), slice={[0:10]}",
    )
    assert moves == [(40 + 40, 0, "slice", "")]


def test_only_the_update_of_an_array_updated_in_place_counts():
    moves = moved(
        "%a = f32[100]{0} parameter(0)",
        "%b = f32[10]{0} parameter(1)",
        "%i = s32[] parameter(2)",
        "ROOT %c = f32[100]{0} dynamic-update-slice(%a, %b, %i)",
    )
    assert moves == [(40 + 40 + 4, 0, "dynamic-update-slice", "")]


FUSED = """%fused (p0: f32[100], p1: f32[10], p2: s32[]) -> f32[100] {
  %p0 = f32[100]{0} parameter(0)
  %p1 = f32[10]{0} parameter(1)
  %p2 = s32[] parameter(2)
  %s = f32[10]{0} dynamic-slice(%p0, %p2), dynamic_slice_sizes={10}
  %t = f32[10]{0} add(%s, %p1)
  ROOT %u = f32[100]{0} dynamic-update-slice(%p0, %t, %p2)
}
"""


def test_a_fusion_reads_and_writes_what_it_slices_and_updates():
    moves = moved(
        "%a = f32[100]{0} parameter(0)",
        "%b = f32[10]{0:S(1)} parameter(1)",
        "%i = s32[] parameter(2)",
        "ROOT %c = f32[100]{0} fusion(%a, %b, %i), kind=kLoop, calls=%fused",
        others=FUSED,
    )
    # The slice, its update and the index; what is added lies on the chip.
    assert moves == [(40 + 40 + 4, 40, "fusion", "")]


LOOP = """%body (s: (s32[], f32[10])) -> (s32[], f32[10]) {
  %s = (s32[], f32[10]{0}) parameter(0)
  %x = f32[10]{0} get-tuple-element(%s), index=1
  %i = s32[] get-tuple-element(%s), index=0
  %y = f32[10]{0} tanh(%x)
  ROOT %r = (s32[], f32[10]{0}) tuple(%i, %y)
}

%test (s: (s32[], f32[10])) -> pred[] {
  ROOT %p = pred[] constant(false)
}
"""


COUNTED = """
%below (s: (s32[], f32[10])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5), metadata={op_name="Less"}
  %s = (s32[], f32[10]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  ROOT %p = pred[] compare(%i, %limit), direction=LT
}
"""


@pytest.mark.parametrize(
    "condition, times",
    [
        ("%test", 1),
        ("%below", 5),
        ('%test, backend_config={"known_trip_count":{"n":"7"}}', 7),
    ],
)
def test_a_loops_body_counts_by_its_known_iterations(condition, times):
    moves = moved(
        "%a = (s32[], f32[10]{0}) parameter(0)",
        f"ROOT %b = (s32[], f32[10]{{0}}) while(%a), body=%body, condition={condition}",
        others=LOOP + COUNTED,
    )
    assert moves == [(times * (40 + 40), 0, "tanh", "")]


def test_the_common_memory_of_v4_is_on_the_chip():
    moves = moved(
        "%a = f32[8]{0:S(3)} parameter(0)", "ROOT %b = f32[8]{0:S(1)} tanh(%a)"
    )
    assert moves == [(0, 2 * 8 * 4, "tanh", "")]


def test_the_largest_moves_come_first():
    moves = moved(
        "%a = f32[10]{0} parameter(0)",
        "%b = f32[10]{0} tanh(%a)",
        "ROOT %c = f32[1000]{0} broadcast(%b)",
    )
    assert [operation for _, _, operation, _ in moves] == ["broadcast", "tanh"]
