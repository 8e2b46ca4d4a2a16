"""Optional dependencies: the table agrees with pyproject.toml, and a missing package is named."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from cgrseg.errors import EnvironmentProblem
from cgrseg.extras import EXTRAS, require

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
FOR_DEVELOPMENT = {"dev", "docs"}


def test_the_table_lists_what_each_extra_installs() -> None:
    section = PYPROJECT.read_text(encoding="utf-8").partition("[project.optional-dependencies]\n")
    lines = section[2].partition("\n\n")[0].splitlines()
    declared = {
        line.partition(" = ")[0]: re.findall(r'"([\w-]+)[>=]', line.partition(" = ")[2])
        for line in lines
    }
    table = {extra: list(packages.values()) for extra, packages in EXTRAS.items()}
    assert {k: v for k, v in declared.items() if k not in FOR_DEVELOPMENT} == table


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("onnx", 'pip install "cgrseg[export]"'),
        ("python_multipart", 'pip install "cgrseg[web]"'),
        ("transformers", 'pip install "cgrseg[hf]"'),
        ("timm", "pip install timm"),  # no extra installs it
    ],
)
def test_the_message_says_how_to_install_a_missing_package(
    package: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EnvironmentProblem) as caught:
        require(package, "a task", otherwise="or do without")
    assert str(caught.value).startswith(f"a task: the package {package} is not installed\n")
    assert str(caught.value).endswith(f"what to do: {command}, or do without")


def test_a_package_whose_import_fails_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_package.py").write_text("from os import no_such_name\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EnvironmentProblem, match=r"cannot be imported .*no_such_name"):
        require("broken_package", "a task")
