"""The page that runs a detector, written with a tiny runtime and model."""

import base64
import gzip
import hashlib
import html.parser
import json
import re

import pytest

from retinanet_tpu import errors
from retinanet_tpu.serving.browser import onnxruntime_web, page

HOSTILE = "</script><img src=x onerror=alert(1)>{0}&'\""
RUNTIME = onnxruntime_web.Runtime(
    version="1.2.3",
    script="var ort = '</script>';\n//# sourceMappingURL=ort.js.map\n",
    module="export default 1;\n//# sourceMappingURL=m.map",
    wasm=b"\0asm",
)
MODEL = bytes(range(256)) * 40


class Reader(html.parser.HTMLParser):
    """Collects the elements of a page and the text in each kind."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.texts.append("")

    def handle_data(self, data):
        self.texts[-1] += data

    def handle_endtag(self, tag):
        # The text after an element is not its own.
        self.elements.append(("", {}))
        self.texts.append("")

    def all(self, tag):
        pairs = zip(self.elements, self.texts, strict=True)
        return [(attrs, text) for (name, attrs), text in pairs if name == tag]


@pytest.fixture
def write(tmp_path):
    def write(names=None, threshold=0.3):
        path = tmp_path / "browser.html"
        names = {7: "cat"} if names is None else names
        page.write(str(path), MODEL, RUNTIME, names=names, threshold=threshold)
        return Reader(path.read_text("utf-8"))

    return write


def data_of(read):
    """Returns the texts of the elements that are data, by id."""
    return {
        attrs["id"]: text
        for attrs, text in read.all("script")
        if attrs.get("type") == "text/plain"
    }


def unpacked(text):
    return gzip.decompress(base64.b64decode(text))


def test_the_page_contains_the_model_the_runtime_and_the_settings(write):
    data = data_of(write({7: "cat", 90: "Übung"}, threshold=0.41))
    assert unpacked(data["model"]) == MODEL
    assert unpacked(data["runtime"]) == RUNTIME.wasm
    assert unpacked(data["runtime-module"]) == b"export default 1;\n"
    settings = json.loads(data["settings"])
    assert settings == {"names": {"7": "cat", "90": "Übung"}, "threshold": 0.41}


def test_equal_models_have_equal_pages(write, tmp_path):
    contents = []
    for _ in range(2):
        write()
        contents.append((tmp_path / "browser.html").read_bytes())
    assert contents[0] == contents[1]


def test_the_policy_allows_only_the_scripts_and_the_style_of_the_page(write):
    read = write()
    ((attrs, _), *_) = read.all("meta")[1:]
    assert attrs["http-equiv"] == "Content-Security-Policy"
    texts = [text for attrs, text in read.all("script") if not attrs]
    assert len(texts) == 2 and texts[0].startswith("var ort")
    texts += [text for _, text in read.all("style")]
    digests = [hashlib.sha256(text.encode()).digest() for text in texts]
    hashes = [f"'sha256-{base64.b64encode(d).decode()}'" for d in digests]
    assert attrs["content"] == (
        f"default-src 'none'; script-src {hashes[0]} {hashes[1]} blob: "
        f"'wasm-unsafe-eval'; style-src {hashes[2]}"
    )


def test_the_page_names_no_other_file(write, tmp_path):
    read = write()
    for tag, attributes in read.elements:
        assert tag not in {"link", "iframe", "object", "embed", "img", "base"}
        assert not {"src", "href", "action", "srcset", "style"} & set(attributes)
    text = re.sub(r"[\w+/=]{60,}", "", (tmp_path / "browser.html").read_text("utf-8"))
    assert not re.search(r"https?:|@import|url\(|fetch\(|sourceMappingURL", text)


def test_hostile_names_and_scripts_end_no_element(write):
    read = write({1: HOSTILE, 2: "\ud800"})
    assert len(read.all("script")) == 4 + 2 and not read.all("img")
    assert json.loads(data_of(read)["settings"])["names"]["1"] == HOSTILE
    (text, *_) = [text for _, text in read.all("p")]
    assert f"Detects 2 classes: {HOSTILE}, ?." in text
    assert RUNTIME.script.startswith("var ort = '</script>'")


def test_a_model_of_many_classes_lists_the_first(write):
    (text, *_) = [t for _, t in write({i: f"c{i}" for i in range(91)}).all("p")]
    assert "Detects 91 classes: c0, c1, " in text and "c11, …. Images" in text
    (text, *_) = [t for _, t in write({}).all("p")]
    assert "no names of classes" in text


def test_a_model_that_no_browser_can_read_is_refused(write, monkeypatch):
    monkeypatch.setattr(page, "_MAX_CHARACTERS", 100)
    with pytest.raises(errors.UserError, match="browser reads at most"):
        write()
