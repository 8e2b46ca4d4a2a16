"""`cgrseg train`: a real run of two iterations, and what stops before it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from cgrseg.config import load_config

from .conftest import SMALL, Run


def test_run_leaves_what_is_promised(trained: Path) -> None:
    for name in ("latest.pth", "best.pth", "config.json"):
        assert (trained / name).is_file()
    assert list(trained.glob("*.csv"))
    assert list((trained / "tensorboard").glob("events*"))
    config = json.loads((trained / "config.json").read_text())
    assert config["schedule"]["max_iters"] == 2
    assert config["data"]["dataset"] == "synthetic"
    state = torch.load(trained / "latest.pth", weights_only=True)
    assert state["meta"]["iteration"] == 2
    assert load_config(trained).work_dir == str(trained)


def test_finished_run_is_not_overwritten_and_can_go_on(
    run: Run, trained: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "work_dir": str(folder)}))
    before = (folder / "latest.pth").read_bytes()
    refused = run("train", folder, "--device", "cpu")
    assert refused.exit_code == 2
    assert "resume" in refused.stderr
    assert (folder / "latest.pth").read_bytes() == before
    longer = run("train", folder, "--device", "cpu", "--resume", "schedule.max_iters=3")
    assert longer.exit_code == 0, longer.output
    assert torch.load(folder / "latest.pth", weights_only=True)["meta"]["iteration"] == 3


def test_folder_of_a_run_goes_on_there_from_wherever_it_is_called(
    run: Run, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved, elsewhere = tmp_path / "moved", tmp_path / "elsewhere"
    shutil.copytree(trained, moved)
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps({**config, "work_dir": None}))
    before = torch.load(moved / "latest.pth", weights_only=True)["meta"]["iteration"]
    longer = f"schedule.max_iters={before + 1}"
    result = run("train", moved, "--device", "cpu", "--resume", longer, "train.evaluate=false")
    assert result.exit_code == 0, result.output
    after = torch.load(moved / "latest.pth", weights_only=True)["meta"]["iteration"]
    assert after == before + 1
    assert not list(elsewhere.iterdir())


def test_settings_are_printed_and_nothing_runs(run: Run, tmp_path: Path) -> None:
    result = run(
        *("train", "cgrseg-b_ade20k_160k", "optimizer.lr=1e-3", "--print-config"),
        *("--data-root", "elsewhere", "--work-dir", tmp_path / "run"),
    )
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert "optimizer.lr = 0.001" in lines
    assert 'data.root = "elsewhere"' in lines
    assert not (tmp_path / "run").exists()


def test_option_loses_against_the_same_setting_spelt_out(run: Run) -> None:
    result = run("train", "cgrseg-t_custom", "data.root=b", "--data-root", "a", "--print-config")
    assert 'data.root = "b"' in result.stdout.splitlines()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["cgrseg-t_custom", "lr=1"], ["there is no such setting", "optimizer.lr?"]),
        (["cgrseg-t_custom", "optimizer.lr=fast"], ["optimizer.lr: got 'fast'", "a number"]),
        (["cgrseg-t_cutsom"], ["did you mean the preset cgrseg-t_custom?"]),
        (["cgrseg-t_ade20k_160k", "--data-root", "nowhere"], ["nowhere", "ADEChallengeData2016"]),
        (["cgrseg-t_custom", "--data-root", "nowhere"], ["nowhere", "classes.txt"]),
    ],
)
def test_mistake_stops_with_a_message_before_anything_is_written(
    run: Run, tmp_path: Path, arguments: list[str], parts: list[str]
) -> None:
    folder = tmp_path / "run"
    result = run("train", *arguments, "--work-dir", folder, "--device", "cpu")
    assert result.exit_code == 2
    for part in [*parts, "what to do:"]:
        assert part in result.stderr
    assert "Traceback" not in result.output
    assert not folder.exists()


def test_unknown_device_is_a_message(run: Run, scenes: Path, tmp_path: Path) -> None:
    result = run(
        *("train", "cgrseg-t_synthetic", *SMALL, "--data-root", scenes),
        *("--work-dir", tmp_path / "run", "--device", "tpu"),
    )
    assert result.exit_code == 2
    assert "tpu" in result.stderr
