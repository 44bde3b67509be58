"""The wheel: what it contains, and that it works outside of the checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest

import repository

pytestmark = pytest.mark.long

# What these would add to sys.path hides what is installed.
HIDING = ("PYTHONPATH", "PYTHONHOME")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in HIDING}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The path of a wheel, built from a copy of the tracked files' folders."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("retinanet_tpu", "gin_configs", "setup.py", "pyproject.toml"):
        (source / name).symlink_to(repository.ROOT / name)
    for name in ("README.md", "LICENSE", "MANIFEST.in"):
        (source / name).symlink_to(repository.ROOT / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    subprocess.run(
        [*pip, "--no-build-isolation", f"--wheel-dir={folder}", str(source)], check=True
    )
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A fresh environment with the wheel; dependencies are those of this Python."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python")]
    subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)],
        check=True,
        env=ENVIRONMENT,
    )
    # Later on sys.path than the wheel. Its .pth files, such as that of an editable
    # install, are not read.
    dependencies = sysconfig.get_path("purelib")
    (packages / "dependencies.pth").write_text(f"{dependencies}\n")
    return folder


def run(environment, folder, *command):
    return subprocess.run(
        [str(environment / "bin" / command[0]), *command[1:]],
        cwd=folder,
        env=ENVIRONMENT | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )


def test_the_wheel_contains_every_gin_file_and_no_test(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    folder = repository.ROOT / "gin_configs"
    for path in folder.rglob("*.gin"):
        assert f"retinanet_tpu/gin_configs/{path.relative_to(folder)}" in names
    assert "retinanet_tpu/py.typed" in names
    for folder in ("analysis", "serving/browser"):
        for path in (repository.ROOT / "retinanet_tpu" / folder).glob("page.*"):
            assert f"retinanet_tpu/{folder}/{path.name}" in names
    assert {n.split("/")[0].partition("-")[0] for n in names} == {"retinanet_tpu"}
    assert not [n for n in names if "test" in n]


@pytest.mark.long
def test_a_gin_file_is_found_by_name_outside_of_the_checkout(environment, tmp_path):
    done = run(
        environment,
        tmp_path,
        "retinanet-tpu",
        "train",
        "--gin_file=coco_r50_640_3x.gin",
        "--dry_run",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Trainable weights: 285" in done.stdout
    assert "Trainable weights after freezing: 252" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_installed_package_is_the_wheels_and_starts_no_tensorflow(
    environment, tmp_path
):
    code = "import retinanet_tpu, sys; print(retinanet_tpu.__file__, *sys.modules)"
    done = run(environment, tmp_path, "python", "-c", code)
    path, *modules = done.stdout.split()
    assert path.startswith(str(environment)) and "tensorflow" not in modules


def test_an_unknown_gin_file_is_an_error_that_suggests_one(environment, tmp_path):
    done = run(
        environment,
        tmp_path,
        "retinanet-tpu",
        "train",
        "--gin_file=coco_r50_640_33x.gin",
        "--dry_run",
    )
    assert done.returncode == 1
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert line.startswith("error: No gin file coco_r50_640_33x.gin here or in ")
    assert line.endswith("Did you mean coco_r50_640_3x.gin?")
