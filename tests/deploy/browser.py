"""What the tests of the page in a real browser share.

Importing it skips a test module where Playwright for Python is missing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from cgrseg.data.synthetic import make_scene
from tests.conftest import SHARED_DATA

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")


class Window:
    """A window of the browser, whose pages ask one server only and fail nowhere silently.

    Attributes:
        address: of the server.
        context: of Playwright.
        asked: addresses of all requests.
        refusals: statuses that the test expects; the browser writes them into its console.
    """

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        options.setdefault("viewport", {"width": 1280, "height": 900})
        self.address = address
        self.context = browser.new_context(**options)
        self.asked: list[str] = []
        self.refusals: list[int] = []
        self._problems: list[str] = []
        self.context.on("request", lambda request: self.asked.append(request.url))
        self.context.on("weberror", lambda error: self._problems.append(str(error.error)))
        self.context.on("console", self._note)

    def _note(self, said: Any) -> None:
        if said.type == "error" and not any(f"status of {n}" in said.text for n in self.refusals):
            self._problems.append(said.text)

    def open(self) -> Any:
        page = self.context.new_page()
        page.goto(self.address)
        playwright.expect(page.locator("#model option")).not_to_have_count(0)
        return page

    def segmented(self) -> int:
        """How many images were sent."""
        return sum("/v1/segment" in url for url in self.asked)

    def close(self) -> None:
        self.context.close()
        assert self.segmented()
        assert not [url for url in self.asked if not url.startswith((self.address, "blob:"))]
        assert not self._problems


def keep(page: Any, name: str) -> None:
    """A screenshot for a person to look at."""
    folder = os.environ.get("CGRSEG_SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder, f"{name}.png"), full_page=True)


def upload(page: Any, path: Path) -> None:
    page.set_input_files("#file", str(path))


def wait_for_labels(page: Any, size: str = "") -> None:
    wait_for_status(page, f"{size} pixels")


def wait_for_status(page: Any, words: str) -> None:
    playwright.expect(page.locator("#status[role=status]")).to_contain_text(words, timeout=120_000)


def wait_until(page: Any, expression: str) -> None:
    """Playwright's own waiting for an expression is what the page's policy forbids."""
    for _ in range(1_200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"never true: {expression}")


def saved(page: Any, button: str, folder: Path) -> Path:
    """What a button downloads, under the name that the page gives it."""
    with page.expect_download(timeout=120_000) as download:
        page.click(button)
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def labels_in(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def clip(path: Path, frames: int, rate: int) -> Path:
    """A video whose left part is white, and wider from frame to frame."""
    images = np.zeros((frames, 120, 160, 3), np.uint8)
    for number, image in enumerate(images):
        image[:, : 16 + 144 * number // frames] = 255
    return write_video(path, list(images), rate)


def write_video(path: Path, images: list[np.ndarray], rate: int) -> Path:
    """A video in VP8 of BGR images (H, W, 3) of one size; `rate` in frames per second."""
    height, width = images[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"VP80"), rate, (width, height))
    for image in images:
        writer.write(image)
    writer.release()
    return path


def street_images() -> list[np.ndarray]:
    """Ten BGR images (360, 480, 3): test images of CamVid, or synthetic scenes without them."""
    paths = sorted((SHARED_DATA / "camvid/images/test").glob("*.jpg"))[::20][:10]
    images = [np.asarray(Image.open(path)) for path in paths]
    images = images or [make_scene(2, number, (360, 480))[0] for number in range(10)]
    return [image[:, :, ::-1].copy() for image in images]
