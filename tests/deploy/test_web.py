"""The web page's limits, its API and what it shows, over a real server application."""

from __future__ import annotations

import base64
import io
import re
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from cgrseg.config.schema import TestConfig as Settings
from cgrseg.deploy.web import Limits, Service
from cgrseg.deploy.web.page import answer
from cgrseg.deploy.web.result import as_html, label_png
from cgrseg.deploy.web.server import temporary_home
from cgrseg.deploy.web.service import BusyError
from cgrseg.errors import DataError, EnvironmentProblem
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
    before = tempfile.gettempdir()
    with temporary_home() as folder:
        assert tempfile.gettempdir() == str(folder)
        (folder / "left").write_text("behind")
    assert not folder.exists() and tempfile.gettempdir() == before


def test_api(service: Service, tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="needs the extra [web]")
    import fastapi
    from starlette.testclient import TestClient

    from cgrseg.deploy.web.api import add_api

    application = fastapi.FastAPI()
    add_api(application, service)
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
    long = written(tmp_path / "long.png", np.zeros((1, 70_000, 3), np.uint8)).read_bytes()
    service.limits = Limits(pixels=100_000)
    refused = client.post("/api/predict?result=overlay", content=long)
    assert refused.status_code == 400
    assert re.search("overlay: 70000x1 pixels\n.*at most 65500", refused.json()["error"])
    assert client.post("/api/predict", content=long).status_code == 200


def test_a_full_disk_is_said(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of more than a few bytes cannot be written, as on a disk that is nearly full."""
    resource = pytest.importorskip("resource", reason="limits of POSIX systems")
    path = written(tmp_path / "a.png", photo(80, 120))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
        shown, said = answer(service, tmp_path, {"path": str(path)}, "blocks")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not shown and "larger than files may be here" in said
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(EnvironmentProblem, match="gone: writing failed"):
        label_png(predictor()(photo(80, 120)))
    shown, said = answer(service, tmp_path, {"path": str(path)}, "blocks")
    assert not shown and "cgrseg-refusal" in said and "gone" in said
    monkeypatch.undo()
    shown, said = answer(service, tmp_path, {"path": str(path), "orig_name": "a.png"}, "blocks")
    assert "a_labels.png" in shown and said.startswith("blocks, ")


def test_only_uploads_are_read(service: Service, tmp_path: Path) -> None:
    mine = written(tmp_path / "a.png", photo(80, 120))
    (tmp_path / "uploads").mkdir()
    for asked in ({"path": str(mine)}, {"path": str(tmp_path / "uploads/../a.png")}):
        shown, said = answer(service, tmp_path / "uploads", asked, "blocks")
        assert not shown and "not uploaded here" in said
    assert answer(service, tmp_path, None, "blocks") == ("", "Drop a photo first, or take one.")
