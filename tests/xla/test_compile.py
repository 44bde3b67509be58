import pytest

import linear
from retinanet_tpu.xla import compile as compiler, roofline

pytest.importorskip("libtpu", reason=f"needs {compiler.INSTALL}")


@pytest.mark.parametrize("name", ["v2-8", "v3-8", "v5litepod-8", "v6e-8"])
def test_a_training_step_compiles_for_a_slice(name):
    target = roofline.accelerator(name)
    hlo = linear.lowered(target.num_devices)
    found = compiler.for_tpu(hlo, target.topology, target.num_devices)
    assert found.flops > 2 * 4 * 3  # The product alone has as many.
    assert found.argument_bytes > 0
    assert "all-reduce" in found.text
