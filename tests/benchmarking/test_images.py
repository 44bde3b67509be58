"""Tests which images are timed."""

import numpy as np
from PIL import Image

from retinanet_tpu.benchmarking import images
from retinanet_tpu.serving import annotated_images


def write(directory, sizes):
    """Writes an image of each size, whose pixels are its number."""
    files = []
    for number, size in enumerate(sizes):
        path = directory / f"{number}.png"
        Image.new("RGB", size, (number, number, number)).save(path)
        files.append(annotated_images.ImageFile(number, str(path)))
    return files


def numbers(timed):
    return timed[:, 0, 0, 0].tolist()


def test_images_of_the_most_frequent_size_are_timed_and_repeated(tmp_path):
    files = write(tmp_path, [(4, 3), (5, 3), (4, 4), (5, 3)])
    made = images.make(files, 5, description="four")
    assert made.timed.shape == (5, 3, 5, 3) and made.timed.dtype == np.uint8
    assert numbers(made.timed) == [1, 3, 1, 3, 1]
    assert made.files == files and made.truth is None
    assert numbers(images.make(files, 1, description="").timed) == [1]


def test_only_the_first_images_are_kept_in_memory(tmp_path):
    files = write(tmp_path, [(2, 2)] + [(3, 3)] * 33)
    assert numbers(images.make(files, 2, description="").timed) == [1, 2]
    assert max(numbers(images.make(files, 40, description="").timed)) == 33


def test_synthetic_images_differ(tmp_path):
    paths = images.write_synthetic(str(tmp_path), 3)
    files = [annotated_images.ImageFile(i, path) for i, path in enumerate(paths)]
    timed = images.make(files, 3, description="").timed
    assert timed.shape == (3, 480, 640, 3)
    assert not (timed[0] == timed[1]).all() and not (timed[1] == timed[2]).all()
