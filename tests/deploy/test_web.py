"""The web page's limits, its API and what it shows, over a real server application."""

from __future__ import annotations

import asyncio
import base64
import io
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from cgrseg.config.schema import TestConfig as Settings
from cgrseg.deploy.web import Limits, Service
from cgrseg.deploy.web.result import as_html, label_png
from cgrseg.deploy.web.server import Guard, temporary_home
from cgrseg.deploy.web.service import BusyError
from cgrseg.errors import DataError
from cgrseg.inference import Predictor
from tests.inference.fixtures import BlockBackend, photo

CLASSES = ["sky", "road", "<b>tree</b>", "car", "house", "sign", "pole"]


class SlowBackend(BlockBackend):
    """Waits for a signal before it answers."""

    def __init__(self) -> None:
        super().__init__(num_classes=7)
        self.go = threading.Event()

    def logits(self, batch: torch.Tensor) -> torch.Tensor:
        assert self.go.wait(30)
        return super().logits(batch)


def predictor(backend: BlockBackend | None = None) -> Predictor:
    settings = Settings(resize="none")
    return Predictor(backend or BlockBackend(num_classes=7), settings, CLASSES)


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service({"blocks": predictor()}, Limits(upload_bytes=200_000, pixels=50_000))
    yield made
    made.close()


def written(path: Path, picture: np.ndarray) -> Path:
    Image.fromarray(picture).save(path)
    return path


def test_a_photo_is_labelled(service: Service, tmp_path: Path) -> None:
    picture = photo(100, 150)
    found = service.predict(written(tmp_path / "a.png", picture), "blocks")
    assert np.array_equal(found.labels, predictor()(picture).labels)


def test_what_is_no_photo_is_refused(service: Service, tmp_path: Path) -> None:
    text = tmp_path / "a.jpg"
    text.write_text("no picture")
    with pytest.raises(DataError, match="no photo"):
        service.predict(text, "blocks")
    drawing = tmp_path / "a.svg"
    drawing.write_text("<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>")
    with pytest.raises(DataError, match="no photo"):
        service.predict(drawing, "blocks")
    cut = tmp_path / "cut.png"
    cut.write_bytes(written(tmp_path / "b.png", photo(90, 90)).read_bytes()[:-900])
    with pytest.raises(DataError) as caught:
        service.predict(cut, "blocks")
    assert str(tmp_path) not in str(caught.value)
    with pytest.raises(DataError, match="model: 'other'"):
        service.predict(text, "other")


def test_too_large_is_told_before_anything_is_decoded(service: Service, tmp_path: Path) -> None:
    """A hundred megapixels in a hundred kilobytes."""
    bomb = tmp_path / "bomb.png"
    cv2.imwrite(str(bomb), np.zeros((10_000, 10_000), np.uint8))
    assert bomb.stat().st_size < 200_000
    with pytest.raises(DataError, match=r"10000x10000 pixels\n.*at most 0\.05 megapixels"):
        service.predict(bomb, "blocks")
    heavy = tmp_path / "heavy.bmp"
    heavy.write_bytes(b"BM" + bytes(300_000))
    with pytest.raises(DataError, match=r"0\.3 MB"):
        service.predict(heavy, "blocks")


def test_large_inputs_are_done_in_windows(tmp_path: Path) -> None:
    backend = BlockBackend(num_classes=7)
    service = Service({"blocks": predictor(backend)}, Limits(network_pixels=600_000))
    found = service.predict(written(tmp_path / "a.png", photo(700, 900)), "blocks")
    assert found.labels.shape == (700, 900)
    assert {shape[2:] for shape in backend.seen} == {(512, 512)}
    service.close()


def test_too_many_and_too_long(tmp_path: Path) -> None:
    backend = SlowBackend()
    service = Service({"slow": predictor(backend)}, Limits(waiting=2, seconds=0.3))
    path = written(tmp_path / "a.png", photo(64, 64))
    answers: list[str] = []

    def ask() -> None:
        try:
            service.predict(path, "slow")
        except BusyError as error:
            answers.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted("waiting already" in answer for answer in answers) == [False, False, True, True]
    assert sum("no answer within 0.3 seconds" in answer for answer in answers) == 2
    backend.go.set()
    service.limits = Limits(seconds=30)
    assert service.predict(path, "slow").labels.shape == (64, 64)
    service.close()


