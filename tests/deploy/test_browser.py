"""The page in a real browser, served by `cgrseg web` in a process of its own.

Needs Playwright for Python and Chromium, neither of which anything else here needs; skipped
without.  CGRSEG_SCREENSHOTS names a folder for pictures of the page.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from cgrseg.inference import Predictor
from tests.deploy.conftest import CLASSES
from tests.deploy.test_web_server import free_port
from tests.inference.fixtures import photo

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
pytest.importorskip("gradio", reason="needs the extra [web]")
pytestmark = pytest.mark.slow

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def address(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a page with a small network that has random weights."""
    port = free_port()
    command = [sys.executable, "-m", "cgrseg", "web", str(checkpoint), "--port", str(port)]
    temporary = tmp_path_factory.mktemp("server")
    process = subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": str(temporary), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith(f"open http://127.0.0.1:{port}/"), said
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert not list(temporary.iterdir())  # uploads of all these tests are gone


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        installed = [found for name in BROWSERS if (found := shutil.which(name))]
        problems = []
        for path in (None, *installed):
            try:
                launched = running.chromium.launch(
                    executable_path=path,
                    # Containers often have no user namespaces, nor much shared memory.
                    args=["--no-sandbox", "--disable-dev-shm-usage"],
                )
            except playwright.Error as error:
                problems.append(str(error).splitlines()[0])
                continue
            yield launched
            launched.close()
            return
        pytest.skip(f"no Chromium can be launched: {'; '.join(problems)}")


@pytest.fixture
def window(browser: Any, address: str) -> Iterator[Any]:
    """For pages; in the end none has asked another machine, or failed silently."""
    opened = browser.new_context(viewport={"width": 1280, "height": 900})
    asked: list[str] = []
    problems: list[str] = []

    def note(said: Any) -> None:
        if said.type == "error":
            problems.append(said.text)

    opened.on("request", lambda request: asked.append(request.url))
    opened.on("weberror", lambda error: problems.append(str(error.error)))
    opened.on("console", note)
    opened.on("page", lambda page: page.on("websocket", lambda socket: asked.append(socket.url)))
    yield opened
    opened.close()
    assert any(url.startswith(f"{address}gradio_api/upload") for url in asked)
    assert not [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert not problems


def open_page(window: Any, address: str) -> Any:
    opened = window.new_page()
    opened.goto(address)
    opened.wait_for_selector("text=Drop Image Here", timeout=60_000)
    return opened


@pytest.fixture
def page(window: Any, address: str) -> Any:
    return open_page(window, address)


def upload(page: Any, path: Path) -> None:
    page.set_input_files("input[type=file]", str(path))


def keep(page: Any, name: str) -> None:
    """A screenshot for a person to look at."""
    folder = os.environ.get("CGRSEG_SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder, f"{name}.png"), full_page=True)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "street.jpg"
    Image.fromarray(photo(300, 480)).save(path, quality=95)
    return path


def test_upload_hover_and_download(
    page: Any, picture: Path, checkpoint: Path, tmp_path: Path
) -> None:
    keep(page, "empty")
    upload(page, picture)
    page.wait_for_selector(".cgrseg-paint", timeout=60_000)
    expected = Predictor.from_pretrained(checkpoint)(picture)
    with page.expect_download() as download:
        page.click(".cgrseg-download")
    assert download.value.suggested_filename == "street_labels.png"
    download.value.save_as(tmp_path / "labels.png")
    labels = np.asarray(Image.open(tmp_path / "labels.png"))
    assert np.array_equal(labels, expected.labels) and len(np.unique(labels)) > 1

    box = page.locator(".cgrseg-stage").bounding_box()
    names = set()
    for y, x in ((20, 30), (150, 240), (280, 450), (150, 30), (20, 450)):
        page.mouse.move(
            box["x"] + (x + 0.5) * box["width"] / 480, box["y"] + (y + 0.5) * box["height"] / 300
        )
        tip = page.locator(".cgrseg-tip.shown")
        assert tip.inner_text() == CLASSES[labels[y, x]]
        names.add(tip.inner_text())
    keep(page, "result")
    assert len(names) > 1
    page.mouse.move(5, 5)
    assert page.locator(".cgrseg-tip.shown").count() == 0

    rows = page.locator(".cgrseg-legend tbody tr").all_inner_texts()
    shares = {name: f"{100 * share:.1f} %" for name, share in expected.shares.items()}
    assert dict(row.split("\t") for row in rows) == shares

    paint = "getComputedStyle(document.querySelector('.cgrseg-paint')).opacity"
    assert page.evaluate(paint) == "0.5"
    page.locator("input[type=range]").fill("0.85")
    page.wait_for_function(f"{paint} == '0.85'")


def test_what_is_no_photo(page: Any, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.jpg"
    wrong.write_text("no picture")
    upload(page, wrong)
    refusal = page.wait_for_selector(".cgrseg-refusal", timeout=60_000).inner_text()
    keep(page, "wrong")
    assert "no photo" in refusal and "choose another file" in refusal
    assert str(tmp_path) not in page.content()


def test_a_hundred_megapixels(page: Any, picture: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.png"
    cv2.imwrite(str(bomb), np.zeros((10_000, 10_000), np.uint8))
    upload(page, bomb)
    refusal = page.wait_for_selector(".cgrseg-refusal", timeout=60_000).inner_text()
    keep(page, "bomb")
    assert "10000x10000 pixels" in refusal and "at most 40 megapixels" in refusal
    page.click("button[aria-label='Remove Image']")
    upload(page, picture)  # at once, while the page still notices that the other has gone
    page.wait_for_selector(".cgrseg-paint", timeout=60_000)
    assert page.locator(".cgrseg-refusal").count() == 0


def test_eight_at_once(window: Any, address: str, checkpoint: Path, tmp_path: Path) -> None:
    predictor = Predictor.from_pretrained(checkpoint)
    pages = [open_page(window, address) for _ in range(8)]
    files = [tmp_path / f"photo{number}.png" for number in range(8)]
    for number, path in enumerate(files):
        Image.fromarray(photo(200, 240 + number, seed=number)).save(path)
    for path, opened in zip(files, pages, strict=True):
        upload(opened, path)
    for path, opened in zip(files, pages, strict=True):
        opened.wait_for_selector(".cgrseg-download", timeout=120_000)
        with opened.expect_download() as download:
            opened.click(".cgrseg-download")
        saved = path.with_suffix(".labels.png")
        download.value.save_as(saved)
        assert np.array_equal(np.asarray(Image.open(saved)), predictor(path).labels)
