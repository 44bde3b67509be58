"""Fixtures of the benchmarks' tests."""

import importlib

import pytest

import repository


@pytest.fixture
def imported(monkeypatch):
    """Returns a function that imports a benchmark, which finds its neighbors."""

    def load(name):
        monkeypatch.syspath_prepend(str(repository.ROOT / "tools" / "benchmarks"))
        return importlib.import_module(name)

    return load
