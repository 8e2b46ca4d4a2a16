"""The service behind the page: labels, limits, and the queue."""

from __future__ import annotations

import asyncio
import gc
import io
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cgrseg.cli.main import app
from cgrseg.cli.web import model_names
from cgrseg.config.schema import TestConfig as Settings
from cgrseg.deploy.web import Limits, Service
from cgrseg.deploy.web.api import _unless_disconnected
from cgrseg.deploy.web.service import PredictionQueue, Refused
from cgrseg.deploy.web.uploads import Disconnected
from cgrseg.errors import ConfigError, DataError, EnvironmentProblem
from cgrseg.inference import Predictor
from tests.deploy.web_server import png
from tests.inference.fixtures import BlockBackend, photo

CLASSES = [f"class{number}" for number in range(7)]


def predictor(backend: BlockBackend | None = None) -> Predictor:
    return Predictor(backend or BlockBackend(num_classes=7), Settings(resize="none"), CLASSES)


@pytest.fixture
def service() -> Service:
    return Service({"blocks": predictor()}, Limits(upload_bytes=200_000, pixels=50_000))


def test_an_image_is_labeled(service: Service) -> None:
    found = service.segment(png(100, 150), "blocks")
    assert np.array_equal(found.labels, predictor()(photo(100, 150)).labels)


def test_what_is_not_an_image_is_refused(service: Service) -> None:
    drawing = b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"
    playlist = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"
    for content in (b"", b"no image", drawing, playlist):
        with pytest.raises(DataError, match="not an image"):
            service.segment(content)
    with pytest.raises(DataError, match="upload: "):
        service.segment(png(90, 90)[:-900])
    with pytest.raises(DataError, match="model: 'other'"):
        service.segment(png(), "other")


def test_too_large_is_told_before_anything_is_decoded(service: Service) -> None:
    """400 megapixels in fifty kilobytes."""
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 200_000
    with pytest.raises(Refused, match=r"20000x20000 pixels\n.*at most 0\.05 megapixels") as caught:
        service.segment(bomb.getvalue())
    assert caught.value.status == 413
    with pytest.raises(Refused, match=r"0\.3 MB"):
        service.segment(b"BM" + bytes(300_000))


def test_more_bands_leave_room_for_fewer_pixels(service: Service) -> None:
    assert service.check(png(200, 200), values=3) == (200, 200)
    with pytest.raises(Refused, match=r"at most 0\.0375 megapixels"):
        service.check(png(200, 200), values=4)


def test_too_little_memory_is_not_called_damage() -> None:
    class Starved(BlockBackend):
        def logits(self, batch: torch.Tensor) -> torch.Tensor:
            return torch.empty(1 << 60)  # more than any machine has

    service = Service({"starved": predictor(Starved(num_classes=7))}, Limits())
    with pytest.raises(EnvironmentProblem, match="memory ran out"):
        service.segment(png())


def test_large_inputs_use_sliding_windows() -> None:
    backend = BlockBackend(num_classes=7)
    service = Service({"blocks": predictor(backend)}, Limits(network_pixels=600_000))
    assert service.segment(png(700, 900)).labels.shape == (700, 900)
    assert {shape[2:] for shape in backend.seen} == {(512, 512)}


def test_more_classes_than_a_png_holds() -> None:
    names, colors = [f"class{number}" for number in range(300)], [(0, 0, 0)] * 300
    many = Predictor(BlockBackend(num_classes=300), Settings(resize="none"), names, colors)
    with pytest.raises(ConfigError, match=r"300 classes\n.*at most 256"):
        Service({"many": many}, Limits())


def test_names_of_models_are_no_paths() -> None:
    assert model_names(["/srv/a/best.pth", "small.onnx"]) == ["best.pth", "small.onnx"]
    assert model_names(["/srv/a/best.pth", "/srv/b/best.pth"]) == ["a/best.pth", "b/best.pth"]
    assert model_names(["a\udcff.pth"]) == ["a\N{REPLACEMENT CHARACTER}.pth"]
    assert model_names(["/x/a/best.pth", "/y/a/best.pth"]) == ["a/best.pth (1)", "a/best.pth (2)"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a.pth", "--token", "short"], "--token: 5 characters"),
        (["a.pth", "--token", "long enough, yet no header"], "letters, digits or"),
        (["a.pth", "--token", "schlüssel-zum-server"], "letters, digits or"),
        (["a.pth", "--seconds", "nan"], "--seconds"),
        (["test.flip=true"], "at least one checkpoint"),
    ],
)
def test_wrong_options_are_messages(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("fastapi", reason="needs the extra [web]")
    with pytest.raises(SystemExit) as caught:
        app(["web", *arguments])
    assert caught.value.code == 2 and words in capsys.readouterr().err


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Work waits for it."""
    event = threading.Event()
    yield event
    event.set()


def test_the_queue_has_places_and_an_end(gate: threading.Event) -> None:
    async def scenario() -> None:
        queue = PredictionQueue(Limits(waiting=3, seconds=30))

        def work() -> str:
            assert gate.wait(30)
            return "done"

        jobs = [asyncio.ensure_future(queue.run(work, name)) for name in ("a", "b", "c")]
        await asyncio.sleep(0)
        assert [queue.place(name) for name in ("a", "b", "c", "d")] == [0, 1, 2, None]
        with pytest.raises(Refused, match="3 requests are waiting already") as caught:
            await queue.run(work)
        assert caught.value.status == 503
        jobs[1].cancel()  # its client left
        await asyncio.wait([jobs[1]])
        assert len(queue) == 2 and queue.place("c") == 1
        gate.set()
        assert [await jobs[0], await jobs[2]] == ["done", "done"]
        assert len(queue) == 0
        queue.close()

    asyncio.run(scenario())


def test_a_failure_after_the_client_left_is_told_to_nobody() -> None:
    class Gone:
        async def receive(self) -> dict[str, str]:
            return {"type": "http.disconnect"}

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError as error:
            raise DataError("a damaged image") from error

    async def scenario() -> list[Any]:
        told: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, found: told.append(found))
        with pytest.raises(Disconnected):
            await _unless_disconnected(Gone(), work())
        await asyncio.sleep(0)
        gc.collect()
        return told

    assert asyncio.run(scenario()) == []


def test_an_answer_has_its_time(gate: threading.Event) -> None:
    async def scenario() -> None:
        queue = PredictionQueue(Limits(seconds=0.2))
        with pytest.raises(Refused, match=r"no answer within 0\.2 seconds"):
            await queue.run(lambda: gate.wait(30), "slow")
        assert queue.place("slow") == 0  # it is being computed still, and holds its place
        with pytest.raises(Refused, match=r"no answer within 0\.2 seconds"):
            await queue.run(lambda: None, "next")
        assert queue.place("next") is None
        queue.close()

    asyncio.run(scenario())
