"""One training step of CGRSeg-T against the published code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cgrseg.config.schema import LossConfig
from cgrseg.models import create_model
from cgrseg.training.losses import SegmentationLoss, pixel_accuracy
from tests.golden_weights import generator, golden_input, set_golden_weights


def test_loss_and_gradients_are_those_of_the_published_code(golden_dir: Path) -> None:
    golden = json.loads((golden_dir / "official.json").read_text())["train_t_256x256_batch2"]
    outputs = np.load(golden_dir / "official.npz")
    model = create_model("cgrseg_t", 150, dropout=0.0, drop_path=0.0)
    set_golden_weights(model)
    model.train()
    model.backbone.eval()
    image = golden_input("train_input", (2, 3, 256, 256))
    small = generator("train_label").integers(0, 150, (2, 1, 32, 32))
    label = torch.from_numpy(small.repeat(8, axis=2).repeat(8, axis=3)[:, 0]).long()
    label[:, :16, :48] = 255

    logits = model(image)
    wanted = torch.from_numpy(outputs["train_logits"])
    found = logits.detach()[:, ::7, ::2, ::2]
    assert float((found - wanted).norm() / wanted.norm()) < 1e-4

    terms = SegmentationLoss(LossConfig(), 150)(logits, label)
    assert float(terms["loss"].detach()) == pytest.approx(golden["loss_ce"], rel=1e-5)
    accuracy = float(pixel_accuracy(logits.detach(), label, 255))
    # a pixel more or less among 129,536 labelled ones
    assert accuracy == pytest.approx(golden["acc_seg"], abs=100.0 / 100_000)

    terms["loss"].backward()
    norms = {
        name: float(value.grad.norm())
        for name, value in model.named_parameters()
        if value.grad is not None
    }
    assert len(golden["grad_norm"]) == 583
    assert set(norms) == set(golden["grad_norm"])
    # Biases that a following batch norm or softmax cancels have no gradient but rounding.
    vanishing = {name for name, value in golden["grad_norm"].items() if value < 2e-8}
    assert len(vanishing) == 28
    assert all(
        name.endswith(".bias") or name.endswith("linear_fuse.conv.weight") for name in vanishing
    )
    for name, wanted_norm in golden["grad_norm"].items():
        if name in vanishing:
            assert norms[name] < 1e-7, name
        else:
            assert norms[name] == pytest.approx(wanted_norm, rel=1e-3, abs=0.0), name
