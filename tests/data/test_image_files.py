import os

import numpy as np
import pytest
from PIL import Image

import annotation_files
import photo_folder
from retinanet_tpu import errors
from retinanet_tpu.data import image_files


@pytest.fixture
def photos(tmp_path):
    return photo_folder.write(tmp_path / "photos")


def names_of(paths):
    return [os.path.basename(path) for path in paths]


def test_images_of_folders_globs_and_files_are_returned_once(photos):
    folder = str(photos)
    assert names_of(image_files.find([folder])) == ["a.jpg", "b.png", "broken.jpg"]
    assert names_of(image_files.find([f"{folder}/*.jpg"])) == ["a.jpg", "broken.jpg"]
    both = [f"{folder}/b.png", f"{folder}/?.???"]
    assert names_of(image_files.find(both)) == ["b.png", "a.jpg"]


def test_other_extensions_are_found_in_folders_on_request(photos):
    (photos / "clip.MP4").write_bytes(b"")
    extensions = (".mp4", ".png")
    found = image_files.find([str(photos)], extensions=extensions)
    assert names_of(found) == ["b.png", "clip.MP4"]


def test_a_file_name_with_glob_characters_is_found(photos):
    path = str(photos / "c[1].jpg")
    Image.new("RGB", (5, 5)).save(path)
    assert image_files.find([path]) == [path]


@pytest.mark.parametrize("pattern", ["*.webp", "absent.jpg", "empty"])
def test_a_pattern_without_images_is_an_error(photos, pattern):
    (photos / "empty").mkdir()
    with pytest.raises(ValueError, match=r"--images=.* matches no image"):
        image_files.find([str(photos), str(photos / pattern)])
    with pytest.raises(ValueError, match="set --images"):
        image_files.find([])


def test_a_16_bit_image_keeps_its_gray_levels(tmp_path):
    levels = np.array([[0, 1 << 8, 128 << 8, 255 << 8]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    image = image_files.load(str(tmp_path / "deep.png"))
    np.testing.assert_array_equal(image[0, :, 1], [0, 1, 128, 255])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "as an image: 0 bytes"),
        (b"text", "as an image: of no known format"),
        (annotation_files.giant_png(100_000), r"Image size \(10000000000 pixels\) exc"),
        (None, "Is a directory"),
    ],
    ids=["empty", "text", "giant", "directory"],
)
def test_a_file_that_is_no_image_is_an_error_with_its_name(tmp_path, content, message):
    path = tmp_path / "x.jpg"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(errors.UserError, match=rf"x\.jpg cannot be read.*{message}"):
        image_files.load(str(path))


def test_a_truncated_image_is_an_error_with_its_name(tmp_path):
    path = tmp_path / "cut.jpg"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (99, 99, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(errors.UserError, match=r"cut\.jpg cannot be read"):
        image_files.load(str(path))
    with pytest.raises(errors.UserError, match=r"absent\.jpg cannot be read"):
        image_files.load(str(tmp_path / "absent.jpg"))


def test_brackets_in_a_folder_name_are_not_a_glob(tmp_path):
    photos = photo_folder.write(tmp_path / "run[lr=0.1]*")
    assert names_of(image_files.find([str(photos)])) == ["a.jpg", "b.png", "broken.jpg"]
    assert names_of(image_files.find([f"{photos}/?.[jp]*g"])) == ["a.jpg", "b.png"]
    assert names_of(image_files.find([f"{tmp_path}/*/a.jpg"])) == ["a.jpg"]


def test_a_file_name_that_is_not_utf_8_is_found_and_is_an_error_when_loaded(photos):
    path = os.fsencode(photos) + b"/caf\xe9.jpg"
    with open(path, "wb") as file:
        file.write(b"no matter")
    paths = image_files.find([str(photos)])
    assert os.fsdecode(path) in paths and len(paths) == 4
    for pattern in (os.fsdecode(path), f"{photos}/caf*"):
        assert image_files.find([pattern]) == [os.fsdecode(path)]
        with pytest.raises(errors.UserError, match=r"caf\\udce9\.jpg.*not UTF-8; rena"):
            image_files.load(os.fsdecode(path))
