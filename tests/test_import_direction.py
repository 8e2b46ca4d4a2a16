"""Who may import whom: read from the source, so that no import path escapes.

The picture of it is in docs/architecture.md.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

# A layer imports from layers of lower levels, and from those of its own level named here.
LEVELS: list[set[str]] = [
    {"errors", "loss_terms", "html", "input_files", "matplotlib_import"}
    | {"transformers_import", "augmentations"},
    {"processes"},
    {"cpus"},
    {"extras", "files", "class_names", "console", "devices", "precision", "progress"}
    | {"provenance", "published", "variants"},
    {"locks", "surroundings", "distributed", "downloading"},
    {"datasets", "hub", "addresses"},
    {"config"},
    {"data", "models", "ops", "visual"},
    {"page"},
    {"formats"},
    {"inference"},
    {"training", "evaluation", "huggingface"},
    {"reporting", "deploy"},
    {"bench", "publishing"},
    {"cli"},
]
SAME_LEVEL = {("training", "evaluation")}
# The package gives names away lazily, so it may name any layer; any layer may read its version.
PACKAGE = {"__init__", "__main__"}

LEVEL = {layer: number for number, level in enumerate(LEVELS) for layer in level}


def allowed(importer: str, imported: str) -> bool:
    if importer in PACKAGE or imported in PACKAGE or importer == imported:
        return True
    return LEVEL[imported] < LEVEL[importer] or (importer, imported) in SAME_LEVEL


def layer_of(module: str) -> str:
    """`cgrseg.data.pairs` is of layer `data`; `cgrseg` itself of layer `__init__`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and absolute name of everything of ours that a module imports, anywhere in it."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            if name == "cgrseg":  # `from cgrseg import errors` may name a module
                for alias in node.names:
                    yield node.lineno, f"cgrseg.{alias.name}"
            else:
                yield node.lineno, name
        elif isinstance(node, ast.Call) and _is_import_module(node.func) and node.args:
            text = _leading_text(node.args[0])
            if text:
                yield node.lineno, text


def _is_import_module(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in ("import_module", "__import__")


def _leading_text(argument: ast.expr) -> str | None:
    """The text of `"a.b"`, or of `f"a.b.{c}"` up to its first hole."""
    if isinstance(argument, ast.JoinedStr) and argument.values:
        argument = argument.values[0]
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        return argument.value.rstrip(".")
    return None


def violations(path: Path, module: str) -> list[str]:
    found = []
    source = path.read_text(encoding="utf-8")
    for line, name in imports(source, module, path.name == "__init__.py"):
        if name.split(".")[0] != "cgrseg":
            continue
        layer = layer_of(name)
        if layer not in LEVEL and layer not in PACKAGE:
            layer = "__init__"  # a name such as `from cgrseg import __version__`
        if not allowed(layer_of(module), layer):
            found.append(f"{path.name}:{line}: {module} imports {name}")
    return found


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def test_no_module_imports_upwards_or_sideways(repository: Path) -> None:
    files = sorted((repository / "cgrseg").rglob("*.py"))
    assert len(files) > 30
    found = [v for path in files for v in violations(path, module_name(path, repository))]
    assert not found, "\n".join(found)


def imported_modules(source: str, modules: set[str]) -> set[str]:
    """Modules that a source names, also under TYPE_CHECKING and inside functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & modules or {str(node.module)}
    return found & modules - {"cgrseg"}


def test_no_modules_import_each_other_in_a_circle(repository: Path) -> None:
    """Imports for annotations count too: what cannot be described alone is one thing."""
    files = {module_name(path, repository): path for path in (repository / "cgrseg").rglob("*.py")}
    graph = {
        name: imported_modules(path.read_text(encoding="utf-8"), set(files)) - {name}
        for name, path in files.items()
    }
    assert sum(map(len, graph.values())) > 500
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle
    graph["cgrseg.errors"].add("cgrseg.cli.main")
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(graph).prepare()


def test_every_layer_has_a_level(repository: Path) -> None:
    layers = {
        path.stem
        for path in (repository / "cgrseg").iterdir()
        if (path.is_dir() and any(path.glob("*.py"))) or path.suffix == ".py"
    }
    assert layers == set(LEVEL) | PACKAGE


def test_scripts_import_the_package_only(repository: Path) -> None:
    """No script reaches another one, and the package never reaches a script or a test."""
    scripts = {"run_cgrseg", "tools", "tests", "benchmarks", "local_configs", "scripts"}
    for path in (repository / "cgrseg").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        for line, name in imports(source, module_name(path, repository), False):
            assert name.split(".")[0] not in scripts, f"{path}:{line} imports {name}"


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("cgrseg.data.pairs", "from cgrseg.models import CGRSeg", True),
        ("cgrseg.data.pairs", "def f():\n    import cgrseg.visual.overlay", True),
        ("cgrseg.data.pairs", "from ..inference import modes", True),
        ("cgrseg.data.pairs", "from . import spec", False),
        ("cgrseg.config.schema", "from cgrseg import data", True),
        ("cgrseg.config.schema", "import importlib\nimportlib.import_module('cgrseg.cli')", True),
        (
            "cgrseg.config.schema",
            "from importlib import import_module\nimport_module(f'cgrseg.data.{x}')",
            True,
        ),
        ("cgrseg.evaluation.metrics", "from cgrseg.training import train", True),
        ("cgrseg.training.runner", "from cgrseg.evaluation import metrics", False),
        ("cgrseg.reporting.cost", "from cgrseg.cli import main", True),
        ("cgrseg.cli.train", "from cgrseg.reporting import cost", False),
        ("cgrseg.models.weights", "from cgrseg import __version__", False),
    ],
)
def test_the_reader_sees_each_way_of_importing(
    tmp_path: Path, module: str, source: str, wrong: bool
) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    assert bool(violations(path, module)) is wrong
