import ast

import pytest

import repository
from retinanet_tpu import __main__

PACKAGE = repository.ROOT / "retinanet_tpu"
# Folders of one layer do not know each other; commands import what they start.
LAYERS = [
    {"errors"},
    {"startup", "structures", "replicas", "annotation_fields", "optional_packages"},
    {"boxes"},
    {"data", "model", "learning", "detections", "evaluation", "estimator", "xla"},
    {"conversion", "inspection", "serving"},
    {"task"},
    {"planning"},
    set(__main__.COMMANDS),
    {"__main__"},
]
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")


def _layer(place):
    return next(i for i, places in enumerate(LAYERS) if place in places)


def _imported_places(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "retinanet_tpu"
        ):
            parts = node.module.split(".")[1:]
            yield from [parts[0]] if parts else [alias.name for alias in node.names]
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("retinanet_tpu."):
                    yield alias.name.split(".")[1]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for there in _imported_places(path):
        assert there == here or _layer(there) < _layer(here), f"{here} imports {there}"


def test_importing_the_package_starts_nothing():
    source = (PACKAGE / "__init__.py").read_text()
    nodes = ast.walk(ast.parse(source))
    assert not any(isinstance(node, ast.Import | ast.ImportFrom) for node in nodes)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_one_module_imports_gin(path):
    names = {
        alias.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    allowed = path.relative_to(PACKAGE).as_posix() == "estimator/gin_files.py"
    assert allowed or "gin" not in names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= 400
