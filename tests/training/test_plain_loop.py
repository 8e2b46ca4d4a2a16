"""The published recipe against a plain loop, written here from the facts alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from cgrseg.config.schema import Config
from cgrseg.datasets import get_spec
from cgrseg.devices import Placement
from cgrseg.models import create_model
from cgrseg.training.run_log import read_table
from cgrseg.training.runner import train_on
from tests.training.small_run import weights_of

WARMUP, BATCH, SIDE = 3, 2, 32


class FixedBatches:
    """Three batches in turn, with ignored pixels."""

    def __init__(self) -> None:
        self.spec = get_spec("camvid")
        self.size = 3 * BATCH
        self.images_per_iteration = BATCH
        generator = torch.Generator().manual_seed(5)
        self.stored = []
        for number in range(3):
            label = torch.randint(0, 11, (BATCH, 4, 4), generator=generator)
            label = label.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
            label[:, : 8 * (number + 1), :16] = 255
            image = torch.randn(BATCH, 3, SIDE, SIDE, generator=generator)
            indices = {"index": torch.arange(BATCH), "further": torch.empty(BATCH, 0)}
            self.stored.append({"image": image, "label": label, **indices})

    def batches(self, start: int) -> Any:
        while True:
            yield self.stored[start % 3]
            start += 1

    def describe(self, indices: list[int]) -> list[dict[str, Any]]:
        return [{"image": index} for index in indices]

    def image_lists(self) -> dict[str, list[str]]:
        return {"training": ["0", "1", "2"]}

    def evaluate(self, *given: Any, **named: Any) -> Any:
        raise AssertionError("this run does not evaluate")


def plain_loop(model: nn.Module, batches: list[dict[str, Any]], iterations: int) -> list[float]:
    """AdamW by name, linear warm-up times linear decay, mean over all pixels."""
    groups = []
    for name, parameter in model.named_parameters():
        rate = 10.0 if "head" in name else 1.0
        decay = 0.0 if "norm" in name and "head" not in name else 0.01
        groups.append({"params": [parameter], "factor": rate, "weight_decay": decay})
    optimizer = torch.optim.AdamW(groups, lr=1.2e-4, betas=(0.9, 0.999))
    losses = []
    model.train()
    for iteration in range(iterations):
        share = 1 - iteration / iterations
        if iteration < WARMUP:
            share *= 1 - (1 - iteration / WARMUP) * (1 - 1e-6)
        for group in optimizer.param_groups:
            group["lr"] = 1.2e-4 * group["factor"] * share
        batch = batches[iteration % 3]
        logits = model(batch["image"])
        logits = functional.interpolate(
            logits, size=(SIDE, SIDE), mode="bilinear", align_corners=False
        )
        # Mean over all pixels.  PyTorch's kernel, and the rate above in this order, so that not
        # even a last bit differs: batch norms that see two values per channel multiply such a
        # bit by ten per iteration.
        loss = functional.cross_entropy(
            logits, batch["label"], ignore_index=255, reduction="none"
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("iterations", [8, pytest.param(50, marks=pytest.mark.slow)])
def test_iterations_are_those_of_a_plain_loop(iterations: int, tmp_path: Path) -> None:
    config = Config.model_validate(
        {
            "work_dir": str(tmp_path / "run"),
            "schedule": {"max_iters": iterations, "warmup_iters": WARMUP},
            "train": {
                "batch_size": BATCH,
                "evaluate": False,
                "log_interval": 1,
                "precision": "fp64",
            },
        }
    )
    torch.manual_seed(3)
    ours = create_model("cgrseg_t", 11, dropout=0.0, context_blocks=1)
    plain = create_model("cgrseg_t", 11, dropout=0.0, context_blocks=1).double()
    plain.load_state_dict(ours.state_dict())
    source = FixedBatches()
    train_on(source, config, Placement("cpu"), model=ours)

    stored = [{**batch, "image": batch["image"].double()} for batch in source.stored]
    expected = plain_loop(plain, stored, iterations)
    rows = read_table(tmp_path / "run" / "metrics.csv")
    assert len(rows) == iterations
    # it learns, so agreeing means more than not moving
    assert expected[-1] < expected[(iterations - 1) % 3] - 0.05
    assert [float(row["loss"]) for row in rows] == pytest.approx(expected, rel=1e-6)
    found = weights_of(tmp_path / "run" / "latest.pth")
    for name, value in plain.state_dict().items():
        assert torch.allclose(found[name], value, rtol=1e-6, atol=1e-6), name
