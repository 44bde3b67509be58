import os

import numpy as np
import pytest
from PIL import Image

import photo_folder
from retinanet_tpu.data import photographs


@pytest.fixture
def photos(tmp_path):
    return photo_folder.write(tmp_path / "photos")


def names_of(paths):
    return [os.path.basename(path) for path in paths]


def test_images_come_from_folders_globs_and_files_once_each(photos):
    folder = str(photos)
    assert names_of(photographs.find([folder])) == ["a.jpg", "b.png", "broken.jpg"]
    assert names_of(photographs.find([f"{folder}/*.jpg"])) == ["a.jpg", "broken.jpg"]
    both = [f"{folder}/b.png", f"{folder}/?.???"]
    assert names_of(photographs.find(both)) == ["b.png", "a.jpg"]


def test_file_with_the_letters_of_a_glob_in_its_name_is_found(photos):
    path = str(photos / "c[1].jpg")
    Image.new("RGB", (5, 5)).save(path)
    assert photographs.find([path]) == [path]


@pytest.mark.parametrize("pattern", ["*.webp", "absent.jpg", "empty"])
def test_pattern_without_pictures_is_refused(photos, pattern):
    (photos / "empty").mkdir()
    with pytest.raises(ValueError, match=r"--images=.* matches no picture"):
        photographs.find([str(photos), str(photos / pattern)])
    with pytest.raises(ValueError, match="set --images"):
        photographs.find([])


def test_picture_is_turned_by_its_exif_orientation(tmp_path):
    picture = Image.new("RGB", (40, 20), (255, 0, 0))
    picture.paste((0, 0, 255), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera stood on its side: turn clockwise to view.
    picture.save(tmp_path / "turned.png", exif=exif)
    image = photographs.load(str(tmp_path / "turned.png"))
    assert image.shape == (40, 20, 3)
    assert tuple(image[5, 10]) == (0, 0, 255) and tuple(image[35, 10]) == (255, 0, 0)


@pytest.mark.parametrize(
    ("mode", "color", "name", "expected"),
    [
        ("L", 200, "x.png", (200, 200, 200)),
        ("RGBA", (10, 200, 30, 128), "x.png", (10, 200, 30)),
        ("LA", (77, 10), "x.png", (77, 77, 77)),
        ("P", 0, "x.png", (0, 0, 0)),
        ("CMYK", (0, 255, 255, 0), "x.jpg", (255, 0, 0)),
    ],
)
def test_every_color_mode_becomes_rgb(tmp_path, mode, color, name, expected):
    Image.new(mode, (16, 8), color).save(tmp_path / name)
    image = photographs.load(str(tmp_path / name))
    assert image.shape == (8, 16, 3) and image.dtype == np.uint8
    np.testing.assert_allclose(image[4, 8], expected, atol=3)


def test_picture_of_16_bits_keeps_its_shades(tmp_path):
    shades = np.array([[0, 1 << 8, 128 << 8, 255 << 8]], np.uint16)
    Image.fromarray(shades).save(tmp_path / "deep.png")
    image = photographs.load(str(tmp_path / "deep.png"))
    np.testing.assert_array_equal(image[0, :, 1], [0, 1, 128, 255])


def test_truncated_picture_is_named(tmp_path):
    path = tmp_path / "cut.jpg"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (99, 99, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cut\.jpg cannot be read"):
        photographs.load(str(path))
    with pytest.raises(ValueError, match=r"absent\.jpg cannot be read"):
        photographs.load(str(tmp_path / "absent.jpg"))
