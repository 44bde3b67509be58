import posixpath

import pytest
import tensorflow as tf

from retinanet_tpu.conversion.formats import documents, files


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_images_are_found_by_extension_in_all_subfolders(tmp_path):
    touch(tmp_path, "b.JPG", "ä b.webp", "x.y/c.tiff", "x.y/z/d.bmp")
    touch(tmp_path, "a.json", "a.txt", "x.y/README", "c.xml", "z.npy")
    names = files.list_images(str(tmp_path))
    assert names == ["b.JPG", "x.y/c.tiff", "x.y/z/d.bmp", "ä b.webp"]
    assert files.list_files(str(tmp_path), ".xml") == ["c.xml"]


def test_folders_of_remote_file_systems_are_listed():
    tf.io.gfile.makedirs("ram://walk/b")
    for path in ("ram://walk/a.jpg", "ram://walk/b/c.png"):
        with tf.io.gfile.GFile(path, "w") as file:
            file.write("x")
    assert files.list_images("ram://walk") == ["a.jpg", "b/c.png"]


def test_a_missing_or_empty_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No folder .*nowhere"):
        files.list_images(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"contains no \.xml file; check --ann"):
        files.list_files(str(tmp_path), ".xml")


def test_the_error_for_a_missing_folder_names_the_folders_beside_it(tmp_path):
    touch(tmp_path, "train/a.jpg", "valid/b.jpg", "c.jpg")
    with pytest.raises(FileNotFoundError, match=r"val; .* has train, valid\.$"):
        files.list_images(str(tmp_path / "val"))
    with pytest.raises(FileNotFoundError, match=r"c\.jpg is a file; a folder was"):
        files.list_images(str(tmp_path / "c.jpg"))
    with pytest.raises(FileNotFoundError, match=r"train is a folder; a file was"):
        files.read_bytes(str(tmp_path / "train"))


def test_circular_links_hidden_folders_and_system_files_are_skipped(tmp_path):
    touch(tmp_path, "a.jpg", "._a.jpg", "__MACOSX/b.jpg", ".cache/c.jpg", ".d.jpg")
    touch(tmp_path, "x/y/e.jpg")
    (tmp_path / "x/y/again").symlink_to(tmp_path / "x")
    (tmp_path / "linked").symlink_to(tmp_path / "x/y")
    assert files.list_images(str(tmp_path)) == [
        ".d.jpg", "a.jpg", "linked/e.jpg", "x/y/e.jpg",
    ]  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_read_by_its_byte_order_mark(encoding):
    assert files.decode("Äpfel\r\n".encode(encoding), "a.csv") == "Äpfel\r\n"
    with pytest.raises(ValueError, match=r"a\.csv is not UTF-8 text .line 2: .*save"):
        files.decode("a\nÄpfel\n".encode("latin-1"), "a.csv")


def match(image_folder, **names):
    """Returns the image of each annotation, a list where several fit equally well."""
    matches = image_folder.match({key: [[name]] for key, name in names.items()})
    return matches.names | matches.several


@pytest.mark.parametrize(
    "path",
    ["sub/a.jpg", "./sub/a.jpg", "sub/../sub/a.jpg", "/data/images/sub/a.jpg",
     "../images/sub/a.jpg", "images/sub/a.jpg"],
)  # fmt: skip
def test_paths_are_relative_to_the_folder_or_to_the_annotation_file(path):
    image_folder = files.ImageFolder("/data/images", ["other/a.jpg", "sub/a.jpg"])
    beside = "/data" if path.startswith("images") else "/data/labels"
    matches = image_folder.match({"x": [[path, posixpath.join(beside, path)]]})
    assert matches == files.Matches({"x": "sub/a.jpg"}, frozenset(), {})


def test_remote_folder_keeps_its_scheme():
    image_folder = files.ImageFolder("gs://bucket/images/", ["a.jpg", "b/a.jpg"])
    assert match(image_folder, x="gs://bucket/images/a.jpg") == {"x": "a.jpg"}
    assert match(image_folder, x="gs://bucket/csv/../images/b/a.jpg") == {
        "x": "b/a.jpg"
    }


def test_an_image_that_one_annotation_names_exactly_is_not_assigned_to_another():
    image_folder = files.ImageFolder("", ["train/1.jpg", "val/2.jpg"])
    assert match(image_folder, a="train/1.jpg", b="val/1.jpg") == {"a": "train/1.jpg"}
    assert match(image_folder, b="val/1.jpg") == {"b": "train/1.jpg"}


def test_a_name_that_matches_several_images_equally_well_is_assigned_to_none():
    image_folder = files.ImageFolder("", ["train/1.jpg", "val/1.jpg", "val/2.jpg"])
    assert match(image_folder, a="1.jpg", b="x/val/1.jpg", c="2.png") == {
        "a": ["train/1.jpg", "val/1.jpg"],
        "b": "val/1.jpg",
        "c": "val/2.jpg",
    }


def test_several_spellings_of_a_path_may_match_one_image():
    image_folder = files.ImageFolder("/d", ["a b.jpg"])
    names = dict(a="a b.jpg", b="/d/a b.jpg", c="a%20b.jpg")
    assert match(image_folder, **names) == dict.fromkeys("abc", "a b.jpg")


def test_images_that_differ_only_in_their_extension_are_an_error():
    image_folder = files.ImageFolder("/d", ["a.jpg", "a.png"])
    assert match(image_folder, x="a.png") == {"x": "a.png"}
    with pytest.raises(ValueError, match=r"/d has a.jpg and a.png; annotations of a m"):
        match(image_folder, x="a")


def test_a_folder_has_a_file_without_extension_if_it_exists(tmp_path):
    touch(tmp_path, "a", "b.jpg")
    image_folder = files.ImageFolder(str(tmp_path), ["b.jpg"])
    names = ("a", "b.jpg", "b", "c.jpg", "")
    assert [name for name in names if image_folder.has(name)] == ["a", "b.jpg"]


def test_json_is_read_without_an_unused_key():
    text = b'\xef\xbb\xbf{"a": {"big": [1], "b": "\\u00e4"}, "big": 2}'
    assert documents.parse_json(text, "x.json", without="big") == {"a": {"b": "ä"}}


@pytest.mark.parametrize("value", ["", "1,5", "six", None])
def test_an_error_contains_the_value_that_is_not_a_number(value):
    with pytest.raises(ValueError, match="line 3: expected a number, got"):
        files.numbers(["1", value], "line 3")


@pytest.mark.parametrize("size", [("a", 1), ("nan", 1), ("inf", 1), (-1, 1)])
def test_an_invalid_image_size_is_an_error(size):
    assert files.image_size("40.0", None, "x") == (40, 0)
    with pytest.raises(ValueError, match="here: "):
        files.image_size(*size, "here")
