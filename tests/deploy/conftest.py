"""A small network with weights as varied as trained ones, and its checkpoint."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from cgrseg.bench.random_weights import draw_weights
from cgrseg.models import CGRSeg, create_model
from cgrseg.variants import HeadName
from tests.deploy.web_server import WebServer

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    # Containers often have no user namespaces, nor much shared memory.
    *("--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
    # WebGPU, computed by the CPU: pages do not offer it to their users.
    *("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
]

CLASSES = ["sky", "road", "tree", "car", "house"]
PALETTE = [[10, 20, 30], [128, 64, 128], [0, 200, 0], [0, 0, 250], [90, 90, 0]]


def small_network(variant: str = "cgrseg_t", head: HeadName = "dpg") -> CGRSeg:
    """A network of five classes."""
    model = create_model(variant, len(CLASSES), context_blocks=1, head=head)
    model.classes = tuple(CLASSES)
    model.palette = tuple((r, g, b) for r, g, b in PALETTE)
    model.preprocessing = {"scale": [96, 64]}
    return draw_weights(model)


def write_checkpoint(network: CGRSeg, path: Path) -> Path:
    """Its checkpoint, as the training writes it."""
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
def network() -> CGRSeg:
    return small_network()


@pytest.fixture(scope="session")
def checkpoint(network: CGRSeg, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(network, tmp_path_factory.mktemp("checkpoint") / "small.pth")


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


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium; skipped without Playwright, or without a browser that can be launched.

    Its camera shows `street_images` again and again.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    from tests.deploy.browser import street_images

    film = tmp_path_factory.mktemp("camera") / "street.mjpeg"
    film.write_bytes(b"".join(cv2.imencode(".jpg", each)[1].tobytes() for each in street_images()))
    flags = [*FLAGS, f"--use-file-for-fake-video-capture={film}"]
    with playwright.sync_playwright() as running:
        installed = [found for name in BROWSERS if (found := shutil.which(name))]
        problems = []
        for path in (None, *installed):
            try:
                launched = running.chromium.launch(executable_path=path, args=flags)
            except playwright.Error as error:
                problems.append(str(error).splitlines()[0])
                continue
            yield launched
            launched.close()
            return
        pytest.skip(f"no Chromium can be launched: {'; '.join(problems)}")


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield
