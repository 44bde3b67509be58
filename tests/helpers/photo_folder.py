"""A folder of images as people have them, with what does not belong there."""

import pathlib

from PIL import Image


def write(folder: pathlib.Path) -> pathlib.Path:
    """Writes two images, a broken one and a text; returns the folder."""
    folder.mkdir()
    Image.new("RGB", (80, 60), (90, 120, 30)).save(folder / "a.jpg")
    Image.new("L", (30, 50), 128).save(folder / "b.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image either")
    return folder
