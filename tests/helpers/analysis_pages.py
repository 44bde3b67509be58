"""Reads the pages of analyses, and shows them in a browser."""

import html.parser
import re
import shutil
import subprocess

import pytest

# Elements that have no end tag.
VOID = {"meta", "br", "input"}


class Reader(html.parser.HTMLParser):
    """Collects the elements of a page, and checks that they are nested."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._open = [], [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self._open[-1] if self._open else "", data))

    def all(self, tag, **attributes):
        return [
            found
            for name, found in self.elements
            if name == tag and attributes.items() <= found.items()
        ]


def check_loads_nothing(text):
    """Checks that a page has no element or text that a browser would load."""
    for tag, attributes in Reader(text).elements:
        assert tag not in {"link", "iframe", "object", "embed", "img", "base"}
        for key in ("src", "href", "action", "poster", "srcset"):
            value = attributes.get(key) or "#"
            assert value.startswith(("#", "data:image/jpeg;base64,")), (tag, value)
    # Slashes of base64 data may be next to each other.
    without_data = re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", text)
    code = re.sub(r"^ *// .*$", "", without_data, flags=re.MULTILINE)
    assert not re.search(r"https?:|//|@import|url\(", code)


def title_in_browser(path, script):
    """Returns the title of a page after a script; skips without Chromium.

    The browser may neither log errors nor draw an empty page.
    """
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed.")
    text = path.read_text("utf-8")
    path.write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    profile = path.with_suffix(".profile")
    options += [f"--user-data-dir={profile}", "--virtual-time-budget=2000"]
    done = subprocess.run(
        [chromium, *options, "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "CONSOLE" not in done.stderr
    shot = path.with_suffix(".png")
    options += ["--window-size=1200,3000", f"--screenshot={shot}"]
    subprocess.run([chromium, *options, path.as_uri()], timeout=120, check=True)
    assert shot.stat().st_size > 20000
    return re.search("<title>(.*?)</title>", done.stdout)[1]
