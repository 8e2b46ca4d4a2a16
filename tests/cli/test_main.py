"""The root command: help, versions, problems told without stack traces."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import cgrseg
from cgrseg.cli.common import Commands
from cgrseg.cli.info import _may_have_gpu
from cgrseg.cli.main import app
from cgrseg.errors import DataError, explain

from .conftest import Run

COMMANDS = [
    *("train", "evaluate", "predict", "export", "web"),
    *("info", "bench", "report", "data", "demo", "autolabel", "publish", "config", "models"),
]

# Packages that take more than 20 ms to import, by what a command does.
SCHEMA = {"pydantic", "rich"}
IMAGES = {*SCHEMA, "numpy", "cv2", "PIL"}
NETWORK = {*IMAGES, "torch", "huggingface_hub"}
MEASURES = {*NETWORK, "torchmetrics", "matplotlib", "scipy"}
EXPENSIVE = {
    *MEASURES,
    *("jinja2", "lightning", "onnxruntime", "openvino", "sympy", "tensorboard"),
    *("torch._dynamo", "torch._inductor"),
}


def test_help_lists_every_command(run: Run) -> None:
    result = run("--help")
    assert result.exit_code == 0
    for command in COMMANDS:
        assert command in result.stdout
    assert run("-h").stdout == result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run: Run, command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f" {command} [OPTIONS]" in result.stdout
    for line in result.stdout.splitlines():
        assert len(line) <= 200
    for jargon in ("typing", "Optional[", "None]"):
        assert jargon not in result.stdout


def test_version(run: Run) -> None:
    assert run("--version").stdout.strip() == f"cgrseg {cgrseg.__version__}"


def test_misspelt_command_is_usage_error_with_the_nearest(run: Run) -> None:
    result = run("trian")
    assert result.exit_code == 2
    assert "train" in result.stderr


def failing(error: BaseException) -> typer.Typer:
    small = typer.Typer(cls=Commands)

    @small.command()
    def fail() -> None:
        raise error

    @small.command()
    def other() -> None:
        """A group needs two."""

    return small


def test_problem_is_a_message_and_status_2() -> None:
    message = explain("a.png", found="it is empty", expected="an image", remedy="delete it")
    result = CliRunner().invoke(failing(DataError(message)), ["fail"])
    assert result.exit_code == 2
    assert result.stderr == f"error: {message}\n"
    assert result.stdout == ""


def test_interrupt_is_quiet_and_status_130() -> None:
    result = CliRunner().invoke(failing(KeyboardInterrupt()), ["fail"])
    assert result.exit_code == 130
    assert result.stderr == "\nstopped\n"


def test_bug_of_ours_keeps_its_stack_trace() -> None:
    result = CliRunner().invoke(failing(ZeroDivisionError("bug")), ["fail"])
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        ("--help", {"rich"}),
        ("predict --help", SCHEMA),
        ("data list", SCHEMA),
        ("info", SCHEMA),
        ("models", {*SCHEMA, "huggingface_hub"}),
        ("config translate THEIRS", SCHEMA),
        ("models", {*SCHEMA, "huggingface_hub"}),
        ("info cgrseg_t", SCHEMA),
        ("data check SCENES", IMAGES),
        ("data browse SCENES --out OUT/sheet.html", {*IMAGES, "jinja2"}),
        ("predict MODEL IMAGE --out OUT", NETWORK),
        ("info MODEL", NETWORK),
        ("export MODEL --format none", NETWORK),
        ("publish MODEL --out OUT/folder", NETWORK),
        ("evaluate cgrseg-t_synthetic MODEL --data-root SCENES", MEASURES),
    ],
)
def test_commands_import_what_they_need(
    words: str, needed: set[str], trained: Path, scenes: Path, tmp_path: Path
) -> None:
    if words == "info" and _may_have_gpu():
        pytest.skip("PyTorch is asked for the GPUs")
    (tmp_path / "theirs.py").write_text("evaluation = dict(interval=100)\n")
    places = {
        "THEIRS": str(tmp_path / "theirs.py"),
        "SCENES": str(scenes),
        "MODEL": str(trained / "latest.pth"),
        "IMAGE": str(next(scenes.rglob("*.jpg"))),
    }
    arguments = [places.get(word, word.replace("OUT", str(tmp_path))) for word in words.split()]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "cgrseg", *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode == (2 if "none" in words else 0), done.stderr
    imported = set(re.findall(r"^import time: .*\| *([\w.]+)$", done.stderr, re.MULTILINE))
    assert "typer" in imported
    assert imported & EXPENSIVE <= needed


def test_module_and_command_are_the_same(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cgrseg", "info", "nothing.pth"],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: nothing.pth: ")
    assert "Traceback" not in done.stderr


def test_names_of_the_commands_are_the_promised_ones() -> None:
    assert set(typer.main.get_command(app).commands) == set(COMMANDS)  # type: ignore[attr-defined]
