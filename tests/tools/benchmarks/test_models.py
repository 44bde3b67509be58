"""The table of models."""

import json

import pytest

import repository

PAGE = repository.ROOT / "docs/models.md"
RESULTS = json.loads((repository.ROOT / "docs/models.json").read_text())
RUNS = sorted(path.stem for path in (repository.ROOT / "gin_configs").glob("*.gin"))


@pytest.fixture
def models(imported):
    """Returns the tool, imported."""
    return imported("models")


def test_the_page_is_that_of_the_results(models):
    assert PAGE.read_text() == models.page(RESULTS)


def test_every_run_has_a_row(models):
    lines = models.page({}).splitlines()
    rows = [line.split(" | ")[0].removeprefix("| ") for line in lines]
    for run in RUNS:
        assert rows.count(run) == 1


def test_missing_results_are_not_measured(models):
    text = models.page({})
    assert "| pest_lite0 | not measured | not measured" in text
    assert text.count("pest_lite0") == 1
    result = {"v3": {"outcome": "does not fit"}}
    text = models.page({"pest_lite0": result})
    assert "| pest_lite0 | does not fit | not measured | not measured |" in text


def test_the_counts_are_those_of_the_networks(models):
    counts = models.counts("quickstart")
    assert counts == {key: RESULTS["quickstart"][key] for key in counts}
