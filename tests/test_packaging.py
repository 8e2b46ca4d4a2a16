"""The project's own files: what is pinned, what is shipped, what a built wheel can do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cgrseg

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def pins(repository: Path) -> dict[str, str]:
    """Package to the line that pins it, markers included."""
    lines = (repository / "constraints.txt").read_text().splitlines()
    return {line.split("==")[0]: line for line in lines if "==" in line}


def test_every_dependency_of_the_makefile_is_pinned(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [
        requirement
        for extra in ("dev", "convert")
        for requirement in project["optional-dependencies"][extra]
    ]
    pinned = pins(repository)
    for requirement in wanted:
        name = re.split(r"[><=;\[ ]", requirement)[0]
        assert name in pinned, f"{name}: run scripts/update_constraints.sh"
    assert pinned["torch"] == "torch==2.13.0"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_commands_of_the_makefile_keep_bytecode(repository: Path) -> None:
    told = subprocess.run(
        ["make", "--file=-", "--no-print-directory", "told"],
        cwd=repository,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        input='include Makefile\ntold:\n\t@echo "[$$PYTHONDONTWRITEBYTECODE]"\n',
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == "[]\n"


def test_no_file_names_an_index_host(repository: Path) -> None:
    for name in ("pyproject.toml", "constraints.txt", "Makefile"):
        text = (repository / name).read_text()
        assert "index-url" not in text
        assert "find-links" not in text


def test_version_has_one_home(repository: Path) -> None:
    tables = tomllib.loads((repository / "pyproject.toml").read_text())
    assert tables["project"]["dynamic"] == ["version"]
    assert tables["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "cgrseg.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", cgrseg.__version__)


def test_templates_and_other_files_belong_to_the_package_data(repository: Path) -> None:
    tables = tomllib.loads((repository / "pyproject.toml").read_text())
    (patterns,) = tables["tool"]["setuptools"]["package-data"].values()
    package = repository / "cgrseg"
    shipped = {path for pattern in patterns for path in package.glob(pattern)}
    others = {path for path in package.rglob("*") if path.is_file() and path.suffix != ".py"}
    others = {path for path in others if "__pycache__" not in path.parts}
    assert package / "templates" / "report.html" in others
    assert others <= shipped


@pytest.mark.slow
def test_built_wheel_works_from_another_folder(repository: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "run_cgrseg.py"):
        shutil.copy(repository / name, source)
    shutil.copytree(
        repository / "cgrseg", source / "cgrseg", ignore=shutil.ignore_patterns("__pycache__")
    )
    wheels, target, elsewhere = tmp_path / "wheels", tmp_path / "target", tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(*command: str | Path, cwd: Path, **environment: str) -> str:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", wheels, cwd=source)
    (wheel,) = wheels.glob("*.whl")
    run(
        *(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", target),
        wheel,
        cwd=elsewhere,
    )
    shipped = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    for path in (repository / "cgrseg").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert str(path.relative_to(repository)) in shipped

    code = """
import pathlib, sys
import cgrseg, run_cgrseg
target = pathlib.Path(sys.argv[1])
assert pathlib.Path(cgrseg.__file__).is_relative_to(target), cgrseg.__file__
assert pathlib.Path(run_cgrseg.__file__).is_relative_to(target), run_cgrseg.__file__
from run_cgrseg import run_single_gpu
assert callable(run_single_gpu)
config = cgrseg.load_config("cgrseg-b_pascal-context59_80k", ["train.batch_size=2"])
model = cgrseg.create_model(config.model.name, 59)
print(config.augment.crop_size, sum(p.numel() for p in model.parameters()))
"""
    printed = run(sys.executable, "-c", code, target, cwd=elsewhere, PYTHONPATH=str(target))
    assert printed.startswith("(480, 480) 18")
    listing = run(sys.executable, "-m", "cgrseg", "--help", cwd=elsewhere, PYTHONPATH=str(target))
    assert "predict" in listing
    assert (
        "cgrseg = cgrseg.__main__:main"
        in next(target.glob("*.dist-info/entry_points.txt")).read_text()
    )
