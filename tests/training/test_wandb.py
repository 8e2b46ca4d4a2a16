"""Weights & Biases, the real package without a network; and what is said without it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from cgrseg.config.schema import Config
from cgrseg.errors import EnvironmentProblem
from cgrseg.training.journal import wandb_logger
from cgrseg.training.runner import train
from tests.training.small_run import small_config, write_dataset


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(EnvironmentProblem, match=r'pip install "cgrseg\[wandb\]"'):
        wandb_logger(Config(), tmp_path)


@pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="needs the extra wandb, which CI leaves out"
)
def test_a_run_is_logged_and_goes_on_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    root = write_dataset(tmp_path / "data")
    config = small_config(
        root,
        tmp_path / "run",
        augment__crop_size=[32, 32],
        schedule__max_iters=2,
        train__evaluate=True,
        train__wandb=True,
        train__log_images=1,
    )
    train(config, device="cpu")
    name = (tmp_path / "run" / "wandb_id.txt").read_text()
    config.schedule.max_iters = 3
    train(config, device="cpu", auto_resume=True)
    assert (tmp_path / "run" / "wandb_id.txt").read_text() == name
    runs = list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{name}"))
    assert runs
    pictures = [path for run in runs for path in (run / "files" / "media").rglob("*.png")]
    assert len(pictures) == 2  # one of each evaluation
