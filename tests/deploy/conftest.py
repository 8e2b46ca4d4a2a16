"""A small network with weights as varied as trained ones, and its checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cgrseg.models import CGRSeg, create_model
from cgrseg.reporting.bench import spread_weights

CLASSES = ["sky", "road", "tree", "car", "house"]
PALETTE = [[10, 20, 30], [128, 64, 128], [0, 200, 0], [0, 0, 250], [90, 90, 0]]


@pytest.fixture(scope="session")
def network() -> CGRSeg:
    model = create_model("cgrseg_t", len(CLASSES), context_blocks=1)
    model.classes = tuple(CLASSES)
    model.palette = tuple((r, g, b) for r, g, b in PALETTE)
    model.preprocessing = {"scale": [96, 64]}
    return spread_weights(model)


@pytest.fixture(scope="session")
def checkpoint(network: CGRSeg, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "small.pth"
    meta = {
        "format": 1,
        "variant": network.variant,
        "context_blocks": network.context_blocks,
        "classes": CLASSES,
        "palette": PALETTE,
        "preprocessing": network.preprocessing,
    }
    torch.save({"state_dict": network.state_dict(), "meta": meta}, path)
    return path


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield
