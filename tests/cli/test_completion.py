"""What the shell completes, and that it answers without PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cgrseg.cli import completion
from cgrseg.config import list_presets
from cgrseg.config.schema import walk_settings

from .conftest import Run


def test_presets_and_variants() -> None:
    assert completion.presets("cgrseg-t_cam") == ["cgrseg-t_camvid"]
    assert completion.presets("") == list_presets()
    assert completion.models("cgrseg_") == ["cgrseg_t", "cgrseg_b", "cgrseg_l"]
    assert set(completion.datasets("c")) == {"coco_stuff10k", "camvid", "custom"}


def test_every_setting_and_the_values_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMP_WORDS", raising=False)
    names = completion.settings(None, "")
    assert names == [f"{name}=" for name, _ in walk_settings()]
    assert completion.settings(None, "optimizer.l") == ["optimizer.lr=", "optimizer.layer_decay="]
    assert completion.settings(None, "optimizer.lr") == ["optimizer.lr=", "optimizer.lr=0.00012"]
    assert completion.settings(None, "test.mode=") == ["test.mode=whole", "test.mode=slide"]
    assert completion.settings(None, "test.mode=s") == ["test.mode=slide"]
    assert completion.settings(None, "test.flip=") == ["test.flip=true", "test.flip=false"]
    assert completion.settings(None, "no.such=") == []


def test_files_are_offered_beside_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_images").mkdir()
    (tmp_path / "best.pth").touch()
    assert completion.files_or_settings(None, "") == []  # the shell lists its files
    assert completion.files_or_settings(None, "be") == ["best.pth"]
    offered = completion.files_or_settings(None, "test")
    assert "test_images/" in offered and "test.flip=" in offered
    assert completion.files_or_settings(None, "test.mode=w") == ["test.mode=whole"]
    assert completion.config_files_or_settings(None, "be") == ["best.pth"]
    assert completion.models_files_or_settings(None, "b") == ["best.pth"]


def complete(words_: str, place: int) -> tuple[list[str], bool]:
    """What bash is told, and whether PyTorch was imported for it."""
    code = (
        "import sys\nfrom cgrseg.cli.main import app\n"
        "try:\n    app(prog_name='cgrseg')\nfinally:\n"
        "    print('torch' in sys.modules, file=sys.stderr)"
    )
    environment = {"COMP_WORDS": words_, "COMP_CWORD": str(place)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment, "_CGRSEG_COMPLETE": "complete_bash"},
        capture_output=True,
        text=True,
    )
    return done.stdout.split(), done.stderr.strip() == "True"


@pytest.mark.parametrize(
    ("typed", "place", "offered"),
    [
        ("cgrseg train cgrseg-b_cu", 2, ["cgrseg-b_custom"]),
        # bash makes three words of KEY=VALUE, and replaces what follows the equals sign
        ("cgrseg train x test.mode = sl", 5, ["slide"]),
        ("cgrseg predict a.pth b.png test.mode =", 5, ["whole", "slide"]),
        ("cgrseg evaluate a.pth --multi", 3, ["--multi-scale"]),
        ("cgrseg web a.pth --precision b", 4, ["bf16"]),
    ],
)
def test_bash_is_answered_without_pytorch(typed: str, place: int, offered: list[str]) -> None:
    assert complete(typed, place) == (offered, False)


def test_script_for_the_shell(run: Run, repository: Path) -> None:
    assert "--install-completion" in run("--help").stdout
    done = subprocess.run(
        [sys.executable, "-m", "cgrseg", "--show-completion", "bash"],
        cwd=repository,
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "complete -o default" in done.stdout
