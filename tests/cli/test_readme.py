"""The README's commands and its Python, run as they are written."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from cgrseg.data.image_files import read_image
from cgrseg.models import create_model
from tests.training.small_run import write_dataset

from .conftest import SMALL, Run


def section(repository: Path, title: str) -> str:
    text = (repository / "README.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## )", text, re.M | re.S)
    return str(found)


def commands_in(text: str) -> list[list[str]]:
    """Arguments of every `cgrseg` command, in shell blocks and between backticks."""
    found = re.findall(r"^cgrseg (.*)$|`cgrseg ((?:train|evaluate)[^`]*)`", text, re.M)
    return [shlex.split(block or inline, comments=True) for block, inline in found]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader types: the data set that the README asks for, photos, a checkpoint."""
    folder = tmp_path_factory.mktemp("home")
    data = write_dataset(folder / "data" / "mine")
    (folder / "photos").mkdir()
    for number, path in enumerate(sorted((data / "images" / "val").glob("*.png"))):
        picture = cv2.cvtColor(read_image(path), cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(folder / "photos" / f"{number}.jpg"), picture)
    shutil.copy(folder / "photos" / "0.jpg", folder / "photo.jpg")
    torch.save(create_model("cgrseg_t", num_classes=150).state_dict(), folder / "checkpoint.pth")
    return folder


@pytest.fixture(scope="module")
def trained_as_told(home: Path, repository: Path, run: Run) -> list[list[str]]:
    """Every command of the section about one's own folder, done; only the training is short."""
    commands = commands_in(section(repository, "Your own folder"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for command in commands:
            command = [part.replace("CHECKPOINT", "checkpoint.pth") for part in command]
            # The checkpoint, which the Python of the README loads too, is of a whole network.
            whole = [each for each in SMALL if not each.startswith("model.")]
            short = whole if command[0] == "train" else []
            result = run(*command, *short)
            assert result.exit_code == 0, (command, result.output)
    return commands


def test_own_folder(home: Path, trained_as_told: list[list[str]]) -> None:
    done = [" ".join(command[:2]) for command in trained_as_told]
    assert done == [
        "data check",
        "train cgrseg-t_custom",
        "evaluate work_dirs/mine/best.pth",
        "predict work_dirs/mine/best.pth",
        "data browse",
        "data rank",
        "train cgrseg-t_finetune",
    ]
    assert {path.suffix for path in (home / "painted").rglob("*.*")} >= {".png"}
    assert len(list((home / "painted").rglob("0*"))) >= 2  # labels and overlay


def test_python(
    home: Path,
    trained_as_told: list[list[str]],
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(home)
    (code,) = re.findall(r"```python\n(.*?)```", section(repository, "In Python"), re.S)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    result, report = names["result"], names["report"]
    assert result.labels.shape == (64, 64) and result.classes == ("sky", "ground", "thing")
    assert not report.missing and "checkpoint.pth" in capsys.readouterr().err


@pytest.mark.slow
def test_faster_and_elsewhere(
    home: Path,
    trained_as_told: list[list[str]],
    repository: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(home)
    for command in commands_in(section(repository, "Faster inference, export and reports")):
        if command[0] != "web":  # serves until it is stopped: tests/deploy has it
            result = run(*command)
            assert result.exit_code == 0, (command, result.output)
    assert (home / "work_dirs/mine/best.onnx").is_file()
    assert (home / "work_dirs/mine/report.html").is_file()
