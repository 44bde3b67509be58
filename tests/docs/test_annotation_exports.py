"""Runs each command of the page of annotation exports on an export of that tool."""

import json
import re
import shlex

import pytest

import export_folders
import repository
import tool_processes
from retinanet_tpu.data import category_map

PAGE = (repository.ROOT / "docs/reference/annotation_exports.md").read_text("utf-8")
ROWS = re.findall(r"^\| (.+?) \| (.+?) \| `(--.+?)` \|$", PAGE, re.MULTILINE)
COMMANDS = {f"{tool}, {export}": flags for tool, export, flags in ROWS}


@pytest.fixture(scope="module")
def convert():
    with tool_processes.serve("convert") as run_once:
        yield run_once


def boxes(path):
    """Returns the class, left, top and size of the boxes of each image of a split."""
    content = json.loads(path.read_text("utf-8"))
    names = {c["id"]: c["name"] for c in content["categories"]}
    by_image = {image["id"]: [] for image in content["images"]}
    for item in content["annotations"]:
        by_image[item["image_id"]].append((names[item["category_id"]], *item["bbox"]))
    return [sorted(of_image) for of_image in by_image.values()]


def expected_boxes(image):
    return sorted(
        (b.name, b.xmin, b.ymin, b.xmax - b.xmin, b.ymax - b.ymin) for b in image.boxes
    )


def test_the_page_has_the_exports_that_are_tested_here():
    assert list(COMMANDS) == list(export_folders.EXPORTS)


@pytest.mark.long
@pytest.mark.parametrize("export", COMMANDS)
def test_a_command_of_the_page_converts_the_export(convert, tmp_path, export):
    folder, output = tmp_path / "DS", tmp_path / "out"
    folder.mkdir()
    export_folders.EXPORTS[export](folder)
    # A fraction of 0.2 of so few images may leave the validation split empty.
    command = COMMANDS[export].replace("=DS", f"={folder}").replace("=0.2", "=0.5")
    result = convert(f"--output_dir={output}", *shlex.split(command))
    assert result.returncode == 0, result.stderr
    assert category_map.read(str(output / "categories.json")).names == ["cat", "dog"]
    converted = boxes(output / "train.json") + boxes(output / "val.json")
    assert sorted(converted) == sorted(map(expected_boxes, export_folders.IMAGES))
