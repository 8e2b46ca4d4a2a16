"""Which checkpoints a run keeps, and when it stops early."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from cgrseg.config.schema import Config
from cgrseg.training.checkpointing import CheckpointKeeper, read_history
from cgrseg.training.run_log import RunTable


def keeper_of(folder: Path, **train: Any) -> CheckpointKeeper:
    config = Config.model_validate({"train": train})
    return CheckpointKeeper(folder, config, {"variant": "cgrseg_t"}, start=10**9, active=True)


def module_at(iteration: int) -> Any:
    model = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(model.weight, float(iteration))
    return SimpleNamespace(iteration=iteration, evaluated_model=model)


def weight_in(path: Path) -> float:
    return float(torch.load(path, weights_only=True)["state_dict"]["weight"])


def test_the_best_is_the_first_of_the_highest(tmp_path: Path) -> None:
    keeper = keeper_of(tmp_path)
    scores = [(10, 0.2), (20, float("nan")), (30, 0.5), (40, 0.5), (50, 0.4)]
    found = [keeper.note_scores(module_at(iteration), score) for iteration, score in scores]
    assert found == [True, False, True, False, False]
    assert weight_in(tmp_path / "best.pth") == 30.0
    assert keeper.evaluations_without_progress == 2


def test_the_best_few_are_kept(tmp_path: Path) -> None:
    keeper = keeper_of(tmp_path, keep_best=2)
    for iteration, score in [(10, 0.1), (20, 0.4), (30, 0.2), (40, 0.3), (50, 0.25)]:
        keeper.note_scores(module_at(iteration), score)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.pth",
        "best_20.pth",
        "best_40.pth",
    ]
    assert weight_in(tmp_path / "best_40.pth") == 40.0


def test_patience_counts_evaluations_since_the_best(tmp_path: Path) -> None:
    keeper = keeper_of(tmp_path, patience=2)
    assert not keeper.out_of_patience
    for iteration, score, expected in [(1, 0.3, False), (2, 0.3, False), (3, 0.2, True)]:
        keeper.note_scores(module_at(iteration), score)
        assert keeper.out_of_patience is expected
    keeper.note_scores(module_at(4), 0.4)
    assert not keeper.out_of_patience


def test_a_resumed_run_knows_its_earlier_scores(tmp_path: Path) -> None:
    table = RunTable(tmp_path / "scores.csv", ["mIoU"], keep_until=0)
    for iteration, score in [(10, 0.5), (20, float("nan")), (30, 0.9)]:
        table.append(iteration, {"mIoU": score})
    assert read_history(tmp_path) == [(10, 0.5), (20, float("-inf")), (30, 0.9)]
    # resumed at 20: what came after does not count
    config = Config.model_validate({})
    keeper = CheckpointKeeper(tmp_path, config, {}, start=20, active=True)
    assert keeper.note_scores(module_at(30), 0.4) is False
    assert keeper.note_scores(module_at(40), 0.6) is True
