import importlib
import math
import subprocess
import sys

import numpy as np
import pytest

import repository

TOOLS = repository.ROOT / "tools" / "benchmarks"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("step")


def write_step(path, *, batch=4):
    """Writes a small step with images, weights, a counter and a flag."""
    jax = pytest.importorskip("jax")

    def step(images, weights, counter, flag):
        activations = images.astype("float32").reshape([batch, -1]) @ weights
        return activations, weights - activations.mean(), counter + 1, ~flag

    shapes = [((batch, 8, 8, 3), "uint8"), ((192, 5), "float32"), ((), "int32")]
    specs = [jax.ShapeDtypeStruct(*s) for s in [*shapes, ((), "bool")]]
    # It updates the weights in place, like TensorFlow's steps.
    hlo = jax.jit(step, donate_argnums=1).lower(*specs).compiler_ir("hlo")
    assert "input_output_alias" in hlo.as_hlo_text()
    path.write_bytes(hlo.as_serialized_hlo_module_proto())
    return str(path)


def write_text(path, text):
    """Writes an HLO module given as text."""
    pytest.importorskip("jax")
    from jax._src.lib import hlo

    module = hlo.hlo_module_from_text(text)
    path.write_bytes(module.as_serialized_hlo_module_proto())
    return str(path)


def run(*arguments):
    command = [sys.executable, str(TOOLS / "step.py"), "--platform=cpu"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True)


def test_batch_size_is_inferred_from_the_shape_of_the_images(tool):
    arguments = [
        tool.Argument((7, 7, 3, 64), "f32"),
        tool.Argument((16, 640, 512, 3), "bf16"),
        tool.Argument((16, 100, 4), "f32"),
    ]
    assert tool.infer_batch_size(arguments) == 16
    assert tool.infer_batch_size(arguments[:1]) is None


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_synthetic_floats_are_small_and_positive(tool, dtype):
    values = tool.synthetic_input(
        tool.Argument((50, 40), dtype), np.random.default_rng(0)
    )
    assert values.shape == (50, 40) and str(values.dtype).endswith(dtype[-2:])
    values = values.astype(np.float64)
    assert values.min() > 0 and values.max() < 0.2 and values.std() > 0.005


@pytest.mark.parametrize("dtype", ["i1", "i32", "i64", "ui32"])
def test_synthetic_counters_and_flags_are_zero(tool, dtype):
    values = tool.synthetic_input(tool.Argument((3,), dtype), np.random.default_rng(0))
    assert values.shape == (3,) and not values.any()


def test_outputs_that_reuse_an_inputs_memory_are_process(tool):
    header = (
        "HloModule step, input_output_alias={ {1}: (9, {}, may-alias), "
        "{12}: (3, {}, must-alias) }, entry_computation_layout={(f32[5]{0})->f32[]}"
    )
    assert tool.in_place_updates(header) == {1: 9, 12: 3}
    alone = "HloModule step, input_output_alias={ {}: (2, {}, may-alias) }\n{7}: (7, {}"
    assert tool.in_place_updates(alone) == {0: 2}
    assert tool.in_place_updates("HloModule step") == {}


def test_table_has_rates_of_the_median_step(tool):
    program = tool.Program(None, [], {}, batch_size=8, flops=4e12, bytes_accessed=30e9)
    unknown_bytes = program._replace(bytes_accessed=None)
    secs = {"a": [0.1, 0.08, 0.4], "b": [0.5]}
    lines = tool.table({"a": program, "b": unknown_bytes}, secs).splitlines()
    row = "| a | 8 | 100.00 (80.00 to 400.00) | 80.0 | 4 | 40 | 30 | 300 |"
    assert lines[2] == row
    assert lines[3].endswith("| nan | nan |")


def test_programs_run_in_turn_on_the_cpu(tmp_path):
    paths = [write_step(tmp_path / f"{n}.hlo", batch=n) for n in (4, 6)]
    process = run(*paths, "--rounds=2", "--steps=2")
    assert process.returncode == 0, process.stderr
    rows = [line.split(" | ") for line in process.stdout.splitlines()[-2:]]
    assert [(row[0], row[1]) for row in rows] == [
        (f"| {paths[0]}", "4"),
        (f"| {paths[1]}", "6"),
    ]
    for row, batch in zip(rows, (4, 6), strict=True):
        assert float(row[3].replace(",", "")) > 0
        flops = float(row[4]) * 1e12
        assert math.isclose(flops, 2 * batch * 192 * 5, rel_tol=0.35)


def test_a_program_for_several_replicas_is_refused(tmp_path):
    text = """HloModule step, replica_count=4
add { a = f32[] parameter(0)
      b = f32[] parameter(1)
      ROOT sum = f32[] add(a, b) }
ENTRY main { x = f32[4,8,8,3] parameter(0)
  ROOT all = f32[4,8,8,3] all-reduce(x), replica_groups={{0,1,2,3}}, to_apply=add }
"""
    process = run(write_text(tmp_path / "step.hlo", text))
    assert process.returncode == 1
    assert "for 4 replicas; lower it for one" in process.stderr


def test_one_replica_may_reduce_with_itself(tmp_path):
    text = """HloModule step
add { a = f32[] parameter(0)
      b = f32[] parameter(1)
      ROOT sum = f32[] add(a, b) }
ENTRY main { x = f32[4,8,8,3] parameter(0)
  ROOT all = f32[4,8,8,3] all-reduce(x), replica_groups={{0}}, to_apply=add }
"""
    process = run(write_text(tmp_path / "step.hlo", text), "--rounds=1", "--steps=1")
    assert process.returncode == 0, process.stderr
    assert "| 4 |" in process.stdout


def test_without_images_the_batch_size_must_be_set(tmp_path):
    text = (
        "HloModule m\nENTRY e { x = f32[5] parameter(0)\n ROOT y = f32[5] add(x, x) }"
    )
    path = write_text(tmp_path / "m.hlo", text)
    process = run(path)
    assert process.returncode == 1 and "--batch_size=N" in process.stderr
    assert run(path, "--batch_size=3", "--rounds=1", "--steps=1").returncode == 0


def test_missing_jax_is_an_error_with_the_remedy(tmp_path):
    code = (
        "import sys; sys.modules['jax'] = None; sys.argv = ['x', 'absent.hlo'];"
        f"import runpy; runpy.run_path({str(TOOLS / 'step.py')!r}, {{}}, "
        "'__main__')"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert process.returncode == 1
    assert "jax is missing" in process.stderr and "pip install" in process.stderr
