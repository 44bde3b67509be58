import hashlib
import json

import numpy as np
import PIL.Image
import pytest

import tool_processes

pytestmark = pytest.mark.long


TOOL = tool_processes.path("tools/examples/create_toy_dataset.py")


def draw(folder, *options):
    flags = (f"--output_dir={folder}", "--num_train=12", "--num_val=4", *options)
    tool_processes.run_python(TOOL, *flags).check_returncode()


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.*"))
    }


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    draw(folder)
    return folder


def test_the_same_seed_draws_the_same_bytes(toy, tmp_path):
    draw(tmp_path / "again")
    draw(tmp_path / "other", "--seed=1")
    assert digests(tmp_path / "again") == digests(toy)
    assert not set(digests(tmp_path / "other").values()) & set(digests(toy).values())


def test_files_are_coco_and_match_the_images(toy):
    for split, count in (("train", 12), ("val", 4)):
        content = json.loads((toy / f"{split}.json").read_text())
        assert {"info", "images", "annotations", "categories"} <= set(content)
        assert [c["id"] for c in content["categories"]] == [1, 2, 3, 4]
        assert len(content["images"]) == count
        for image in content["images"]:
            with PIL.Image.open(toy / split / image["file_name"]) as file:
                assert file.size == (image["width"], image["height"])
        ids = [a["id"] for a in content["annotations"]]
        assert ids == list(range(1, len(ids) + 1))


def test_images_vary_in_shape(toy):
    images = json.loads((toy / "train.json").read_text())["images"]
    aspects = [image["width"] / image["height"] for image in images]
    assert min(aspects) < 1 < max(aspects)


def test_boxes_lie_inside_and_frame_something_that_differs_from_the_background(toy):
    content = json.loads((toy / "train.json").read_text())
    images = {image["id"]: image for image in content["images"]}
    assert len(content["annotations"]) >= len(images)
    for annotation in content["annotations"]:
        image = images[annotation["image_id"]]
        x, y, width, height = annotation["bbox"]
        assert min(x, y) >= 0 and min(width, height) > 10
        assert x + width <= image["width"] and y + height <= image["height"]
        with PIL.Image.open(toy / "train" / image["file_name"]) as file:
            pixels = np.asarray(file).astype(float)
        middle = pixels[int(y + height / 2), int(x + width / 2)]
        # The background covers most of every image.
        assert np.abs(middle - np.median(pixels, axis=(0, 1))).max() > 40
