import pytest

from retinanet_tpu.conversion.formats import name_matching

NAMES = ["train/Äpfel 1.jpg", "train/img.0001.jpg", "val/img.0002.JPG", "c.png"]
INDEX = name_matching.NameIndex(NAMES)


@pytest.mark.parametrize(
    ("written", "path"),
    [
        (r" C:\data\..\x\a.jpg ", "C:/x/a.jpg"),
        ("./a//b/./c.jpg", "a/b/c.jpg"),
        ("https://x.org/b%20c/a.jpg?key=1&b=2", "/b c/a.jpg"),
        ("file:///data/a.jpg", "/data/a.jpg"),
        ("/data/local-files/?d=photos/a%20b.jpg", "photos/a b.jpg"),
        ("http://[x/a.jpg", "/a.jpg"),
        ("gs://bucket/a.jpg", "gs://bucket/a.jpg"),
        ("a#1?.jpg", "a#1?.jpg"),
        ("", ""),
    ],
)
def test_paths_of_other_machines_become_plain_ones(written, path):
    assert name_matching.plain_path(written) == path


@pytest.mark.parametrize(
    ("path", "stem"),
    [("a.JPG", "a"), ("a.b/c.txt", "a.b/c"), ("a.0001", "a.0001"), ("a.HEIC", "a"),
     ("frame.01.xml", "frame.01"), (".jpg", ".jpg")],
)  # fmt: skip
def test_only_extensions_of_images_and_annotations_are_removed(path, stem):
    assert name_matching.stem(path) == stem


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("train/img.0001.jpg", 1),
        ("train/img.0001", 1),
        ("train/IMG.0001.png", 1),
        ("img.0001.jpg", 1),
        ("img.0001", 1),
        ("IMG.0001.HEIC", 1),
        ("D:\\set\\val\\img.0002.jpg", 2),
        ("/content/c.png", 3),
        ("labels/c.txt", 3),
        ("train/A\u0308pfel 1.jpg", 0),
        ("%C3%84pfel%201.jpg", 0),
        ("img.0003", None),
        ("mg.0001.jpg", None),
        ("train", None),
        ("", None),
        (".", None),
        ("/", None),
    ],
)
def test_file_is_found_by_the_names_that_tools_write(written, name):
    assert INDEX.find(written) == ([] if name is None else [NAMES[name]])


def test_files_may_have_the_names_of_their_urls():
    index = name_matching.NameIndex(["a%20b.jpg", "%C3%84.jpg"])
    assert index.find("x/a b.png") == ["a%20b.jpg"]
    assert index.find("Ä.jpg") == ["%C3%84.jpg"]


def test_equal_names_are_resolved_by_the_most_similar_folder():
    index = name_matching.NameIndex(["a/train/1.jpg", "b/train/1.jpg", "a/val/1.jpg"])
    assert index.find("x/a/train/1.png") == ["a/train/1.jpg"]
    assert index.find("val/1.jpg") == ["a/val/1.jpg"]
    assert index.find("train/1.jpg") == ["a/train/1.jpg", "b/train/1.jpg"]
    assert index.find("1") == index.names


def test_a_stricter_level_precedes_a_looser_one():
    index = name_matching.NameIndex(["a.jpg", "A.jpg", "a.png", "b/a.webp"])
    assert index.find("a.jpg") == ["a.jpg"]
    assert index.find("a.webp") == ["A.jpg", "a.jpg", "a.png"]
    assert index.find("x/a.webp") == ["b/a.webp"]


def test_a_url_with_an_invalid_host_has_a_path():
    assert name_matching.plain_path("http://[x/b/a%20b.jpg?k=/c#d") == "/b/a b.jpg"
