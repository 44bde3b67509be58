"""Words of docstrings, comments, messages and pages: banned ones, first lines."""

import ast
import io
import re
import tokenize

import pytest

import repository

SOURCES = sorted(
    path
    for folder in ("retinanet_tpu", "tools", "tests")
    for path in (repository.ROOT / folder).rglob("*.py")
    if path.name != "test_prose.py"
)
PRODUCT = [path for path in SOURCES if "tests" not in path.parts]
PAGES = sorted(
    [*repository.ROOT.glob("*.md"), *(repository.ROOT / "docs").rglob("*.md")]
)
OTHERS = sorted(
    path
    for folder in ("gin_configs", "tools")
    for pattern in ("*.gin", "*.sh", "*.yaml")
    for path in (repository.ROOT / folder).rglob(pattern)
)
BANNED = re.compile(
    r"\b(mend(s|ed|ing)?|luck|whomever|came of|at hand|by heart|as it comes"
    r"|(is|are) said of|looked at|wants|pictures?|photographs?|the doctor"
    r"|is damaged|go(es|ing)? on from|sound (checkpoint|data|box|file|image)s?)\b",
    re.IGNORECASE,
)
BRITISH = re.compile(
    r"\b(colou?r(?<!color)|normalis\w+|centred?|behaviour|initialis\w+|neighbour\w*"
    r"|labelled|grey|recognis\w+|serialis\w+|quantis\w+|artefacts?)\b",
    re.IGNORECASE,
)
# First words of a docstring that do not say what a function does.
RIDDLES = (
    "What",
    "Who",
    "Whether",
    "Where",
    "Tells",
    "Says",
    "Gives",
    "Takes",
    "Looks",
)


def name_of(path):
    return str(path.relative_to(repository.ROOT))


def texts_of(path):
    """Returns (line, text) of the comments and of the strings that are prose."""
    texts = []
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        is_prose = token.type == tokenize.STRING and re.search(r"\s", token.string)
        if is_prose or token.type == tokenize.COMMENT:
            texts.append((token.start[0], token.string))
    return texts


def banned_in(texts, pattern):
    return [
        f"line {line + text[: match.start()].count(chr(10))}: {match[0]}"
        for line, text in texts
        for match in pattern.finditer(text)
    ]


def without_code(page):
    """Returns a page without its code, which may quote others."""
    text = re.sub(
        r"```.*?```", lambda m: "\n" * m[0].count("\n"), page, flags=re.DOTALL
    )
    return re.sub(r"`[^`\n]+`", "", text)


def docstrings(path):
    """Yields (node, docstring) of the module and of all classes and functions."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield node, text


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_no_source_has_a_banned_word(path):
    assert banned_in(texts_of(path), BANNED) == []


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_the_spelling_of_sources_is_american(path):
    assert banned_in(texts_of(path), BRITISH) == []


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_no_page_has_a_banned_word(path):
    texts = [(1, without_code(path.read_text("utf-8")))]
    assert banned_in(texts, BANNED) == banned_in(texts, BRITISH) == []


@pytest.mark.parametrize("path", OTHERS, ids=name_of)
def test_no_script_or_configuration_has_a_banned_word(path):
    texts = [(1, path.read_text("utf-8"))]
    assert banned_in(texts, BANNED) == banned_in(texts, BRITISH) == []


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_first_lines_of_docstrings_are_short_sentences(path):
    for node, text in docstrings(path):
        first = text.partition("\n")[0]
        where = f"{getattr(node, 'name', 'module')}: {first}"
        assert len(first) <= 84, where
        assert len(first.split()) <= 20, where
        assert first.split()[0] not in RIDDLES, where


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_arguments_are_named_not_described_by_halves(path):
    for node, text in docstrings(path):
        for entry in re.findall(
            r"^ +(\w+: (?:of|for|to|that|as) .*)$", text, re.MULTILINE
        ):
            raise AssertionError(f"{getattr(node, 'name', 'module')}: {entry}")


def test_the_readme_is_short():
    text = (repository.ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1000


def test_a_banned_word_is_found():
    assert banned_in([(3, "It is\nmended.")], BANNED) == ["line 4: mended"]
    assert banned_in([(1, "of the colour")], BRITISH) == ["line 1: colour"]
    assert banned_in([(1, "of the color")], BRITISH) == []
