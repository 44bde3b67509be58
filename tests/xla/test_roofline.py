import pytest

from retinanet_tpu.xla import roofline

PROGRAM = """HloModule step

%fused (p: f32[8]) -> f32[8] {
  ROOT %big = f32[1000000]{0} parameter(0)
}

ENTRY %main (a: bf16[4,8]) -> f32[8] {
  %a = bf16[4,8]{1,0} parameter(0)
  %b = f32[8]{0:S(1)} parameter(1)
  %c = f32[16]{0} fusion(%a, %b), kind=kLoop, metadata={op_name="step/conv"}
  %d = (f32[16]{0}, f32[16]{0:S(1)}, u32[]{:S(2)}) copy-start(%c)
  %e = f32[16]{0:S(1)} copy-done(%d)
  %f = (f32[16]{0:S(1)}, f32[16]{0:S(1)}, u32[]{:S(2)}) copy-start(%e)
  ROOT %g = f32[8]{0} fusion(%e), kind=kLoop, metadata={op_name="step/add"}
}
"""


def test_only_what_crosses_hbm_counts():
    moves = roofline.moves(PROGRAM)
    assert [(m.num_bytes, m.operation, m.source) for m in moves] == [
        (4 * 8 * 2 + 16 * 4, "fusion", "step/conv"),  # %b is on the chip
        (16 * 4, "copy-start", ""),  # into the chip; %f stays in it
        (8 * 4, "fusion", "step/add"),
    ]


def test_the_slower_of_compute_and_memory_bounds_a_step():
    device = roofline.Device(flops_per_sec=100.0, bytes_per_sec=10.0, hbm_bytes=1.0)
    assert roofline.roofline(200, 10, device)[:2] == (2.0, "compute")
    assert roofline.roofline(100, 30, device)[:2] == (3.0, "memory")


def test_a_slice_is_found_by_googles_name():
    v3_32 = roofline.accelerator("v3-32")
    assert (v3_32.topology, v3_32.num_devices) == ("v3:4x4x1", 32)
    with pytest.raises(ValueError, match=r"'v3-31'; known are v3-32"):
        roofline.accelerator("v3-31")
