import pytest

from retinanet_tpu.conversion.formats import split_lists

NAMES = ["images/train/a.jpg", "images/train/b 1.JPG", "images/val/a.jpg",
         "images/val/000012.png"]  # fmt: skip


def read(tmp_path, text, name="val.txt", word="val", images_dir="/ds", names=NAMES):
    path = tmp_path / name
    path.write_text(text, "utf-8")
    return split_lists.read(str(path), word=word, names=names, images_dir=images_dir)


@pytest.mark.parametrize(
    "text",
    [
        "images/val/a.jpg\nimages/val/000012.png\n",
        "./images/val/a.jpg\n./images/val/000012.png",
        "/content/ds/images/val/a.jpg\r\n/content/ds/images/val/000012.png\r\n",
        "D:\\x\\images\\val\\a.jpg\n\n000012\n",
        "data/val/a.txt\n000012.xml\n",
        "\ufeffval/a\n000012\n000012.png",
        "val/a 1\n000012  0\nb 1 -1\n",
    ],
)
def test_lists_of_all_tools_contain_the_same_images(tmp_path, text):
    assert read(tmp_path, text) == ({NAMES[2], NAMES[3]}, [])


def test_blank_in_a_name_does_not_make_a_class_list(tmp_path):
    assert read(tmp_path, "b 1\n").names == {NAMES[1]}


def test_names_may_be_in_quotes_and_an_empty_value_is_no_split(tmp_path):
    assert read(tmp_path, "\"000012.jpg\",\n'val/a'\n").names == {NAMES[2], NAMES[3]}
    with pytest.raises(ValueError, match=r"has no 'val'; it has train\. Leave val out"):
        read(tmp_path, "train: x\nval: ~\n", "data.yaml")


def test_few_unknown_names_are_events_with_their_line(tmp_path):
    selection = read(tmp_path, "val/a\nzebra.jpg\n000012\n")
    assert selection.names == {NAMES[2], NAMES[3]}
    (event,) = selection.events
    assert event[1:] == ("val.txt, line 2", "zebra.jpg", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"val\.txt contains no image"),
        ("000012 -1\n", r"val\.txt contains no image"),
        ("x\ny\n000012\n", r"2 of 3 names in .*val\.txt, such as x, are no annotated"),
        ("a.jpg\n", r"line 1: a\.jpg may be images/train/a\.jpg or images/val/a"),
    ],
)
def test_list_of_other_images_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


def test_list_must_exist_and_be_text(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No file .*val\.txt"):
        split_lists.read(f"{tmp_path}/val.txt", word="val", names=NAMES, images_dir="/")
    (tmp_path / "val.txt").write_bytes(b"\xff\xff")
    with pytest.raises(ValueError, match="not UTF-8"):
        split_lists.read(f"{tmp_path}/val.txt", word="val", names=NAMES, images_dir="/")


@pytest.mark.parametrize(
    "text",
    [
        "val: images/val",
        "path: .\nval: images/val/",
        "path: ../datasets/gone\nval: images/val",
        "path: /content/ds\nval: images/val",
        "val: ../images/val",
        "val: ../../ds/images/val",
        "val: /content/elsewhere/val",
        "val: C:\\ds\\images\\val",
        "val: [images/val]",
        "val:\n- images/val\n- ./images/val\n",
        "valid: images/val",
        "val: val.txt",
        "val: ./val.txt",
        "path: ../ds\nval: [val.txt]",
    ],
)
def test_data_yaml_names_folders_and_lists(tmp_path, text):
    (tmp_path / "val.txt").write_text("./images/val/a.jpg\nimages/val/000012.png\n")
    selection = read(tmp_path, text, "data.yaml", images_dir=str(tmp_path))
    assert selection == ({NAMES[2], NAMES[3]}, [])


def test_folder_of_images_may_be_the_split_itself(tmp_path):
    names = ["a.jpg", "b.jpg"]
    images = str(tmp_path / "images" / "val")
    selection = read(
        tmp_path, "val: images/val", "data.yaml", images_dir=images, names=names
    )
    assert selection.names == {*names}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a]", r"has no 'val'; it has no split"),
        (
            "train: x\ntest: y\nval:",
            r"has no 'val'; it has train, test.*--split=val=KEY",
        ),
        ("val: {a: b}", r"has val: .*; expected a folder"),
        ("val: [[a]]", r"has val: .*; expected a folder"),
        (
            "val: images/none",
            r"names the folder images/none, which is neither beside it",
        ),
        ("val: none.txt", r"names the list none\.txt, which is not beside it"),
    ],
)
def test_data_yaml_without_the_split_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"data\.yaml {message}"):
        read(tmp_path, text, "data.yaml", images_dir=str(tmp_path))
