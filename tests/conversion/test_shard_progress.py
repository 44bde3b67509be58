import itertools
import json
import os

import numpy as np
import PIL.Image
import pytest

from retinanet_tpu.conversion import converter
from retinanet_tpu.data import annotations, record_files, record_index
from shard_files import contents, write

NAMES = {1: "cat", 2: "dog"}
BOX = annotations.AnnotatedObject(1, 2, (3.0, 4.0, 12.0, 9.0), 100.0, False)


def save(folder, name, width, quality=75):
    pixels = np.tile(np.linspace(0, 255, width, dtype=np.uint8), [24, 1])
    PIL.Image.fromarray(pixels).save(folder / name, quality=quality)


def many(folder, count):
    images = []
    for i in range(count):
        save(folder, f"{i}.jpg", 30 + i)
        image = annotations.AnnotatedImage(i, f"{i}.jpg", 24, 30 + i, (BOX,))
        images.append(image._replace(positive_ids=(2,), negative_ids=(1,)))
    categories = [{"id": i, "name": name} for i, name in NAMES.items()]
    return annotations.AnnotatedSet(images, categories)


class Killed(Exception):
    pass


def kill_after(count):
    """Returns a progress_fn that raises Killed after some images."""
    counter = itertools.count(1)

    def progress():
        if next(counter) == count:
            raise Killed

    return progress


@pytest.fixture
def converted_names(monkeypatch):
    """Returns a list to which the name of each converted image is appended."""
    names, convert_fn = [], converter.convert_image

    def spy(image, *arguments):
        names.append(image.file_name)
        return convert_fn(image, *arguments)

    monkeypatch.setattr(converter, "convert_image", spy)
    return names


@pytest.mark.parametrize(
    ("killed_at", "num_complete"), [(1, 0), (3, 0), (4, 1), (7, 2)]
)
def test_a_killed_conversion_resumes_with_the_incomplete_shards(
    tmp_path, converted_names, killed_at, num_complete
):
    annotated = many(tmp_path, 8)  # Shards of 3, 3 and 2.
    os.remove(tmp_path / "3.jpg")
    (tmp_path / "4.jpg").write_bytes(b"broken")
    uninterrupted = write(annotated, tmp_path, tmp_path / "complete")
    output = tmp_path / "killed"
    with pytest.raises(Killed):
        write(annotated, tmp_path, output, progress_fn=kill_after(killed_at))
    assert not record_files_named(output)
    converted_names.clear()
    done = []
    resumed = write(annotated, tmp_path, output, progress_fn=lambda: done.append(1))
    assert len(converted_names) == [8, 5, 2][num_complete] and len(done) == 8
    assert resumed == uninterrupted
    assert contents(output) == contents(tmp_path / "complete")
    index = json.loads((output / "train.index.json").read_text())
    assert index == {
        name: list(record_files.scan_sizes(str(output / name)))
        for name in record_files_named(output)
    }


def record_files_named(output):
    return [p.name for p in output.iterdir() if p.name.endswith(".tfrecord")]


def test_committed_shards_are_not_written_again_until_progress_is_cleared(
    tmp_path, converted_names
):
    annotated, output = many(tmp_path, 7), tmp_path / "out"
    first = write(annotated, tmp_path, output, keep_progress=True)
    assert len(record_files_named(output)) == 3 and len(contents(output)) == 7
    converted_names.clear()
    assert write(annotated, tmp_path, output) == first
    assert converted_names == []
    assert len(record_files_named(output)) == 3 and len(contents(output)) == 4


def test_the_index_of_an_earlier_conversion_is_not_used_for_new_files(
    tmp_path, monkeypatch
):
    annotated, output = many(tmp_path, 7), tmp_path / "out"
    write(annotated, tmp_path, output)

    def killed(sizes):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(record_index, "write", killed)
        write(annotated, tmp_path, output)
    assert not (output / "train.index.json").exists()
    write(annotated, tmp_path, output)
    assert (output / "train.index.json").exists()


def interrupted(tmp_path):
    """Kills a conversion after two of three shards; returns its annotations."""
    annotated = many(tmp_path, 7)
    with pytest.raises(Killed):
        write(annotated, tmp_path, tmp_path / "out", progress_fn=kill_after(6))
    return annotated


@pytest.mark.parametrize("damage", ["image", "annotation", "names", "shard", "state"])
def test_outdated_shards_are_written_again(tmp_path, damage):
    annotated = interrupted(tmp_path)
    shard = tmp_path / "out" / "train-00000-of-00003.tfrecord.tmp"
    if damage == "image":
        save(tmp_path, "3.jpg", 33, quality=40)
    elif damage == "annotation":
        annotated.images[3] = annotated.images[3]._replace(objects=(BOX, BOX))
    elif damage == "names":
        annotated.categories[1]["name"] = "wolf"
    elif damage == "shard":
        shard.write_bytes(shard.read_bytes()[:-20])
    else:
        state = shard.with_suffix(".state")
        state.write_text(state.read_text()[:-20])
    resumed = write(annotated, tmp_path, tmp_path / "out")
    assert resumed == write(annotated, tmp_path, tmp_path / "new")
    assert contents(tmp_path / "out") == contents(tmp_path / "new")


def test_an_incomplete_shard_is_not_mistaken_for_an_older_complete_one(tmp_path):
    annotated = interrupted(tmp_path)
    before = annotated.images[0]
    annotated.images[0] = before._replace(objects=(BOX._replace(category_id=1),))
    # A record of equal length with another class, killed before its state is written.
    with pytest.raises(Killed):
        # After the two images of a complete shard and the three of this one.
        write(annotated, tmp_path, tmp_path / "out", progress_fn=kill_after(5))
    annotated.images[0] = before
    write(annotated, tmp_path, tmp_path / "out")
    write(annotated, tmp_path, tmp_path / "new")
    assert contents(tmp_path / "out") == contents(tmp_path / "new")
