import pytest

from retinanet_tpu.conversion.formats import yolo_names


def read(tmp_path, text, name="data.yaml"):
    path = tmp_path / name
    path.write_text(text, "utf-8")
    return {c["id"]: c["name"] for c in yolo_names.read(str(path))}


@pytest.mark.parametrize(
    "text",
    [
        "names: ['cat', \"big dog\", 猫]",
        "names: [cat, big dog, 猫]\nnc: 3",
        "nc: 3\nnames:\n- cat\n- big dog\n- '猫'\ntrain: x",
        "names:   # three\n  - cat   # first\n\n  # one more\n  - big dog\n  - 猫\n",
        "names:\n  0: cat\n  1: 'big dog'\n  2: \"\\u732b\"\nval: y\n",
        "names: {0: cat, 1: big dog, 2: 猫}",
        "names: ['cat',\n        'big dog',\n        '猫',\n       ]\nnc: 3",
        "names:\n  '1': big dog\n  '0': cat\n  2: 猫",
        "names: \r\n- cat\r\n- big dog\r\n- 猫\r\n",
        "\ufeffnames: [cat, big dog, 猫]",
    ],
)
def test_lists_and_maps_are_read_like_yaml(tmp_path, text):
    assert read(tmp_path, text) == {0: "cat", 1: "big dog", 2: "猫"}


def test_numbers_may_have_gaps(tmp_path):
    for count in ("", "nc: 2\n", "nc: 18\n"):
        text = f"{count}names:\n  3: cat\n  17: dog"
        assert read(tmp_path, text) == {3: "cat", 17: "dog"}


def test_the_data_file_of_darknet_is_no_list_of_names(tmp_path):
    with pytest.raises(ValueError, match=r"pass the file of its line `names = ...`"):
        read(tmp_path, "classes = 1\nnames = obj.names\n", "obj.data")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("names: ['it''s']", "it's"),
        ("names:\n- traffic, light", "traffic, light"),
        ("names:\n- C#", "C#"),
        ('names: ["a: b"]', "a: b"),
        ("names:\n- 10-pin", "10-pin"),
        ("names:\n- no", "no"),
        ("names:\n- 1.50", "1.50"),
        ("names:\n- |\n  a", "a"),
    ],
)
def test_names_may_contain_special_characters(tmp_path, text, name):
    assert read(tmp_path, text) == {0: name}


@pytest.mark.parametrize(
    "text",
    [
        "names: coco.names",
        "names:\n  person:\n    id: 0",
        "names: [a, [b]]",
        "names: {a: b}",
        "names: {1: a, 01: b}",
        "names: {-1: a}",
        "names: {1234567890123: a}",
        "names: []",
        "names:",
    ],
)
def test_unsupported_notations_ask_for_a_list(tmp_path, text):
    with pytest.raises(ValueError, match=r"data\.yaml: cannot read.*--classes"):
        read(tmp_path, text)


def test_yaml_must_have_names_and_as_many_as_nc(tmp_path):
    with pytest.raises(ValueError, match=r"has no `names`.*--classes"):
        read(tmp_path, "nc: 3\nnested:\n  names: [a]")
    with pytest.raises(ValueError, match="has nc: 3 and 2 names"):
        read(tmp_path, "nc: 3\nnames: [a, b]")


def test_text_has_a_name_on_each_line(tmp_path):
    names = read(tmp_path, "cat\nbig dog \n猫\n\n", "classes.txt")
    assert names == {0: "cat", 1: "big dog", 2: "猫"}
    with pytest.raises(ValueError, match="no name for class 1"):
        read(tmp_path, "cat\n\ndog\n", "classes.txt")
    with pytest.raises(ValueError, match="is empty"):
        read(tmp_path, "\n", "classes.txt")
