"""The tutorial on custom data: its flags and settings exist; slow: its commands run."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

import annotation_files
import repository
from retinanet_tpu.estimator import gin_files
from retinanet_tpu.task import configurables

GUIDE = (repository.ROOT / "docs/tutorials/custom_data.md").read_text("utf-8")
COMMANDS = re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL)
CALLS = re.findall(r"python (?:-m )?(\S+.*)", "".join(COMMANDS).replace("\\\n", " "))
# What a run file of the guide says here, after all it says itself.
SHORT = (
    "IMAGE_SIZE = (128, 128)",
    "BATCH_SIZE = 4",
    "MAX_STEPS = 2",
    "EVAL_EVERY = None",
    "RunConfig.save_checkpoints_steps = 2",
    "TPUConfig.iterations_per_loop = 2",
    "cosine.warmup_steps = 1",
    "ResNet.depth = 10",
    "ResNet.width = 8",
    "FPN.num_channels = 8",
    "Heads.num_channels = 8",
)
SPLITS = {"train": range(5), "val": range(5, 8), "trainval": range(8), "test": [8, 9]}


@pytest.fixture
def work_dir(tmp_path):
    """A folder like a clone's, with images where the guide wants them."""
    pytest.importorskip("matplotlib")
    (tmp_path / "tools").symlink_to(repository.ROOT / "tools")
    (tmp_path / "gin_configs").mkdir()
    for name in {*re.findall(r"gin_configs/(\w+_r18\.gin)", GUIDE)}:
        lines = [f"include '{repository.ROOT}/gin_configs/{name}'", *SHORT]
        (tmp_path / "gin_configs" / name).write_text("\n".join(lines))
    write_photographs(tmp_path / "BCCD")
    return tmp_path


def write_photographs(folder):
    pictures = [
        annotation_files.Picture(
            f"{number}.jpg",
            160 + number,
            128,
            tuple(
                annotation_files.Box(name, 10 + 40 * i, 20, 45 + 40 * i, 60 + number)
                for i, name in enumerate(annotation_files.NAMES)
            ),
        )
        for number in range(10)
    ]
    annotation_files.draw(folder / "JPEGImages", pictures)
    annotation_files.write("voc", folder / "Annotations", pictures)
    lists = folder / "ImageSets/Main"
    lists.mkdir(parents=True)
    for split, numbers in SPLITS.items():
        (lists / f"{split}.txt").write_text("".join(f"{n}\n" for n in numbers))


def run(command, folder):
    """Runs a block of the guide; returns what it wrote."""
    programs = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    surroundings = {
        "PATH": programs,
        "PYTHONPATH": str(repository.ROOT),
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=os.environ | surroundings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}"
    return done.stdout


def flags_of(program):
    """Returns the flags that a program of the guide defines, by its source."""
    text = program.read_text()
    shared = repository.ROOT / "retinanet_tpu/task/cli.py"
    text += shared.read_text() if " cli" in text else ""
    return {*re.findall(r'DEFINE_\w+\(\s*"(\w+)"', text)}


@pytest.mark.parametrize("command", CALLS, ids=lambda call: call.split()[0])
def test_every_flag_of_the_guide_exists(command):
    module = command.split()[0]
    path = module if module.endswith(".py") else module.replace(".", "/") + ".py"
    given = {*re.findall(r" --(\w+)", command)}
    assert given <= flags_of(repository.ROOT / path)


@pytest.mark.parametrize(
    "setting", sorted({*re.findall(r'--gin_param="(.*?)"', GUIDE)})
)
def test_every_setting_of_the_guide_is_one_of_the_run(setting):
    run_file = repository.ROOT / "gin_configs/bccd_r18.gin"
    gin_files.parse([str(run_file)], [setting], known=configurables.CONFIGURABLES)


@pytest.mark.slow
def test_the_guide_leads_from_photographs_to_drawn_detections(work_dir):
    said = {command: run(command, work_dir) for command in COMMANDS}
    (report,) = [text for command, text in said.items() if "report.html" in command]
    assert "Fit to train on" in report
    (warm,) = [
        text for command, text in said.items() if "--model_dir=runs/toy" in command
    ]
    assert re.search(r"loaded +\d+ +backbone/", warm)
    assert re.search(r"mismatched +2 +heads/class/logits", warm)
    (frozen,) = [text for command, text in said.items() if "FROZEN" in command]
    assert re.search(r"Frozen by 'batch_norm': \d+ weights", frozen)
    for name in ("report.html", "anchors.gin", "curves.png"):
        assert (work_dir / name).stat().st_size > 100
    assert (work_dir / "detections/detections.json").exists()
    assert len(list((work_dir / "detections").glob("*.jpg"))) == 10
