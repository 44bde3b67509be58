import time

import pytest

from retinanet_tpu.conversion.formats import data_yaml

MANY = 200_000
NESTED = {
    "lists": "[" * MANY,
    "mappings": "{a: " * MANY,
    "items": "- " * MANY,
    "keys": "? " * MANY,
    "lines": "".join(f"{' ' * i}a:\n" for i in range(1000)),
}
WIDE = {
    "blanks": "names:" + " " * MANY,
    "blank lines": "names: '" + "\n" * MANY + "'",
    "names": "names:\n" + "- a\n" * (MANY // 4),
    "keys": "".join(f"{i}: a\n" for i in range(MANY // 8)),
    "quotes": "names: [" + '"a", ' * (MANY // 5) + "]",
    "escapes": 'names: "' + "\\\\" * (MANY // 2) + '"',
    "colons": "names: '" + ": " * (MANY // 2) + "'",
    "digits": "names: " + "1:" * (MANY // 2) + "1",
}


def read(tmp_path, text):
    path = tmp_path / "data.yaml"
    path.write_text(text, "utf-8")
    return data_yaml.read(str(path))


def test_values_stay_as_they_are_written(tmp_path):
    text = """\
# Ultralytics
path: ../datasets/dogs
train: [images/a, images/b]
val: images/val # 128 images
test:
kpt_shape: [17, 3]
names:
  0: no
  1: 1.50
download: |
  names = 3
"""
    assert read(tmp_path, text) == {
        "path": "../datasets/dogs",
        "train": ["images/a", "images/b"],
        "val": "images/val",
        "test": "",
        "kpt_shape": ["17", "3"],
        "names": {"0": "no", "1": "1.50"},
        "download": "names = 3\n",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a, b", "data.yaml is not YAML, line "),
        ("a: b: c", "data.yaml is not YAML, line 1: mapping values"),
        ("a: &x 1\nb: *x", "line 2 has an alias"),
        ("&a [*a]", "line 1 has an alias"),
        ("a: 1\na: 2", "below line 1 is the key 'a' twice"),
        ("? [a]\n: b", "below line 1 is a key that is not text"),
        ("a: 1\n---\na: 2", "second document"),
        ("".join(f"%TAG !{i}! a\n" for i in range(MANY // 4)), "line with %TAG"),
        ("a: \x01", "cannot be read: .*not allowed"),
        ("- a", "is not a mapping"),
        ("a", "is not a mapping"),
        ("", "is not a mapping"),
    ],
)
def test_a_file_that_is_not_a_yaml_mapping_is_an_error(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize("text", NESTED.values(), ids=NESTED)
def test_deep_nesting_is_an_error_within_seconds(tmp_path, text):
    start = time.process_time()
    with pytest.raises(ValueError, match="nested more than 20 levels"):
        read(tmp_path, text)
    assert time.process_time() - start < 2


@pytest.mark.parametrize("text", WIDE.values(), ids=WIDE)
def test_a_large_file_is_read_within_seconds(tmp_path, text):
    start = time.process_time()
    assert read(tmp_path, text)
    assert time.process_time() - start < 5


def test_a_file_above_the_size_limit_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="1,000,006 characters"):
        read(tmp_path, "names:" + " " * 1_000_000)
