"""The folder of `--format web` in a real browser, which asks for nothing but its files.

Needs what tests/deploy/test_browser.py needs, the extra [export], and ONNX Runtime Web from the npm
registry or the cache.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from cgrseg.bench.random_weights import draw_weights
from cgrseg.data.synthetic import make_scene
from cgrseg.deploy import export
from cgrseg.deploy.int8 import Int8Options
from cgrseg.inference import Predictor
from cgrseg.models import CGRSeg, create_model
from tests.deploy.browser import (
    Window,
    clip,
    keep,
    labels_in,
    playwright,
    saved,
    street_images,
    upload,
    wait_for_labels,
    wait_for_status,
    wait_until,
    write_video,
)
from tests.inference.fixtures import photo

pytest.importorskip("onnxruntime", reason="needs the extra [export]")
pytestmark = pytest.mark.slow

ASK_WORKER = """async (device) => {
    const model = await (await fetch("network.json")).json();
    const image = await (await fetch("example.jpg")).blob();
    const worker = new Worker("worker.js", { type: "module" });
    worker.postMessage({ device, model });
    worker.postMessage({ image });
    return new Promise((resolve, reject) => {
        worker.onmessage = ({ data }) => {
            if (data.error) reject(new Error(data.error));
            if (data.ids) resolve([...data.ids]);
        };
    });
}"""
"""Labels of the example, from a worker of the page."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of 150 classes with weights as varied as trained ones, for any size."""
    model = draw_weights(create_model("cgrseg_t", 150, context_blocks=1))
    model.preprocessing = {"scale": [256, 192]}
    return export(model, "web", tmp_path_factory.mktemp("site")).path.parent


def headers_of(folder: Path) -> dict[str, str]:
    """Headers in the file `_headers`, by name; threads need some of them."""
    lines = (folder / "_headers").read_text().splitlines()[1:]
    return dict(line.strip().split(": ", 1) for line in lines)


@contextlib.contextmanager
def serving(folder: Path, headers: dict[str, str]) -> Iterator[str]:
    """Address of a plain web server for a folder."""

    class Handler(SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            for name, value in headers.items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, *values: object) -> None:
            pass

    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class StaticWindow(Window):
    def segmented(self) -> int:
        """How often a network was loaded."""
        return sum(url.endswith("/network.onnx") for url in self.asked)


@contextlib.contextmanager
def window_of(browser: Any, folder: Path, headers: dict[str, str] | None = None) -> Iterator[Any]:
    with serving(folder, headers or {}) as address:
        window = StaticWindow(browser, address)
        yield window
        window.close()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "street.png"
    Image.fromarray(make_scene(3, 0, (300, 480))[0]).save(path)
    return path


def equal_labels(page: Any, image: Path, network: Path, folder: Path) -> float:
    """Share of an image's pixels with the label that ONNX Runtime gives in Python."""
    upload(page, image)
    expected = Predictor.from_pretrained(network)(image).labels
    wait_for_labels(page, f"{expected.shape[1]}×{expected.shape[0]}")
    found = labels_in(saved(page, "#save-labels", folder))
    assert found.shape == expected.shape and len(np.unique(expected)) > 1
    return float((found == expected).mean())


def equal_frame_labels(page: Any, network: Path, folder: Path) -> float:
    """Share of the pixels of the shown frame with the label that ONNX Runtime gives in Python.

    The frame is the page's own: an overlay saved with labels that are fully transparent.
    """
    page.locator("#opacity").fill("0")
    frame = np.asarray(Image.open(saved(page, "#save-overlay", folder)).convert("RGB"))
    page.locator("#opacity").fill("50")
    found = labels_in(saved(page, "#save-labels", folder))
    expected = Predictor.from_pretrained(network)(frame).labels
    assert found.shape == expected.shape and len(np.unique(expected)) > 1
    return float((found == expected).mean())


