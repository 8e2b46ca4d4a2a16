"""Importing: light for the package, possible for every module with the core alone."""

from __future__ import annotations

import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cgrseg

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HEAVY = ["lightning", "matplotlib", "pydantic", "rich", "scipy", "tensorboard", "torch", "typer"]


def run_python(code: str, *options: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", code], cwd=cwd, capture_output=True, text=True
    )


def extras(repository: Path) -> list[str]:
    """Import names of everything that only an extra brings."""
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    names = {
        re.split(r"[<>=; \[]", requirement)[0].replace("-", "_")
        for requirements in project["optional-dependencies"].values()
        for requirement in requirements
    }
    return sorted(names - {"setuptools"})


def test_package_imports_without_a_warning_and_without_anything_heavy(repository: Path) -> None:
    found = run_python(
        "import sys, cgrseg; print(*[m for m in sys.modules if '.' not in m])",
        "-W",
        "error",
        cwd=repository,
    )
    assert found.stderr == ""
    loaded = set(found.stdout.split())
    assert "cgrseg" in loaded
    assert not loaded & set(HEAVY)


def test_public_names_are_there_and_documented() -> None:
    assert set(cgrseg.__all__) <= set(dir(cgrseg))
    for name in cgrseg.__all__:
        value = getattr(cgrseg, name)
        assert name == "__version__" or value.__doc__, name


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'cgrseg' has no attribute 'creat_model'"):
        _ = cgrseg.creat_model


def test_using_the_network_needs_nothing_of_training(repository: Path) -> None:
    code = (
        "import sys, cgrseg; cgrseg.create_model('cgrseg_t', 3); "
        "print(*[m for m in sys.modules if '.' not in m])"
    )
    found = run_python(code, cwd=repository)
    assert found.returncode == 0, found.stderr
    assert not set(found.stdout.split()) & {"lightning", "matplotlib", "scipy", "tensorboard"}


CORE_ALONE = """
import importlib, importlib.metadata, sys, traceback

blocked, modules = {blocked!r}, {modules!r}

class Without:
    'A finder that does not see the extras.'

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from_name = importlib.metadata.Distribution.from_name

def visible(name):
    if name.replace("-", "_") in blocked:
        raise importlib.metadata.PackageNotFoundError(name)
    return from_name(name)

importlib.metadata.Distribution.from_name = visible

failed = False
for name in modules:
    try:
        importlib.import_module(name)
    except Exception:
        failed = True
        print("----", name, file=sys.stderr)
        traceback.print_exc()
assert not [name for name in blocked if name in sys.modules]
sys.exit(failed)
"""


def test_every_module_imports_with_the_core_dependencies_alone(repository: Path) -> None:
    """One interpreter in which the extras cannot be found imports all modules."""
    blocked = extras(repository)
    assert {"onnx", "fastapi", "scipy", "pytest", "wandb"} <= set(blocked)
    modules = sorted(
        module.name
        for module in pkgutil.walk_packages(cgrseg.__path__, prefix="cgrseg.")
        if not module.name.endswith("__main__")
        # Subclasses of transformers' classes, which transformers itself causes to be imported.
        and not module.name.startswith("cgrseg.huggingface.")
    )
    assert len(modules) > 30
    found = run_python(CORE_ALONE.format(blocked=blocked, modules=modules), cwd=repository)
    assert found.returncode == 0, found.stderr
