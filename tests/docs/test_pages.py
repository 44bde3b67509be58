"""Links, paths and module names of all pages."""

import re

import pytest

import repository
import retinanet_tpu

PAGES = sorted(
    [*repository.ROOT.glob("*.md"), *(repository.ROOT / "docs").rglob("*.md")]
)


def name_of(path):
    return str(path.relative_to(repository.ROOT))


def anchors_of(page):
    """Returns the anchors of a page's headings, as Markdown renderers make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


def prose_of(page):
    return re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor and there.suffix == ".md":
            assert anchor in anchors_of(there), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_path_of_the_repository_exists(page):
    if page.name == "CHANGELOG.md":  # It has old paths.
        return
    text = page.read_text("utf-8")
    pattern = r"(?<![\w/.{-])((?:tools|tests|docs|gin_configs)/[\w./-]*\w)"
    for path in set(re.findall(pattern, text)):
        assert (repository.ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_module_that_is_named_exists(page):
    for name in set(re.findall(r"\bretinanet_tpu(?:\.[a-z_0-9]+)+", prose_of(page))):
        parts = name.split(".")
        while len(parts) > 1 and not _is_module(parts):
            parts.pop()
        is_attribute = hasattr(retinanet_tpu, name.split(".")[1])
        assert len(parts) > 1 or is_attribute, name


def _is_module(parts):
    path = repository.ROOT.joinpath(*parts)
    return path.is_dir() or path.with_suffix(".py").exists()


def test_every_page_of_docs_is_in_the_navigation():
    text = (repository.ROOT / "mkdocs.yml").read_text("utf-8")
    listed = set(re.findall(r"[\w/]+\.md", text))
    pages = {
        str(page.relative_to(repository.ROOT / "docs"))
        for page in PAGES
        if "docs" in page.relative_to(repository.ROOT).parts
    }
    assert listed == pages
