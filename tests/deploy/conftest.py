"""A small network with weights as varied as trained ones, and its checkpoint."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cgrseg.bench.random_weights import draw_weights
from cgrseg.models import CGRSeg, create_model
from tests.deploy.web_server import WebServer

CLASSES = ["sky", "road", "tree", "car", "house"]
PALETTE = [[10, 20, 30], [128, 64, 128], [0, 200, 0], [0, 0, 250], [90, 90, 0]]


@pytest.fixture(scope="session")
def network() -> CGRSeg:
    model = create_model("cgrseg_t", len(CLASSES), context_blocks=1)
    model.classes = tuple(CLASSES)
    model.palette = tuple((r, g, b) for r, g, b in PALETTE)
    model.preprocessing = {"scale": [96, 64]}
    return draw_weights(model)


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


@pytest.fixture(scope="session")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    """A web server for all tests, which SIGTERM ends as whoever sends it expects."""
    for package in ("fastapi", "uvicorn", "python_multipart"):
        pytest.importorskip(package, reason="needs the extra [web]")
    made = WebServer(repository, tmp_path_factory.mktemp("server"))
    yield made
    made.end(signal.SIGTERM)
    if sys.platform != "win32":
        assert made.process.returncode == -signal.SIGTERM
    assert made.printed == ""  # no request wrote a file, or read the secret one
    assert "Traceback" not in made.errors
    assert not any(made.temporary.iterdir())


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield
