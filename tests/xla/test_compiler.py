import builtins
import importlib.util

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops

import linear
from retinanet_tpu.data import transforms
from retinanet_tpu.detections import decode, nms
from retinanet_tpu.xla import compiler, lower, roofline

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason=f"needs {compiler.INSTALL}"
)
GIB = 2**30


@pytest.mark.parametrize(
    "message, gib",
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
            "for HLO temporaries (36.52G) exceeds available HBM (15.48G).",
            36.52 - 15.48,
        ),
        (
            "Ran out of memory in memory space hbm. Used 20.10G of 15.48G hbm. "
            "Exceeded hbm capacity by 4.62G.\n\nTotal hbm usage >= 20.6G:",
            4.62,
        ),
        ("Used 16.00G of 15.50G hbm.", 0.5),
        ("Exceeded hbm capacity by 512.0M.", 0.5),
        ("Used 15.98GiB of 15.48GiB hbm", 0.5),
    ],
)
def test_missing_memory_is_parsed_from_the_compilers_message(message, gib):
    np.testing.assert_allclose(compiler.missing_bytes(message) / GIB, gib, rtol=1e-9)


@pytest.mark.parametrize("message", ["", "RESOURCE_EXHAUSTED: no idea", "(1.G) is 2"])
def test_a_message_without_sizes_gives_no_number(message):
    assert compiler.missing_bytes(message) is None


def test_without_the_extra_the_error_names_the_package_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **more):
        if name == "libtpu":
            raise ImportError("No module named 'libtpu'")
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"libtpu.*pip install -e '\.\[preflight\]'"):
        compiler.check_installed()


@needs_libtpu
@pytest.mark.parametrize("name", ["v2-8", "v3-8", "v5litepod-8", "v6e-8"])
def test_a_training_step_compiles_for_a_slice(name):
    target = roofline.accelerator(name)
    compiled = compiler.for_tpu(linear.lowered(target.num_devices), target.topology)
    assert compiled.flops > 2 * 4 * 3  # The product alone has as many.
    assert compiled.argument_bytes > 0
    assert "all-reduce" in compiled.text


@needs_libtpu
def test_a_program_for_one_chip_compiles():
    compiled = compiler.for_tpu(linear.lowered(1), "v5e:1x1")
    assert "all-reduce" not in compiled.text


@needs_libtpu
def test_variables_updated_in_place_are_counted_once():
    compiled = compiler.for_tpu(linear.lowered(8), "v3:2x2x1")
    assert compiled.result_bytes < compiled.argument_bytes


@needs_libtpu
def test_the_error_of_a_too_large_program_has_the_missing_bytes():
    def fn(x):
        return x @ tf.sin(x)

    side = 60_000  # 13.4 GiB a matrix
    spec = tf.TensorSpec([side, side])
    program = lower.lower(fn, [spec], lower.AheadOfTimeStrategy(1))
    with pytest.raises(compiler.OutOfMemoryError) as caught:
        compiler.for_tpu(program, "v3:2x2x1")
    assert 2 * 13.4 - 16 < caught.value.missing_bytes / GIB < 3 * 13.5 - 15


@needs_libtpu
def test_an_unsupported_call_is_traced_to_its_operation():
    def fn(x):
        with tf.name_scope("ours"):
            return gen_xla_ops.xla_custom_call_v2(
                operands=[x],
                call_target_name="Bogus",
                backend_config="",
                has_side_effect=False,
                result_dtypes=[tf.float32],
                result_shapes=[(4,)],
            )[0]

    program = lower.lower(fn, [tf.TensorSpec([4])], lower.AheadOfTimeStrategy(1))
    with pytest.raises(compiler.CompileError, match="Bogus") as caught:
        compiler.for_tpu(program, "v3:2x2x1")
    assert caught.value.operation.startswith("ours/")
    assert program.line_of(caught.value.operation).startswith(f"{__file__}:")


@needs_libtpu
@pytest.mark.parametrize("variant", sorted(set(nms.VARIANTS) - {"combined"}))
def test_every_suppression_compiles_for_a_tpu(variant):
    specs = (
        tf.TensorSpec([2, 500, 4]),
        tf.TensorSpec([2, 500]),
        tf.TensorSpec([2, 500], tf.int32),
    )
    program = lower.lower(
        lambda *candidates: nms.NMS(variant)(decode.Candidates(*candidates)),
        specs,
        lower.AheadOfTimeStrategy(1),
    )
    assert compiler.for_tpu(program, "v5e:1x1").flops > 0


@needs_libtpu
def test_letterboxing_moves_rows_instead_of_pixels_on_a_tpu():
    program = lower.lower(
        lambda image: transforms.letterbox(image, (128, 128)),
        [tf.TensorSpec([96, 128, 3])],
        lower.AheadOfTimeStrategy(1),
    )
    compiled = compiler.for_tpu(program, "v3:2x2x1")
    # A gather of pixels, 3 numbers each in a tile of 128, moves 12 kB per pixel.
    assert compiled.bytes_accessed < 1e3 * 128 * 128
