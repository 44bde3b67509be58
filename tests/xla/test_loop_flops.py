from retinanet_tpu.xla import loop_flops

PROGRAM = """HloModule step

%fused (x: bf16[1,6,4,3], k: bf16[3,3,3,16]) -> bf16[1,6,4,16] {
  %x = bf16[1,6,4,3]{3,2,1,0} parameter(0)
  %k = bf16[3,3,3,16]{3,2,1,0} parameter(1)
  ROOT %y = bf16[1,6,4,16]{3,2,1,0} convolution(%x, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f
}

%body (s: (s32[], bf16[1,6,4,3], bf16[3,3,3,16])) -> (s32[], bf16[1,6,4,3]) {
  %s = (s32[], bf16[1,6,4,3]{3,2,1,0}, bf16[3,3,3,16]{3,2,1,0}) parameter(0)
  %x = bf16[1,6,4,3]{3,2,1,0} get-tuple-element(%s), index=1
  %k = bf16[3,3,3,16]{3,2,1,0} get-tuple-element(%s), index=2
  ROOT %f = bf16[1,6,4,16]{3,2,1,0} fusion(%x, %k), kind=kOutput, calls=%fused
}

%below (s: (s32[], bf16[1,6,4,3])) -> pred[] {
  %limit = s32[] constant(LIMIT)
  %s = (s32[], bf16[1,6,4,3]{3,2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  ROOT %p = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (a: bf16[1,6,4,3], b: bf16[3,3,3,16]) -> bf16[1,6,4,16] {
  %a = bf16[1,6,4,3]{3,2,1,0} parameter(0)
  %b = bf16[3,3,3,16]{3,2,1,0} parameter(1)
  %once = bf16[1,6,4,16]{3,2,1,0} fusion(%a, %b), kind=kOutput, calls=%fused
  %t = (s32[], bf16[1,6,4,3], bf16[3,3,3,16]) tuple(%a, %b)
  ROOT %w = (s32[], bf16[1,6,4,3]{3,2,1,0}) while(%t), condition=%below, body=%body
}
"""  # noqa: E501
_FLOPS = 2 * (6 * 4 * 16) * (3 * 3 * 3)


def test_iterations_after_the_first_are_not_in_xlas_count():
    assert loop_flops.uncounted(PROGRAM.replace("LIMIT", "5")) == 4 * _FLOPS


def test_one_iteration_and_programs_without_loops_are_counted():
    assert loop_flops.uncounted(PROGRAM.replace("LIMIT", "1")) == 0
