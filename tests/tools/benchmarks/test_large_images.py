import importlib

import pytest

import repository

TOOLS = repository.ROOT / "tools" / "benchmarks"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("large_images")


def test_the_pipeline_is_closer_to_the_mean_than_a_resize_alone(tool):
    jpegs = [tool.synthetic_jpeg(seed, 400, 300) for seed in range(2)]
    results = tool.measure(jpegs, (64, 64), num_rounds=1)
    rms = {name: error for name, (_, error) in results.items()}
    plain = rms.pop("JPEG: decoded in full, resized")
    assert rms.pop("decoded image: resized") == plain
    assert len(rms) == 4 and max(rms.values()) < 0.5 * plain
    assert all(cpu_ms >= 0 for cpu_ms, _ in results.values())