def test_the_page_shows_pictures_names_and_shares() -> None:
    prediction = predictor()(photo(96, 128))
    shown = as_html(prediction, '"><script>x.jpg')
    assert "<script>" not in shown and "<b>tree" not in shown
    shares = re.findall(r"<td>([\d.]+) %</td>", shown)
    assert len(shares) == len(prediction.shares)
    assert abs(sum(map(float, shares)) - 100) < 1
    coded = re.search(r'cgrseg-ids" alt="" src="data:image/png;base64,([^"]+)"', shown)
    assert coded is not None
    ids = np.asarray(Image.open(io.BytesIO(base64.b64decode(coded[1]))).convert("RGB"))
    assert np.array_equal(ids[:, :, 0], prediction.labels) and not ids[:, :, 1:].any()
    indexed = Image.open(io.BytesIO(label_png(prediction)))
    assert indexed.mode == "P" and np.array_equal(np.asarray(indexed), prediction.labels)


def test_only_one_folder_is_written_to() -> None:
    import tempfile

    before = tempfile.gettempdir()
    with temporary_home() as folder:
        assert tempfile.gettempdir() == str(folder)
        (folder / "left").write_text("behind")
    assert not folder.exists() and tempfile.gettempdir() == before


def ask(headers: list[tuple[bytes, bytes]], body: list[bytes]) -> tuple[int, dict[bytes, bytes]]:
    """A request to a guarded application that reads its body and says how long it was."""
    sent: list[dict[str, Any]] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            seen += len(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(seen).encode()})

    async def main() -> None:
        parts = [
            {"type": "http.request", "body": part, "more_body": number < len(body) - 1}
            for number, part in enumerate(body)
        ]

        async def receive() -> Any:
            return parts.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        await Guard(application, 100_000, "127.0.0.1")(
            {"type": "http", "headers": headers}, receive, send
        )

    asyncio.run(main())
    return (sent[0]["status"], dict(sent[0]["headers"])) if sent else (0, {})


HOME = (b"Host", b"127.0.0.1:7860")


def test_guard() -> None:
    status, headers = ask([HOME], [b"abc"])
    assert status == 200
    assert b"default-src 'self'" in headers[b"content-security-policy"]
    assert b"http" not in headers[b"content-security-policy"]
    assert ask([(b"host", b"[::1]:7860")], [b""])[0] == 200
    assert ask([(b"host", b"evil.example")], [b""])[0] == 421
    assert ask([], [b""])[0] == 421
    assert ask([HOME, (b"content-length", b"999999")], [b""])[0] == 413
    assert ask([HOME], [b"x" * 60_000] * 4)[0] == 0  # a body longer than it said


def test_api(service: Service, tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="needs the extra [web]")
    import fastapi
    from starlette.testclient import TestClient

    from cgrseg.deploy.web.server import _add_api

    application = fastapi.FastAPI()
    _add_api(fastapi, application, service)
    client = TestClient(application)
    picture = photo(80, 120)
    content = written(tmp_path / "a.png", picture).read_bytes()
    wanted = predictor()(picture)
    labels = client.post("/api/predict", content=content)
    assert labels.headers["content-type"] == "image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(labels.content))), wanted.labels)
    shares = client.post("/api/predict?result=shares&model=blocks", content=content).json()
    assert shares == {"width": 120, "height": 80, "shares": wanted.shares}
    overlay = client.post("/api/predict?result=overlay", content=content)
    assert Image.open(io.BytesIO(overlay.content)).size == (120, 80)
    for address, body in (
        ("/api/predict", b"no photo"),
        ("/api/predict?result=other", content),
        ("/api/predict?model=other", content),
    ):
        refused = client.post(address, content=body)
        assert refused.status_code == 400 and "expected" in refused.json()["error"]
