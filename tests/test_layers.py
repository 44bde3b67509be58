import ast
import functools
import subprocess
import sys

import repository
from retinanet_tpu import __main__

PACKAGE = repository.ROOT / "retinanet_tpu"
# Folders of one layer do not import each other. Each layer may import those above it
# in this list; commands are last.
LAYERS = [
    {"errors"},
    {
        "annotation_fields",
        "exit_codes",
        "json_files",
        "log_progress",
        "look_ahead",
        "optional_packages",
        "replicas",
        "startup",
        "structures",
    },
    {"boxes", "xla"},
    {"data", "model", "learning", "detections", "evaluation", "estimator"},
    {"analysis", "conversion", "importing", "inspection", "serving"},
    {"task"},
    {"detector", "planning", "sweeping"},
    {"benchmarking"},
    set(__main__.COMMANDS),
    {"__main__"},
]
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")


def _layer(name):
    return next(i for i, names in enumerate(LAYERS) if name in names)


def _name(path):
    return path.relative_to(PACKAGE).as_posix()


@functools.cache
def _nodes(path):
    """Returns the imports of a file, at any place."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]


def _imported_names(path):
    for node in _nodes(path):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "retinanet_tpu"
        ):
            parts = node.module.split(".")[1:]
            yield from [parts[0]] if parts else [alias.name for alias in node.names]
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("retinanet_tpu."):
                    yield alias.name.split(".")[1]


def test_imports_go_one_way():
    wrong = []
    for path in MODULES:
        here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for imported in _imported_names(path):
            if imported != here and _layer(imported) >= _layer(here):
                wrong.append((_name(path), imported))
    assert wrong == []


def test_importing_the_package_imports_nothing():
    code = (
        "import sys; before = set(sys.modules); import retinanet_tpu; "
        "print(*(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=repository.ROOT,
        check=True,
    )
    assert done.stdout.split() == ["retinanet_tpu"]


def test_only_three_modules_import_gin():
    importers = [_name(path) for path in MODULES if _imports_of(path, "gin")]
    names = ["gin_files", "gin_imports", "gin_state"]
    assert importers == [f"estimator/{name}.py" for name in names]


def _imports_of(path, package):
    """Returns the modules of a package that a file imports, at any place."""
    found = set()
    for node in _nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == package}


def test_only_two_modules_import_jax_and_its_public_interfaces():
    imports = {
        _name(path): found
        for path in MODULES
        if (found := _imports_of(path, "jax") | _imports_of(path, "jaxlib"))
    }
    assert set(imports) == {"xla/jax_program.py", "xla/pjrt.py"}
    for found in imports.values():
        for name in found:
            assert not any(part.startswith("_") for part in name.split(".")), name
            assert not name.startswith("jaxlib")


def test_files_have_at_most_400_lines():
    lengths = {_name(path): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: n for name, n in lengths.items() if n > 400} == {}
