"""The root command: help, versions, problems told without stack traces."""

from __future__ import annotations

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
    *("info", "bench", "report", "data", "demo", "autolabel"),
]


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
    "words", ["--help", "predict --help", "data list", "info", "info cgrseg_t"]
)
def test_commands_that_tell_import_nothing_heavy(words: str, repository: Path) -> None:
    if words == "info" and _may_have_gpu():
        pytest.skip("PyTorch is asked for the GPUs")
    code = (
        "import sys\nfrom cgrseg.cli.main import app\n"
        f"try:\n    app({words.split()})\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print('loaded:', *[m for m in sys.modules if '.' not in m])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.rpartition("loaded:")[2].split())
    assert "typer" in loaded
    assert not loaded & {"torch", "numpy", "cv2", "lightning", "matplotlib"}
    assert words != "--help" or "pydantic" not in loaded


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
