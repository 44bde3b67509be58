import importlib

import pytest

import repository

TOOL = repository.ROOT / "tools" / "benchmarks" / "resume.py"


@pytest.fixture
def resume(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOL.parent))
    return importlib.import_module("resume")


def test_a_resume_reads_the_bytes_of_the_remaining_records(resume, tmp_path):
    resume.write(str(tmp_path), num_records=100, record_bytes=100_000, num_files=4)
    num_bytes = {
        way: resume.measure(str(tmp_path), way, num_records=100, num_used=90)[-1][0]
        for way in resume.WAYS
    }
    assert num_bytes["skip"] > 100 * 100_000 * 0.9
    # The sizes vary from 0.5 to 1.5 times the mean.
    for way in ("index", "scan"):
        assert 10 * 50_000 < num_bytes[way] < 10 * 150_000 + 500_000
    assert not (tmp_path / "train.index.json").exists()
