import os
import subprocess

import pytest

import repository

SCRIPT = repository.ROOT / "tools" / "deploy" / "prepare_coco_dataset.sh"
# Sparse files of the true sizes stand in for the archives.
CURL = """#!/bin/bash
echo "curl $*" >> "$CALLS"
while [[ "$1" != --output ]]; do shift; done
case "$2" in
  */train2017.zip) size=19336861798 ;;
  */val2017.zip) size=815585330 ;;
  *) size=252907541 ;;
esac
truncate -s "${FAKE_SIZE:-$size}" "$2"
"""
UNZIP = """#!/bin/bash
echo "unzip $*" >> "$CALLS"
exit ${UNZIP_STATUS:-0}
"""
PYTHON = """#!/bin/bash
echo "python $*" >> "$CALLS"
for option in "$@"; do
  case "$option" in
    --output_dir=*) folder=${option#*=} ;;
    --split=*) split=${option#*=} ;;
  esac
done
mkdir -p "$folder" && touch "$folder/$split.json"
"""


@pytest.fixture
def prepare(tmp_path):
    """Returns a function that runs the script and gives its status, text and calls."""
    (tmp_path / "bin").mkdir()
    for name, text in (("curl", CURL), ("unzip", UNZIP), ("python", PYTHON)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)

    def run(*arguments, **variables):
        calls = tmp_path / "calls"
        calls.write_text("")
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            [str(SCRIPT), *arguments],
            capture_output=True,
            text=True,
            env={"PATH": path, "CALLS": str(calls), **variables},
        )
        return (
            done.returncode,
            done.stdout + done.stderr,
            calls.read_text().splitlines(),
        )

    return run


def test_everything_is_downloaded_unpacked_and_converted_once(prepare, tmp_path):
    target = str(tmp_path / "coco target")
    status, text, calls = prepare(target)
    assert status == 0, text
    assert [call.split()[0] for call in calls] == (
        ["curl"] * 3 + ["unzip"] * 3 + ["python"] * 2
    )
    assert all("-m retinanet_tpu.convert" in call for call in calls[-2:])
    assert all("--index_by_id" in call for call in calls[-2:])
    assert "--split=val --num_shards=32" in calls[-2]
    assert "--split=train --num_shards=256" in calls[-1]
    assert f"DATA_DIR = {target}/data" in text
    assert prepare(target)[0::2] == (0, [])


def test_interrupted_download_is_resumed(prepare, tmp_path):
    status, text, calls = prepare(str(tmp_path / "coco"), FAKE_SIZE="1000")
    assert status == 1 and len(calls) == 1
    assert "1000 bytes, expected 252907541" in text
    status, _, calls = prepare(str(tmp_path / "coco"))
    assert status == 0
    assert "--continue-at -" in calls[0]


def test_interrupted_unpacking_is_repeated(prepare, tmp_path):
    assert prepare(str(tmp_path / "coco"), UNZIP_STATUS="9")[0] == 9
    status, _, calls = prepare(str(tmp_path / "coco"))
    assert status == 0
    assert [call.split()[0] for call in calls] == ["unzip"] * 3 + ["python"] * 2


@pytest.mark.parametrize("arguments", [[], ["--help"], ["a", "b"]])
def test_wrong_arguments_show_the_usage(prepare, arguments):
    status, text, calls = prepare(*arguments)
    assert status == 2 and "Usage:" in text and calls == []
