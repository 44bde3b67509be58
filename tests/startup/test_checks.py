"""Tests the checks before TensorFlow is imported, with its TPU build installed."""

import ast
import os
import re
import subprocess
import sys

import pytest

import repository
from retinanet_tpu import errors
from retinanet_tpu.startup import checks

PROGRAMS = sorted(
    path
    for pattern in ("retinanet_tpu/*.py", "tools/**/*.py")
    for path in repository.ROOT.glob(pattern)
    if re.search("^(from|import) retinanet_tpu", path.read_text(), re.MULTILINE)
    and '__name__ == "__main__"' in path.read_text()
    and path.name != "__main__.py"  # It does not import TensorFlow.
)
USES_TPU = {
    "retinanet_tpu/train.py",
    "tools/benchmarks/timed_trainer.py",
    "tools/examples/train_digits.py",
}
PLUGIN = "TF_PLUGGABLE_DEVICE_LIBRARY_PATH"
MISFIT = (
    "libtpu 0.0.52 does not fit tensorflow-tpu 2.20.0, whose import can abort with it "
    "(the extra [preflight] needs an environment without tensorflow-tpu); "
    "run: pip install 'libtpu>=0.0.14,<0.0.22'"
)


def name_of(path):
    return str(path.relative_to(repository.ROOT))


