import time

import pytest

from retinanet_tpu.conversion.formats import documents

ENTITIES = "".join(f'<!ENTITY x{i} "{f"&x{i - 1};" * 10}">' for i in range(1, 10))
LAUGHS = f'<!DOCTYPE a [<!ENTITY x0 "ha">{ENTITIES}]><a>&x9;</a>'
QUADRATIC = f'<!DOCTYPE a [<!ENTITY x "{"x" * 99_999}">]><a>{"&x;" * 99_999}</a>'
OUTSIDE = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>'
PARAMETER = '<!DOCTYPE a [<!ENTITY % x "y">%x;]><a/>'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("text", [LAUGHS, QUADRATIC, OUTSIDE, PARAMETER])
def test_entities_are_an_error(text, encoding):
    start = time.process_time()
    with pytest.raises(ValueError, match=r"a\.xml: defines entities"):
        documents.parse_xml(text.encode(encoding), where="a.xml: ")
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<a>", "a.xml: not XML, or cut off: no element found"),
        (b"", "a.xml: not XML, or cut off: no element found"),
        (b"{}", "a.xml: not XML, or cut off: not well-formed"),
        (b'<?xml version="1.0" encoding="klingon"?><a/>', "unknown encoding"),
        (b'<?xml version="1.0" encoding="gbk"?><a/>', "a.xml: not XML, or cut off"),
        (b"<a>" * 100_000, "nested more than 100 deep"),
        (b"<a>&x;</a>", "undefined entity"),
    ],
)
def test_a_file_that_is_not_xml_is_an_error(content, message):
    with pytest.raises(ValueError, match=message):
        documents.parse_xml(content, where="a.xml: ")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_elements_attributes_and_texts_are_kept(encoding):
    declared = encoding.removesuffix("-sig")
    text = f'<?xml version="1.0" encoding="{declared}"?><a b="ä"><c>ö&amp;</c> </a>'
    root = documents.parse_xml(text.encode(encoding), where="a.xml: ")
    assert (root.tag, root.attrib, root.findtext("c")) == ("a", {"b": "ä"}, "ö&")


@pytest.mark.parametrize(
    ("value", "label"),
    [("cat ", "cat"), (7, "7"), (7.0, "7"), (None, ""), ("", ""), (" ", "")],
)
def test_a_class_is_a_text_or_a_whole_number(value, label):
    assert documents.label(value, "here") == label


@pytest.mark.parametrize("value", [True, 1.5, float("nan"), [], {}])
def test_other_values_are_not_classes(value):
    with pytest.raises(ValueError, match=r"here: class is .*expected text"):
        documents.label(value, "here")


def test_an_error_does_not_show_a_long_value_in_full():
    with pytest.raises(ValueError) as error:
        documents.expect("x" * 100_000, list, "here")
    assert len(str(error.value)) < 200
