"""The page in a real browser, served by `cgrseg web` in a process of its own.

Needs Playwright for Python and Chromium, neither of which anything else here needs; skipped
without.  CGRSEG_SCREENSHOTS names a folder for pictures of the page.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
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

from cgrseg.bench.random_weights import draw_weights
from cgrseg.config.schema import ChannelsConfig, ChannelTestConfig
from cgrseg.inference import Predictor
from cgrseg.models import create_model
from tests.deploy.browser import (
    Window,
    clip,
    keep,
    labels_in,
    playwright,
    saved,
    upload,
    wait_for_labels,
    wait_for_status,
    wait_until,
)
from tests.deploy.conftest import CLASSES, write_checkpoint
from tests.deploy.web_server import free_port
from tests.inference.fixtures import photo

pytest.importorskip("fastapi", reason="needs the extra [web]")
pytestmark = pytest.mark.slow


@contextlib.contextmanager
def serving(temporary: Path, *arguments: str) -> Iterator[str]:
    """Address of a page, as the command prints it."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "cgrseg", "web", *arguments, "--port", str(port)],
        env={**os.environ, "TMPDIR": str(temporary), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        while said and not said.startswith("open "):  # which weights were loaded
            said = process.stdout.readline()
        address = said.split()[1]
        assert f":{port}/" in address
        yield address
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert not list(temporary.iterdir())


@pytest.fixture(scope="module")
def address(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a page with a small network that has random weights, offered twice."""
    again = tmp_path_factory.mktemp("again") / "second.pth"
    shutil.copy(checkpoint, again)
    arguments = (str(checkpoint), str(again), "--frames", "5")
    with serving(tmp_path_factory.mktemp("server"), *arguments) as found:
        yield found


@pytest.fixture
def window(browser: Any, address: str) -> Iterator[Window]:
    opened = Window(browser, address)
    yield opened
    opened.close()


@pytest.fixture
def page(window: Window) -> Any:
    return window.open()


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
    wait_for_labels(page, "480×300")
    expected = Predictor.from_pretrained(checkpoint)(picture)
    path = saved(page, "#save-labels", tmp_path)
    assert path.name == "street_labels.png"
    labels = labels_in(path)
    assert np.array_equal(labels, expected.labels) and len(np.unique(labels)) > 1

    box = page.locator("#stage").bounding_box()
    names = set()
    for y, x in ((20, 30), (150, 240), (280, 450), (150, 30), (20, 450)):
        page.mouse.move(
            box["x"] + (x + 0.5) * box["width"] / 480, box["y"] + (y + 0.5) * box["height"] / 300
        )
        assert page.locator("#tip").inner_text() == CLASSES[labels[y, x]]
        names.add(page.locator("#tip").inner_text())
    keep(page, "result")
    assert len(names) > 1
    page.mouse.move(5, 5)
    assert page.locator("#tip").is_hidden()

    rows = page.locator("#legend tr").all_inner_texts()
    shares = {name: f"{100 * share:.1f} %" for name, share in expected.shares.items()}
    assert dict(row.split("\t") for row in rows) == shares
    table = saved(page, "#save-shares", tmp_path).read_text().splitlines()
    assert table[0] == "id,class,pixels,share" and len(table) == 1 + len(shares)

    paint = "getComputedStyle(document.querySelector('#paint')).opacity"
    assert page.evaluate(paint) == "0.5"
    page.locator("#opacity").fill("100")
    wait_until(page, f"{paint} == '1'")
    overlay = labels_in(saved(page, "#save-overlay", tmp_path))
    assert np.array_equal(overlay[:, :, :3], np.asarray(expected.palette)[labels])


def test_example_other_model_and_camera(page: Any) -> None:
    page.click("#example")
    wait_for_labels(page, "640×480")
    with page.expect_response(lambda answer: "model=second.pth" in answer.url) as answer:
        page.select_option("#model", "second.pth")
    assert answer.value.status == 200
    page.click("#camera")
    wait_until(page, "document.querySelector('#preview').videoWidth > 0")
    keep(page, "camera")
    with page.expect_response("**/v1/segment*"):
        page.click("#shoot")
    wait_for_labels(page)
    assert page.evaluate("document.querySelector('#preview').srcObject.active") is False


def test_a_choice_of_channels(browser: Any, tmp_path: Path) -> None:
    """A network of four channels, and a TIFF file, which browsers cannot show."""
    names = ["nir", "red", "green", "blue"]
    model = create_model("cgrseg_t", len(CLASSES), context_blocks=1, in_channels=4)
    model.classes = tuple(CLASSES)
    shown = ChannelsConfig(names=names, mean=[128] * 4, std=[51] * 4, types=["uint8"] * 4)
    model.preprocessing = ChannelTestConfig(scale=(96, 64), channels=shown).model_dump(mode="json")
    network = write_checkpoint(draw_weights(model), tmp_path / "four.pth")
    flat = np.full((64, 96, 4), (200, 10, 90, 170), np.uint8)
    flat[:, :48] = (20, 210, 120, 60)
    Image.fromarray(flat).save(tmp_path / "scene.tif")
    (tmp_path / "temporary").mkdir()
    with serving(tmp_path / "temporary", str(network)) as address:
        window = Window(browser, address)
        page = window.open()
        upload(page, tmp_path / "scene.tif")
        wait_for_labels(page, "96×64")

        def colors() -> list[list[int]]:
            drawn = "(x) => [...document.querySelector('#image').getContext('2d')"
            drawn += ".getImageData(x, 30, 1, 1).data].slice(0, 3)"
            return [page.evaluate(drawn, x) for x in (20, 80)]

        assert np.abs(np.array(colors()) - [[210, 120, 60], [10, 90, 170]]).max() < 12
        keep(page, "channels")
        page.get_by_label("Channel shown as green").select_option("nir")
        for _ in range(50):
            if abs(colors()[1][1] - 200) < 12:
                break
            page.wait_for_timeout(100)
        assert np.abs(np.array(colors()) - [[210, 20, 60], [10, 200, 170]]).max() < 12
        predictor = Predictor.from_pretrained(network)
        expected = predictor(tmp_path / "scene.tif").labels
        assert np.array_equal(labels_in(saved(page, "#save-labels", tmp_path)), expected)

        # A choice while the next image is being labeled does not stop it.
        Image.fromarray(np.rot90(flat, 2)).save(tmp_path / "next.tif")
        held = []
        page.route("**/v1/segment?*format=png*", lambda route: held.append(route))
        upload(page, tmp_path / "next.tif")
        while not held:
            page.wait_for_timeout(50)
        page.get_by_label("Channel shown as green").select_option("blue")
        page.unroute("**/v1/segment?*format=png*")
        wait_for_labels(page, "96×64")
        turned = predictor(tmp_path / "next.tif").labels
        assert np.array_equal(labels_in(saved(page, "#save-labels", tmp_path)), turned)

        # Labels need no image.
        page.route(
            "**/v1/segment?*format=image*", lambda route: route.fulfill(status=503, body="x")
        )
        window.refusals.append(503)
        page.get_by_label("Channel shown as green").select_option("green")
        page.locator("#problem").wait_for(state="visible")
        upload(page, tmp_path / "scene.tif")
        wait_for_labels(page, "96×64")
        assert np.array_equal(labels_in(saved(page, "#save-labels", tmp_path)), expected)
        window.close()


@pytest.mark.parametrize(
    "dispatched",
    [
        "new ClipboardEvent('paste', { clipboardData: data })",
        "new DragEvent('drop', { dataTransfer: data })",
    ],
    ids=["paste", "drop"],
)
def test_paste_and_drop(
    dispatched: str, page: Any, picture: Path, checkpoint: Path, tmp_path: Path
) -> None:
    page.evaluate(
        """async (content) => {
            const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], "image.jpg", { type: "image/jpeg" }));
            document.dispatchEvent(EVENT);
        }""".replace("EVENT", dispatched),
        base64.b64encode(picture.read_bytes()).decode(),
    )
    wait_for_labels(page, "480×300")
    expected = Predictor.from_pretrained(checkpoint)(picture)
    assert np.array_equal(labels_in(saved(page, "#save-labels", tmp_path)), expected.labels)


def test_video(window: Window, tmp_path: Path) -> None:
    page = window.open()
    upload(page, clip(tmp_path / "clip.webm", 30, 10))
    wait_for_labels(page, "160×120")
    assert "Frame at 0.0 s" in page.locator("#status").inner_text()
    first = labels_in(saved(page, "#save-labels", tmp_path))
    assert first.shape == (120, 160)
    page.locator("#seek").fill("2.5")
    wait_for_status(page, "at 2.5 s")
    later = labels_in(saved(page, "#save-labels", tmp_path))
    assert not np.array_equal(first, later)
    keep(page, "video")
    box = page.locator("#paint").bounding_box()  # small images are enlarged, in their ratio
    assert box["width"] == 480 and box["height"] == 360
    page.click("#play")
    wait_until(page, "document.querySelector('#play').textContent == 'Pause'")
    wait_until(page, "document.querySelector('#play').textContent == 'Play'")
    before = window.segmented()
    recorded = saved(page, "#record", tmp_path)
    assert recorded.name == "clip_overlay.webm"
    assert window.segmented() == before + 5  # --frames
    assert "the first 0.5 s: the limit" in page.locator("#status").inner_text()
    upload(page, recorded)  # a recording does not say how long it is
    wait_for_status(page, "Frame at 0.0 s")
    assert re.fullmatch(r"0\.0 of 0\.\d s", page.locator("#time").inner_text())
    reading = cv2.VideoCapture(str(recorded))
    there, frame = reading.read()
    assert there and frame.shape == (120, 160, 3)


def test_a_video_of_an_hour_costs_one_frame(window: Window, tmp_path: Path) -> None:
    page = window.open()
    upload(page, clip(tmp_path / "hour.webm", 3600, 1))
    wait_for_labels(page, "160×120")
    assert window.segmented() == 1


def test_keyboard_alone(page: Any, window: Window) -> None:
    def press_until(selector: str) -> None:
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        pytest.fail(f"{selector} is not reached with the keyboard")

    press_until("#file")
    press_until("#example")
    page.keyboard.press("Enter")
    wait_for_labels(page, "640×480")
    press_until("#stage")
    page.keyboard.press("ArrowRight")
    middle = page.locator("#tip").inner_text()
    assert middle in CLASSES and page.locator("#cross").is_visible()
    keep(page, "keyboard")
    for _ in range(60):
        page.keyboard.press("ArrowUp")
    assert page.locator("#cross").evaluate("each => each.style.top") == "0%"
    press_until("#save-labels")
    with page.expect_download():
        page.keyboard.press("Enter")


def test_narrow_and_dark(browser: Any, address: str, picture: Path) -> None:
    window = Window(browser, address, viewport={"width": 390, "height": 844}, color_scheme="dark")
    page = window.open()
    upload(page, picture)
    wait_for_labels(page, "480×300")
    keep(page, "narrow")
    page.click("summary")
    keep(page, "narrow-details")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(int(value) for value in background[4:-1].split(",")) < 64
    window.close()


def test_what_is_not_an_image(page: Any, window: Window, tmp_path: Path) -> None:
    window.refusals.append(400)
    wrong = tmp_path / "wrong.jpg"
    wrong.write_text("no picture")
    upload(page, wrong)
    page.wait_for_selector("#problem:not([hidden])", timeout=60_000)
    keep(page, "wrong")
    refusal = page.locator("#problem").inner_text()
    assert "not an image" in refusal and "choose another file" in refusal
    assert str(tmp_path) not in page.content()


def test_a_hundred_megapixels(page: Any, window: Window, picture: Path, tmp_path: Path) -> None:
    window.refusals.append(413)
    bomb = tmp_path / "bomb.png"
    cv2.imwrite(str(bomb), np.zeros((10_000, 10_000), np.uint8))
    upload(page, bomb)
    page.wait_for_selector("#problem:not([hidden])", timeout=60_000)
    refusal = page.locator("#problem").inner_text()
    assert "10000x10000 pixels" in refusal and "at most 40 megapixels" in refusal
    upload(page, picture)
    wait_for_labels(page, "480×300")
    assert page.locator("#problem").is_hidden()


def test_eight_tabs_and_their_places(window: Window, checkpoint: Path, tmp_path: Path) -> None:
    predictor = Predictor.from_pretrained(checkpoint)
    pages = [window.open() for _ in range(8)]
    files = [tmp_path / f"photo{number}.png" for number in range(8)]
    for number, path in enumerate(files):
        Image.fromarray(photo(200, 240 + number, seed=number)).save(path)
    for path, opened in zip(files, pages, strict=True):
        upload(opened, path)
    for number, (path, opened) in enumerate(zip(files, pages, strict=True)):
        wait_for_labels(opened, f"{240 + number}×200")
        labels = labels_in(saved(opened, "#save-labels", tmp_path))
        assert np.array_equal(labels, predictor(path).labels)


def test_the_place_in_the_queue_is_shown(page: Any, picture: Path) -> None:
    """The answers of a busy server, given by the test."""
    page.route("**/v1/queue*", lambda route: route.fulfill(json={"place": 3, "length": 7}))
    held: list[Any] = []
    page.route("**/v1/segment*", lambda route: held.append(route))
    upload(page, picture)
    wait_for_status(page, "Waiting: place 3 of 7 in the queue.")
    keep(page, "waiting")
    held[0].continue_()
    wait_for_labels(page, "480×300")


@pytest.mark.skipif(sys.platform != "linux", reason="all of 127.0.0.0/8 is this machine")
def test_a_token_beyond_this_machine(
    browser: Any, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, picture: Path
) -> None:
    temporary = tmp_path_factory.mktemp("token")
    with serving(temporary, str(checkpoint), "--host", "127.0.0.2") as printed:
        plain, _, token = printed.partition("#token=")
        assert len(token) >= 32
        window = Window(browser, plain)
        window.refusals.append(401)
        page = window.context.new_page()
        page.goto(printed)  # the token stays in the browser
        upload(page, picture)
        wait_for_labels(page, "480×300")
        assert page.url == plain and not any(token in url for url in window.asked)
        other = window.context.new_page()
        other.goto(plain)
        playwright.expect(other.locator("#token")).to_be_focused()
        other.keyboard.press("Escape")
        playwright.expect(other.locator("#problem")).to_contain_text("with a token only")
        upload(other, picture)  # asks again
        for given, wrong in (("a wrong token", False), (token, True)):
            problem = playwright.expect(other.locator("#token-problem"))
            problem.to_be_visible() if wrong else problem.to_be_hidden()
            other.locator("#token").fill(given)
            keep(other, "token")
            other.get_by_role("button", name="Continue").click()
        wait_for_labels(other, "480×300")
        window.close()
