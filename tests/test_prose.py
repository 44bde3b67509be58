"""Words of docstrings, comments, messages and pages: banned ones, first lines."""

import ast
import functools
import io
import re
import tokenize

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


@functools.cache
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


@functools.cache
def docstrings():
    """Returns (place, docstring) of all modules, classes and functions."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        (f"{name_of(path)}, {getattr(node, 'name', 'module')}", text)
        for path in PRODUCT
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, kinds) and (text := ast.get_docstring(node))
    ]


def found(patterns, texts):
    """Returns what the patterns match in (file, texts) pairs, by file."""
    matches = (
        (name_of(path), banned_in(lines, pattern))
        for path, lines in texts
        for pattern in patterns
    )
    return [(name, places) for name, places in matches if places]


def test_no_source_has_a_banned_word():
    assert found([BANNED], ((path, texts_of(path)) for path in PRODUCT)) == []


def test_the_spelling_of_sources_is_american():
    assert found([BRITISH], ((path, texts_of(path)) for path in SOURCES)) == []


def test_no_page_has_a_banned_word():
    pages = ((p, [(1, without_code(p.read_text("utf-8")))]) for p in PAGES)
    assert found([BANNED, BRITISH], pages) == []


def test_no_script_or_configuration_has_a_banned_word():
    others = ((path, [(1, path.read_text("utf-8"))]) for path in OTHERS)
    assert found([BANNED, BRITISH], others) == []


def test_first_lines_of_docstrings_are_short_sentences():
    wrong = []
    for where, text in docstrings():
        first = text.partition("\n")[0]
        words = first.split()
        if len(first) > 84 or len(words) > 20 or words[0] in RIDDLES:
            wrong.append(f"{where}: {first}")
    assert wrong == []


def test_arguments_are_named_not_described_by_halves():
    half = re.compile(r"^ +(\w+: (?:of|for|to|that|as) .*)$", re.MULTILINE)
    wrong = [(where, x) for where, text in docstrings() for x in half.findall(text)]
    assert wrong == []


def test_the_readme_is_short():
    text = (repository.ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1000


def test_a_banned_word_is_found():
    assert banned_in([(3, "It is\nmended.")], BANNED) == ["line 4: mended"]
    assert banned_in([(1, "of the colour")], BRITISH) == ["line 1: colour"]
    assert banned_in([(1, "of the color")], BRITISH) == []
    assert found([BRITISH], [(SOURCES[0], [(1, "a"), (2, "grey")])]) == [
        (name_of(SOURCES[0]), ["line 2: grey"])
    ]
