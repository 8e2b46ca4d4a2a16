"""Losses and weights that are no numbers never reach a checkpoint, in any process."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from cgrseg.console import report_problem
from cgrseg.training.failures import TrainingProblem
from cgrseg.training.module import TrainingModule
from cgrseg.training.runner import train
from tests.training.processes import run_group
from tests.training.small_run import small_config, write_dataset


def spoil_gradient(at: int) -> Any:
    """A training step whose loss is finite and whose gradient is not, at one iteration."""
    step = TrainingModule.training_step

    def spoilt(module: TrainingModule, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = step(module, batch, batch_idx)
        if module.iteration == at:
            weight = module.model.decode_head.conv_seg.weight
            # sqrt has a finite value and an infinite slope at zero
            loss = loss + (weight * 0.0).abs().sqrt().sum()
        return loss

    return spoilt


def test_a_gradient_that_is_no_number_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_dataset(tmp_path / "data")
    run_dir = tmp_path / "run"
    config = small_config(root, run_dir, train__checkpoint_interval=1, augment__cutmix=1.0)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", spoil_gradient(at=2))
        with pytest.raises(TrainingProblem) as caught:
            train(config, device="cpu")
    text = str(caught.value)
    assert text.startswith("weights after iteration 3: finite loss, but its gradient")
    assert f"resume_from='{run_dir / 'previous.pth'}'" in text and "auto_resume=True" in text
    saved = json.loads((run_dir / "bad_batch.json").read_text())
    assert saved["iteration"] == 3 and saved["found"] == "weights"
    # Two images, and one mixed into each.
    assert len(saved["batch"]) == len(saved["batch_before"]) == 4
    for name, iteration in (("latest.pth", 2), ("previous.pth", 1)):
        kept = torch.load(run_dir / name, weights_only=True)
        assert kept["meta"]["iteration"] == iteration
        assert all(value.isfinite().all() for value in kept["state_dict"].values())


def bad_in_the_second(root: Path, work_dir: Path) -> int:
    """A training whose second process has a loss that is no number at the second iteration."""
    step = TrainingModule.training_step

    def spoilt(module: TrainingModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if os.environ["RANK"] == "1" and module.iteration == 1:
            batch["image"] = batch["image"] * float("nan")
        return step(module, batch, batch_idx)

    setattr(TrainingModule, "training_step", spoilt)  # noqa: B010
    config = small_config(
        root,
        work_dir,
        augment__crop_size=[32, 32],
        schedule__max_iters=4,
        train__checkpoint_interval=1,
    )
    try:
        train(config, device="cpu")
    except TrainingProblem as error:
        if os.environ["RANK"] == "0":
            report_problem(error)
        return 1
    return 0


def test_one_process_with_a_bad_loss_ends_all_before_anything_is_saved(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data")
    first, second = run_group(
        2, bad_in_the_second, root, tmp_path / "run", folder=tmp_path, status=1
    )
    assert "loss at iteration 2: non-finite" in first
    assert "for the batch of process 1 " in first
    assert "error:" not in second and "Traceback" not in first + second
    saved = json.loads((tmp_path / "run" / "bad_batch.json").read_text())
    assert saved["found"] == "loss" and {entry["process"] for entry in saved["batch"]} == {1}
    kept = torch.load(tmp_path / "run" / "latest.pth", weights_only=True)
    assert kept["meta"]["iteration"] == 1