def write_packages(folder, packages):
    """Writes the metadata of packages, as pip does."""
    for name, version in packages.items():
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Returns a function that makes exactly the given packages appear installed."""

    def install_only(**versions):
        packages = {name.replace("_", "-"): v for name, v in versions.items()}
        write_packages(tmp_path, packages)
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        return str(tmp_path / "libtpu/libtpu.so")

    return install_only


@pytest.mark.parametrize(
    ("build", "libtpu", "fits"),
    [
        ("2.20.0", "0.0.13", False),
        ("2.20.0", "0.0.14", True),
        ("2.20.0", "0.0.21", True),
        ("2.20.0", "0.0.21.1", True),
        ("2.20.0", "0.0.21.dev20250820", True),
        ("2.20.0", "0.0.22", False),
        ("2.20.0", "0.0.42.1", False),
        ("2.20.0", "0.0.52", False),
        ("2.20.0", "0.1.dev20251001+nightly", False),
        ("2.20.1rc0", "0.0.52", False),
        ("2.19.1", "0.0.10", True),
        ("2.19.1", "0.0.10.1", False),
        ("2.19.1", "0.0.21", False),
        (
            "2.18.0",
            "2.18.0",
            True,
        ),  # Not in the table; its wheel requires exactly this version.
    ],
)
def test_versions_that_would_abort_are_refused(install, build, libtpu, fits):
    install(tensorflow_tpu=build, libtpu=libtpu)
    if fits:
        checks.check(build, {})
    else:
        with pytest.raises(errors.UserError, match=f"libtpu {re.escape(libtpu)} does "):
            checks.check(build, {})


def test_pjrt_refuses_the_tpu_build_of_tensorflow(install):
    install(tensorflow_cpu="2.20.0", jax="0.10.2", libtpu="0.0.42.1")
    checks.check_no_tpu_build()
    checks.run(uses_tpu=True)  # Without the build it does nothing.
    assert PLUGIN not in os.environ and "TPU_LOAD_LIBRARY" not in os.environ
    install(tensorflow_tpu="2.20.0", libtpu="0.0.21.1")
    message = "needs TensorFlow for CPUs, but tensorflow-tpu 2.20.0 is installed"
    with pytest.raises(errors.UserError, match=message):
        checks.check_no_tpu_build()


def test_the_refusal_contains_the_command_that_corrects_it(install):
    install(tensorflow_tpu="2.20.0", libtpu="0.0.52")
    with pytest.raises(errors.UserError) as caught:
        checks.check("2.20.0", {})
    assert str(caught.value) == MISFIT


def test_a_libtpu_of_the_machines_image_is_not_checked(install):
    install(tensorflow_tpu="2.20.0")
    checks.check("2.20.0", {})


def test_only_the_library_that_is_loaded_is_checked(install):
    library = install(tensorflow_tpu="2.20.0", libtpu="0.0.52")
    checks.check("2.20.0", {"TPU_LIBRARY_PATH": "/lib/libtpu.so"})
    checks.check("2.20.0", {"TPU_LOAD_LIBRARY": "0"})
    for chosen in ("", library):
        with pytest.raises(errors.UserError):
            checks.check("2.20.0", {"TPU_LIBRARY_PATH": chosen})


@pytest.mark.parametrize("other", ["tensorflow", "tensorflow-cpu", "tf-nightly"])
def test_two_builds_of_tensorflow_are_refused(install, other):
    install(tensorflow_tpu="2.20.0", libtpu="0.0.21", **{other: "2.21.0"})
    with pytest.raises(errors.UserError) as caught:
        checks.check("2.20.0", {"TPU_LOAD_LIBRARY": "0"})
    assert str(caught.value) == (
        f"{other} 2.21.0 and tensorflow-tpu 2.20.0 are both installed, and each "
        f"overwrites the other; run: pip uninstall -y {other} tensorflow-tpu && "
        "pip install 'tensorflow-tpu==2.20.0' 'libtpu>=0.0.14,<0.0.22'"
    )


def test_a_plugin_without_its_library_is_refused(install):
    install(tensorflow_tpu="2.20.0", libtpu="0.0.21")
    environment = {"TPU_LOAD_LIBRARY": "0", PLUGIN: "/lib/libtpu.so"}
    with pytest.raises(errors.UserError, match=f"run: unset {PLUGIN}"):
        checks.check("2.20.0", environment)


def test_the_extras_require_the_checked_versions():
    extras = (repository.ROOT / "pyproject.toml").read_text()
    for build, libtpu in checks.LIBTPU.items():
        assert re.search(rf'"tensorflow-tpu[=~]={build}\.\d", "{libtpu}"', extras)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("v2-8", False),
        ("v3-32", False),
        ("v4-16", False),
        ("v5litepod-8", True),
        ("v5p-8", True),
        ("v6e-16", True),
        ("tpu-v5-lite-podslice", True),
        ("tpu7x-8", True),
    ],
)
def test_the_accelerator_type_decides_whether_a_tpu_needs_pjrt(
    tmp_path, kind, expected
):
    assert checks.needs_pjrt({"TPU_ACCELERATOR_TYPE": kind}, tmp_path) == expected


@pytest.mark.parametrize(
    ("vendor", "chip", "expected"),
    [
        ("0x1ae0", "0x0027", False),  # v2, v3
        ("0x1ae0", "0x005e", False),  # v4
        ("0x1ae0", "0x0062", True),  # v5p
        ("0x1ae0", "0x0063", True),  # v5e
        ("0x1ae0", "0x006f", True),  # v6e
        ("0x1ae0", "0x0042", False),  # The network card of Google's machines.
        ("0x10de", "0x0063", False),
    ],
)
def test_without_an_accelerator_type_the_pci_devices_decide(
    tmp_path, vendor, chip, expected
):
    for slot, ids in {"0": ("0x8086", "0x1237"), "5": (vendor, chip)}.items():
        (tmp_path / slot).mkdir()
        (tmp_path / slot / "vendor").write_text(f"{ids[0]}\n")
        (tmp_path / slot / "device").write_text(f"{ids[1]}\n")
    (tmp_path / "6").mkdir()  # A device that disappears while it is read.
    assert checks.needs_pjrt({}, tmp_path) == expected


def test_a_machine_without_pci_has_no_tpu(tmp_path):
    assert not checks.needs_pjrt({}, tmp_path / "absent")


def test_tpus_from_v5_on_need_four_variables(install):
    library = install(tensorflow_tpu="2.20.0", libtpu="0.0.21")
    environment = {"TPU_ACCELERATOR_TYPE": "v5litepod-8"}
    checks.set_pjrt_variables(environment)
    assert environment == {
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "PJRT_DEVICE": "TPU",
        "NEXT_PLUGGABLE_DEVICE_USE_C_API": "true",
        PLUGIN: library,
        "TF_XLA_FLAGS": "--tf_mlir_enable_mlir_bridge=true",
    }


def test_variables_that_the_user_set_remain(install):
    install(tensorflow_tpu="2.20.0", libtpu="0.0.21")
    environment = {
        "TPU_ACCELERATOR_TYPE": "v6e-8",
        "PJRT_DEVICE": "CPU",
        "NEXT_PLUGGABLE_DEVICE_USE_C_API": "false",
        PLUGIN: "/lib/libtpu.so",
        "TF_XLA_FLAGS": "--tf_mlir_enable_mlir_bridge=false",
    }
    before = dict(environment)
    checks.set_pjrt_variables(environment)
    assert environment == before
    environment["TF_XLA_FLAGS"] = "--tf_xla_clustering_debug"
    checks.set_pjrt_variables(environment)
    added = "--tf_xla_clustering_debug --tf_mlir_enable_mlir_bridge=true"
    assert environment["TF_XLA_FLAGS"] == added


@pytest.mark.parametrize(
    "environment",
    [
        {"TPU_ACCELERATOR_TYPE": "v3-8"},
        {"TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_LOAD_LIBRARY": "0"},
    ],
)
def test_older_tpus_and_programs_without_one_get_no_variables(install, environment):
    install(tensorflow_tpu="2.20.0", libtpu="0.0.21")
    before = dict(environment)
    checks.set_pjrt_variables(environment)
    assert environment == before


def test_without_a_libtpu_package_no_variables_are_set(install):
    install(tensorflow_tpu="2.20.0")
    environment = {"TPU_ACCELERATOR_TYPE": "v5litepod-8"}
    checks.set_pjrt_variables(environment)
    assert list(environment) == ["TPU_ACCELERATOR_TYPE"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"TPU_LOAD_LIBRARY": "0"}),
        ({"TPU_LOAD_LIBRARY": "1"}, {"TPU_LOAD_LIBRARY": "1"}),
        ({PLUGIN: "x.so"}, {PLUGIN: "x.so"}),
    ],
)
def test_a_program_on_the_cpu_does_not_load_libtpu(before, after):
    environment = dict(before)
    checks.leave_tpu(environment)
    assert environment == after


@pytest.mark.parametrize("uses_tpu", [True, False])
def test_without_a_tpu_build_nothing_happens(install, uses_tpu):
    install(tensorflow_cpu="2.20.0", libtpu="0.0.42.1", jax="0.10.2")
    before = dict(os.environ)
    checks.run(uses_tpu=uses_tpu)
    assert dict(os.environ) == before


@pytest.mark.parametrize("path", PROGRAMS, ids=name_of)
def test_every_program_imports_startup_first(path):
    first = next(
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    )
    device = "tpu" if name_of(path) in USES_TPU else "cpu"
    assert ast.unparse(first) == f"import retinanet_tpu.startup.{device}"


@pytest.mark.parametrize("path", PROGRAMS, ids=name_of)
def test_every_program_refuses_wrong_versions_in_one_line(tmp_path, path):
    write_packages(tmp_path, {"tensorflow-tpu": "2.20.0", "libtpu": "0.0.52"})
    (tmp_path / "tensorflow.py").write_text("import os\nos.abort()\n")
    name = path.relative_to(repository.ROOT).with_suffix("")
    is_command = name.parts[0] == "retinanet_tpu"
    # -S hides the packages that are really installed.
    ended = subprocess.run(
        [
            sys.executable,
            "-S",
            *(["-m", ".".join(name.parts)] if is_command else [path]),
        ],
        env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{repository.ROOT}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (1, f"error: {MISFIT}\n")