@pytest.mark.parametrize("isolated", [False, True], ids=["one thread", "threads"])
def test_labels_are_those_of_onnx_runtime(
    isolated: bool, browser: Any, site: Path, image: Path, tmp_path: Path
) -> None:
    with window_of(browser, site, headers_of(site) if isolated else {}) as window:
        page = window.open()
        assert page.evaluate("crossOriginIsolated") is isolated
        assert "sent nowhere" in page.locator("#promise").inner_text()
        assert page.locator("#program").is_hidden()
        assert page.locator("#model option").all_inner_texts() == ["cgrseg_t in memory, on the CPU"]
        assert equal_labels(page, image, site / "network.onnx", tmp_path) >= 0.999
        wide = tmp_path / "wide.jpg"
        Image.fromarray(make_scene(4, 0, (240, 640))[0]).save(wide, quality=95)
        assert equal_labels(page, wide, site / "index.html", tmp_path) >= 0.999

        labels = labels_in(tmp_path / "wide_labels.png")
        predictor = Predictor.from_pretrained(site / "network.onnx")
        with Image.open(tmp_path / "wide_labels.png") as stored:
            assert stored.getpalette()[:450] == list(np.ravel(predictor.palette))
        box = page.locator("#stage").bounding_box()
        for y, x in ((20, 30), (120, 320), (200, 600)):
            page.mouse.move(
                box["x"] + (x + 0.5) * box["width"] / 640,
                box["y"] + (y + 0.5) * box["height"] / 240,
            )
            assert page.locator("#tip").inner_text() == predictor.classes[labels[y, x]]
        rows = page.locator("#legend tr").all_inner_texts()
        counts = np.bincount(labels.ravel())
        assert rows[0].split("\t") == [
            predictor.classes[counts.argmax()],
            f"{100 * counts.max() / labels.size:.1f} %",
        ]
        keep(page, f"static-{isolated}")


@pytest.mark.parametrize("bits", [16, 8])
def test_reduced_precision(bits: int, browser: Any, checkpoint: Path, tmp_path: Path) -> None:
    """Sums of 8 bits overflow in neither of the two."""
    out = tmp_path / "reduced"
    image = tmp_path / "scene.png"
    Image.fromarray(photo(200, 300)).save(image)
    eight = Int8Options(calibrate=[str(image)], max_drop=None)
    if bits == 8:
        export(checkpoint, "web", out, sizes=[(64, 96)], int8=eight)
    else:
        export(checkpoint, "web", out, sizes=[(64, 96)], precision="fp16")
    with window_of(browser, out, headers_of(out)) as window:
        assert equal_labels(window.open(), image, out / "network.onnx", tmp_path) >= 0.99


def test_webgpu_gives_the_labels_of_the_cpu(browser: Any, network: CGRSeg, tmp_path: Path) -> None:
    out = tmp_path / "site"
    export(network, "web", out, sizes=[(64, 96)])
    with serving(out, {}) as address:
        page = browser.new_page()
        page.goto(f"{address}icon.svg")  # without the policy of the page, so that it starts workers
        assert page.evaluate(
            "navigator.gpu.requestAdapter().then((each) => each.info.isFallbackAdapter)"
        )
        on_cpu, on_gpu = (np.array(page.evaluate(ASK_WORKER, each)) for each in ("wasm", "webgpu"))
        page.close()
    assert on_cpu.size == 640 * 480 and len(np.unique(on_cpu)) > 1
    assert (on_cpu == on_gpu).mean() >= 0.999


def test_it_works_without_its_server(browser: Any, site: Path, image: Path, tmp_path: Path) -> None:
    with serving(site, {}) as address:
        window = StaticWindow(browser, address)
        page = window.open()
        upload(page, image)
        wait_for_labels(page, "480×300")
    tall = tmp_path / "tall.png"
    Image.fromarray(make_scene(5, 0, (320, 200))[0]).save(tall)
    assert equal_labels(page, tall, site / "network.onnx", tmp_path) >= 0.999
    window.close()


