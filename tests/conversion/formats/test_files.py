import posixpath

import pytest
import tensorflow as tf

from retinanet_tpu.conversion.formats import documents, files


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_pictures_are_found_by_extension_in_all_subfolders(tmp_path):
    touch(tmp_path, "b.JPG", "ä b.webp", "x.y/c.tiff", "x.y/z/d.bmp")
    touch(tmp_path, "a.json", "a.txt", "x.y/README", "c.xml", "z.npy")
    found = files.list_images(str(tmp_path))
    assert found == ["b.JPG", "x.y/c.tiff", "x.y/z/d.bmp", "ä b.webp"]
    assert files.list_files(str(tmp_path), ".xml") == ["c.xml"]


def test_folders_of_remote_file_systems_are_walked():
    tf.io.gfile.makedirs("ram://walk/b")
    for path in ("ram://walk/a.jpg", "ram://walk/b/c.png"):
        with tf.io.gfile.GFile(path, "w") as file:
            file.write("x")
    assert files.list_images("ram://walk") == ["a.jpg", "b/c.png"]


def test_folder_that_is_absent_or_holds_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No folder .*nowhere"):
        files.list_images(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"contains no \.xml file; check --ann"):
        files.list_files(str(tmp_path), ".xml")


def test_a_missing_folder_is_named_with_the_folders_beside_it(tmp_path):
    touch(tmp_path, "train/a.jpg", "valid/b.jpg", "c.jpg")
    with pytest.raises(FileNotFoundError, match=r"val; .* has train, valid\.$"):
        files.list_images(str(tmp_path / "val"))
    with pytest.raises(FileNotFoundError, match=r"c\.jpg is a file; a folder was"):
        files.list_images(str(tmp_path / "c.jpg"))
    with pytest.raises(FileNotFoundError, match=r"train is a folder; a file was"):
        files.read_bytes(str(tmp_path / "train"))


def test_links_in_a_circle_and_what_systems_leave_behind_are_passed_over(tmp_path):
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


def match(image_folder, **wanted):
    """Returns the image of each annotation, a list where several fit equally well."""
    matches = image_folder.match({key: [[name]] for key, name in wanted.items()})
    return matches.names | matches.several


@pytest.mark.parametrize(
    "path",
    ["sub/a.jpg", "./sub/a.jpg", "sub/../sub/a.jpg", "/data/images/sub/a.jpg",
     "../images/sub/a.jpg", "images/sub/a.jpg"],
)  # fmt: skip
def test_picture_is_found_from_the_folder_and_from_the_file_that_points(path):
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


def test_image_that_one_annotation_names_exactly_is_not_given_to_another():
    image_folder = files.ImageFolder("", ["train/1.jpg", "val/2.jpg"])
    assert match(image_folder, a="train/1.jpg", b="val/1.jpg") == {"a": "train/1.jpg"}
    assert match(image_folder, b="val/1.jpg") == {"b": "train/1.jpg"}


def test_name_that_fits_several_images_equally_well_is_none_of_them():
    image_folder = files.ImageFolder("", ["train/1.jpg", "val/1.jpg", "val/2.jpg"])
    assert match(image_folder, a="1.jpg", b="x/val/1.jpg", c="2.png") == {
        "a": ["train/1.jpg", "val/1.jpg"],
        "b": "val/1.jpg",
        "c": "val/2.jpg",
    }


def test_paths_of_one_name_may_point_to_one_image():
    image_folder = files.ImageFolder("/d", ["a b.jpg"])
    wanted = dict(a="a b.jpg", b="/d/a b.jpg", c="a%20b.jpg")
    assert match(image_folder, **wanted) == dict.fromkeys("abc", "a b.jpg")


def test_images_that_differ_in_their_ending_only_are_an_error():
    image_folder = files.ImageFolder("/d", ["a.jpg", "a.png"])
    assert match(image_folder, x="a.png") == {"x": "a.png"}
    with pytest.raises(ValueError, match=r"/d has a.jpg and a.png; annotations of a m"):
        match(image_folder, x="a")


def test_a_file_without_extension_is_there_if_it_exists(tmp_path):
    touch(tmp_path, "a", "b.jpg")
    image_folder = files.ImageFolder(str(tmp_path), ["b.jpg"])
    found = {name: image_folder.has(name) for name in ("a", "b.jpg", "b", "c.jpg", "")}
    assert [name for name, is_there in found.items() if is_there] == ["a", "b.jpg"]


def test_json_is_read_without_what_is_not_needed():
    text = b'\xef\xbb\xbf{"a": {"big": [1], "b": "\\u00e4"}, "big": 2}'
    assert documents.parse_json(text, "x.json", without="big") == {"a": {"b": "ä"}}


@pytest.mark.parametrize("value", ["", "1,5", "six", None])
def test_what_is_no_number_is_named(value):
    with pytest.raises(ValueError, match="line 3: expected a number, got"):
        files.numbers(["1", value], "line 3")


@pytest.mark.parametrize("size", [("a", 1), ("nan", 1), ("inf", 1), (-1, 1)])
def test_size_that_is_none_is_an_error(size):
    assert files.image_size("40.0", None, "x") == (40, 0)
    with pytest.raises(ValueError, match="here: "):
        files.image_size(*size, "here")
