"""Options of the recipe that are not published: each does what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cgrseg.config.schema import LossConfig
from cgrseg.devices import Placement
from cgrseg.models import create_model
from cgrseg.training.data_source import DatasetSource
from cgrseg.training.run_log import read_table
from cgrseg.training.runner import train, train_on
from tests.training.frozen_run import freeze_all_norms
from tests.training.small_run import small_config, weights_of, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


def frozen_run(
    dataset: Path, work_dir: Path, *, precision: str = "fp64", blocks: int = 1, **changes: Any
) -> list[float]:
    """Losses of a run without random numbers and with norms at their statistics."""
    config = small_config(
        dataset,
        work_dir,
        model__context_blocks=blocks,
        train__precision=precision,
        schedule__max_iters=3,
        schedule__warmup_iters=0,
        **{"augment__crop_size": [32, 32], **changes},
    )
    torch.manual_seed(0)
    model = create_model("cgrseg_t", 3, context_blocks=blocks, dropout=0.0, drop_path=0.0)
    freeze_all_norms(model)
    place = Placement("cpu")
    train_on(DatasetSource(config, place), config, place, model=model)
    return [float(row["loss"]) for row in read_table(work_dir / "metrics.csv")]


@pytest.fixture(scope="module")
def plain(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """Folder and losses of a run without options."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    return folder, frozen_run(dataset, folder, precision="fp32")


def test_accumulating_two_batches_is_one_of_both(dataset: Path, tmp_path: Path) -> None:
    # Attention has more than one place, so that no gradient is zero but for rounding.
    larger: dict[str, Any] = {"augment__crop_size": [64, 64], "blocks": 5}
    whole = frozen_run(dataset, tmp_path / "whole", train__batch_size=4, **larger)
    halves = frozen_run(
        dataset, tmp_path / "halves", train__batch_size=2, train__accumulate=2, **larger
    )
    assert len(whole) == 3
    assert halves == pytest.approx(whole, rel=1e-9)
    one, other = (weights_of(tmp_path / name / "latest.pth") for name in ("whole", "halves"))
    for name, value in one.items():
        assert torch.allclose(value, other[name], rtol=1e-9, atol=1e-9), name


def test_clipping_changes_the_step_only_when_it_applies(
    dataset: Path, plain: tuple[Path, list[float]], tmp_path: Path
) -> None:
    _, free = plain
    wide = frozen_run(dataset, tmp_path / "wide", precision="fp32", optimizer__clip_norm=1e9)
    # AdamW divides by the size of gradients, so only clipping to its epsilon slows it down
    tight = frozen_run(dataset, tmp_path / "tight", precision="fp32", optimizer__clip_norm=1e-12)
    assert wide == free
    assert tight[0] == free[0]
    assert abs(tight[2] - tight[0]) < 0.1 * abs(free[2] - free[0]) or tight[2] > free[2]


def test_averaged_weights_follow_the_decay(
    dataset: Path, plain: tuple[Path, list[float]], tmp_path: Path
) -> None:
    averaging: dict[str, Any] = {"train__ema_decay": 0.75, "train__checkpoint_interval": 1}
    frozen_run(dataset, tmp_path / "mean", precision="fp32", **averaging)
    name = "decode_head.conv_seg.weight"

    def averaged(path: Path) -> torch.Tensor:
        return weights_of(path)[name]

    second = torch.load(tmp_path / "mean" / "previous.pth", weights_only=True)
    third = torch.load(tmp_path / "mean" / "latest.pth", weights_only=True)
    raw = third["training"]["state_dict"][name]
    # averaging does not touch what is trained
    assert torch.equal(raw, averaged(plain[0] / "latest.pth"))
    expected = 0.75 * second["state_dict"][name] + 0.25 * raw
    assert torch.allclose(third["state_dict"][name], expected, rtol=1e-6, atol=1e-8)


def test_all_options_together(dataset: Path, tmp_path: Path) -> None:
    config = small_config(
        dataset,
        tmp_path / "run",
        model__freeze_norm=True,
        optimizer__layer_decay=0.9,
        optimizer__clip_norm=1.0,
        schedule__max_iters=2,
        train__precision="bf16",
        train__channels_last=True,
        train__accumulate=2,
        train__ema_decay=0.9,
        train__evaluate=True,
        train__eval_interval=1,
        train__keep_best=2,
        train__patience=5,
        train__deterministic=True,
    )
    config.loss.average = "valid"
    config.loss.label_smoothing = 0.1
    config.loss.class_weights = [1.0, 2.0, 0.5]
    config.loss.ohem_threshold = 0.9
    config.loss.ohem_min_pixels = 100
    config.loss = LossConfig.model_validate({**config.loss.model_dump(), "dice_weight": 0.5})
    config.loss.initial_weight = 0.4
    train(config, device="cpu")
    rows = read_table(tmp_path / "run" / "metrics.csv")
    assert len(rows) == 2
    for row in rows:
        parts = float(row["loss_ce"]) + 0.5 * float(row["loss_dice"])
        assert float(row["loss"]) == pytest.approx(
            parts + 0.4 * float(row["loss_initial"]), rel=1e-5
        )
    name = "backbone.patch_embed.1.running_mean"
    assert torch.count_nonzero(weights_of(tmp_path / "run" / "latest.pth")[name]) == 0
    kept = {path.name for path in (tmp_path / "run").glob("best_*.pth")}
    assert kept == {"best_1.pth", "best_2.pth"}


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-8), ("fp32", 5e-3)])
def test_compiled_training_is_the_same(
    precision: str, tolerance: float, dataset: Path, tmp_path: Path
) -> None:
    """In float32 with the fused loss and channels-last, which float64 does without.

    AdamW's first steps are as long whatever the size of a gradient, so that in float32 rounding
    turns some of them around: a thousandth of the loss after two steps.
    """
    layout: dict[str, Any] = {"precision": precision, "train__channels_last": precision == "fp32"}
    layout["augment__crop_size"] = [64, 64]
    usual = frozen_run(dataset, tmp_path / "usual", **layout)
    compiled = frozen_run(dataset, tmp_path / "compiled", **layout, train__compile=True)
    assert compiled == pytest.approx(usual, rel=tolerance)