def test_example_camera_and_video(browser: Any, site: Path, tmp_path: Path) -> None:
    with window_of(browser, site, headers_of(site)) as window:
        page = window.open()
        page.click("#example")
        wait_for_labels(page, "640×480")
        page.click("#camera")
        wait_until(page, "document.querySelector('#preview').videoWidth > 0")
        size = page.evaluate("[preview.videoWidth, preview.videoHeight].join('×')")
        page.evaluate("document.querySelector('#status').textContent = ''")
        page.click("#shoot")
        wait_for_labels(page, size)
        assert page.evaluate("document.querySelector('#preview').srcObject.active") is False
        keep(page, "static-camera")
        assert equal_frame_labels(page, site / "network.onnx", tmp_path) >= 0.999

        upload(page, write_video(tmp_path / "street.webm", street_images(), 10))
        wait_for_status(page, "at 0.0 s")
        assert equal_frame_labels(page, site / "network.onnx", tmp_path) >= 0.999
        page.locator("#seek").fill("0.5")
        wait_for_status(page, "at 0.5 s")
        keep(page, "static-street")
        assert equal_frame_labels(page, site / "network.onnx", tmp_path) >= 0.999

        upload(page, clip(tmp_path / "clip.webm", 30, 10))
        wait_for_labels(page, "160×120")
        first = labels_in(saved(page, "#save-labels", tmp_path))
        page.locator("#seek").fill("2.5")
        wait_for_status(page, "at 2.5 s")
        later = labels_in(saved(page, "#save-labels", tmp_path))
        assert first.shape == later.shape == (120, 160) and not np.array_equal(first, later)
        page.click("#play")
        wait_until(page, "document.querySelector('#play').textContent == 'Pause'")
        wait_until(page, "document.querySelector('#play').textContent == 'Play'")
        keep(page, "static-video")
        recorded = saved(page, "#record", tmp_path)
        assert "Recorded 30 frames." in page.locator("#status").inner_text()
        there, frame = cv2.VideoCapture(str(recorded)).read()
        assert there and frame.shape == (120, 160, 3)


def test_what_cannot_be_labeled_is_said(
    browser: Any, site: Path, image: Path, tmp_path: Path
) -> None:
    with window_of(browser, site) as window:
        page = window.open()
        wrong = tmp_path / "wrong.jpg"
        wrong.write_text("no image")
        upload(page, wrong)
        problem = page.locator("#problem")
        playwright.expect(problem).to_contain_text("cannot read this file as an image")
        large = tmp_path / "large.png"
        cv2.imwrite(str(large), np.zeros((7000, 6000), np.uint8))
        upload(page, large)
        playwright.expect(problem).to_contain_text("6000×7000 pixels", timeout=60_000)
        upload(page, image)
        wait_for_labels(page, "480×300")
        assert problem.is_hidden()


def linked(site: Path, copy: Path) -> Path:
    """A folder with links to the files of a page, of which some can be replaced."""
    copy.mkdir()
    for path in site.iterdir():
        (copy / path.name).symlink_to(path)
    return copy


def test_altered_canvas_pixels_are_said(
    browser: Any, site: Path, image: Path, tmp_path: Path
) -> None:
    worker = linked(site, tmp_path / "copy") / "worker.js"
    noise = """const unaltered = OffscreenCanvasRenderingContext2D.prototype.getImageData;
    OffscreenCanvasRenderingContext2D.prototype.getImageData = function (...area) {
        const found = unaltered.apply(this, area);
        found.data[found.data.length >> 1] ^= 1;
        return found;
    };
    """
    script = worker.read_text()
    worker.unlink()
    worker.write_text(noise + script)
    with serving(worker.parent, {}) as address:
        window = StaticWindow(browser, address)
        page = window.open()
        upload(page, image)
        problem = playwright.expect(page.locator("#problem"))
        problem.to_contain_text("alters the pixels of images", timeout=60_000)
        assert page.locator("#view").is_hidden()
        keep(page, "static-altered")
        window.context.close()


def test_an_incomplete_copy_is_said(browser: Any, site: Path, image: Path, tmp_path: Path) -> None:
    copy = linked(site, tmp_path / "copy")
    content = (site / "network.onnx").read_bytes()
    (copy / "network.onnx").unlink()
    (copy / "network.onnx").write_bytes(content[: len(content) // 2])
    with window_of(browser, copy) as window:
        page = window.open()
        upload(page, image)
        problem = playwright.expect(page.locator("#problem"))
        problem.to_contain_text(f"network.onnx has {len(content) // 2} bytes", timeout=60_000)
        keep(page, "static-incomplete")
    (copy / "worker.js").unlink()
    with serving(copy, {}) as address:
        window = StaticWindow(browser, address)
        window.refusals.append(404)
        page = window.open()
        upload(page, image)
        problem = playwright.expect(page.locator("#problem"))
        problem.to_contain_text("its script cannot be loaded", timeout=60_000)
        window.context.close()
