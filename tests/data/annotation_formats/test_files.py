import pytest
import tensorflow as tf

from retinanet_tpu.data.annotation_formats import files


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_pictures_are_found_by_extension_in_all_subfolders(tmp_path):
    touch(tmp_path, "b.JPG", "ä b.webp", "x.y/c.tiff", "x.y/z/d.bmp")
    touch(tmp_path, "a.json", "a.txt", "x.y/README", "c.xml", "z.npy")
    found = files.list_pictures(str(tmp_path))
    assert found == ["b.JPG", "x.y/c.tiff", "x.y/z/d.bmp", "ä b.webp"]
    assert files.list_files(str(tmp_path), ".xml") == ["c.xml"]


def test_folders_of_remote_file_systems_are_walked():
    tf.io.gfile.makedirs("ram://walk/b")
    for path in ("ram://walk/a.jpg", "ram://walk/b/c.png"):
        with tf.io.gfile.GFile(path, "w") as file:
            file.write("x")
    assert files.list_pictures("ram://walk") == ["a.jpg", "b/c.png"]


def test_folder_that_is_absent_or_holds_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No folder .*nowhere"):
        files.list_pictures(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"holds no \.xml file; check --annotations"):
        files.list_files(str(tmp_path), ".xml")


@pytest.mark.parametrize(
    "path",
    ["sub/a.jpg", "./sub/a.jpg", "sub/../sub/a.jpg", "/data/images/sub/a.jpg",
     "../images/sub/a.jpg", "images/sub/a.jpg"],
)  # fmt: skip
def test_picture_is_found_from_the_folder_and_from_the_file_that_points(path):
    pictures = files.Pictures("/data/images", ["sub/a.jpg"])
    beside = "/data" if path.startswith("images") else "/data/labels"
    assert pictures.by_path(path, beside=beside) == "sub/a.jpg"


@pytest.mark.parametrize("path", ["a.jpg", "/sub/a.jpg", "../sub/a.jpg", "", "sub"])
def test_other_paths_find_nothing(path):
    pictures = files.Pictures("/data/images", ["sub/a.jpg"])
    assert pictures.by_path(path, beside="/data/labels") is None


def test_remote_folder_keeps_its_scheme():
    pictures = files.Pictures("gs://bucket/images/", ["a.jpg"])
    assert pictures.by_path("gs://bucket/images/a.jpg", beside="gs://bucket") == "a.jpg"
    assert pictures.by_path("../images/a.jpg", beside="gs://bucket/csv") == "a.jpg"
    assert pictures.by_path("gs://other/images/a.jpg", beside="gs://bucket") is None


def test_json_is_read_without_what_is_not_needed():
    text = b'\xef\xbb\xbf{"a": {"big": [1], "b": "\\u00e4"}, "big": 2}'
    assert files.parse_json(text, "x.json", without="big") == {"a": {"b": "ä"}}


@pytest.mark.parametrize("value", ["", "1,5", "six", None])
def test_what_is_no_number_is_named(value):
    with pytest.raises(ValueError, match="line 3: expected a number, got"):
        files.numbers(["1", value], "line 3")


@pytest.mark.parametrize("size", [("a", 1), ("nan", 1), ("inf", 1), (-1, 1)])
def test_size_that_is_none_is_an_error(size):
    assert files.sides("40.0", None, "x") == (40, 0)
    with pytest.raises(ValueError, match="here: "):
        files.sides(*size, "here")
