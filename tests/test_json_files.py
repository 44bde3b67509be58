import json
import math

import pytest
import tensorflow as tf

from retinanet_tpu import errors, json_files

VALUE = {"names": ["é", "中"], "numbers": [1, 2.5, None]}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_the_encoding_is_detected(tmp_path, encoding):
    path = tmp_path / "x.json"
    path.write_bytes(json.dumps(VALUE, ensure_ascii=False).encode(encoding))
    assert json_files.read(str(path)) == VALUE


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x.json is not JSON, or cut off: Expecting value"),
        (b"{", "x.json is not JSON, or cut off"),
        (b"\0\0", "x.json is not JSON, or cut off"),
        ('{"a": ', "x.json is not JSON, or cut off"),
        (b"\xff", "x.json is not JSON: not UTF-8 text."),
        (b"[" * 100_000, "x.json is nested too deeply"),
        (b"9" * 5000, "x.json is not JSON, or cut off: Exceeds the limit"),
    ],
)
def test_a_text_that_is_not_json_is_an_error_with_its_source(content, message):
    with pytest.raises(errors.UserError, match=message):
        json_files.parse(content, "x.json")


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(tf.errors.NotFoundError):
        json_files.read(f"{tmp_path}/absent.json")


def test_nan_and_infinity_become_none_on_request():
    text = "[NaN, Infinity, -Infinity, 1]"
    assert json_files.parse(text, "x", nan_to_none=True) == [None, None, None, 1]
    assert math.isnan(json_files.parse(text, "x")[0])


def test_objects_pass_through_the_hook():
    assert json_files.parse('{"a": {"b": 1}}', "x", object_hook=len) == 1
