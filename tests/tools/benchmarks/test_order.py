import importlib

import numpy as np
import pytest

import repository

TOOLS = repository.ROOT / "tools" / "benchmarks"
SIZES = {"num_images": 2000, "num_classes": 10}


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("order")


def test_a_sorted_order_is_distinguished_from_a_random_one(tool):
    sorted_order = np.tile(np.arange(2000), 3)
    mixing = tool.mixing(sorted_order, batch_size=100, **SIZES)
    assert mixing == (1, 1, pytest.approx(1))
    rng = np.random.default_rng(0)
    random_order = np.concatenate([rng.permutation(2000) for _ in range(3)])
    mixing = tool.mixing(random_order, batch_size=100, **SIZES)
    assert mixing.num_classes == 10 and mixing.largest_fraction < 0.2
    assert abs(mixing.epoch_correlation) < 0.1


@pytest.mark.parametrize("reader", ["here", "service"])
@pytest.mark.parametrize(("dealer", "num_files"), [("by name", 3), ("in turn", 16)])
def test_training_order_is_mixed(tool, dealer, num_files, reader):
    dealt = tool.DEALERS[dealer](*SIZES.values(), num_files)
    mixing = tool.mixing(tool.read(dealt, reader), batch_size=64, **SIZES)
    assert mixing.num_classes == 10 and mixing.largest_fraction < 0.25
    assert abs(mixing.epoch_correlation) < 0.6
