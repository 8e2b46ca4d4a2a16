"""The server as a process of its own: what it answers, what it refuses, how it ends."""

from __future__ import annotations

import contextlib
import io
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cgrseg.config.schema import TestConfig as Settings
from cgrseg.deploy.web.server import _listen
from cgrseg.errors import EnvironmentProblem
from cgrseg.inference import Prediction, Predictor
from cgrseg.visual.overlay import overlay
from tests.deploy.web_server import WebServer, form, free_port, png
from tests.inference.fixtures import BlockBackend, photo

CLASSES = [f"class{number}" for number in range(7)]


@pytest.fixture(scope="module")
def expected() -> Prediction:
    return Predictor(BlockBackend(num_classes=7), Settings(resize="none"), CLASSES)(photo(80, 120))


def test_it_can_be_asked_when_it_says_so(server: WebServer) -> None:
    assert server.said == f"200 {server.address}/\n"


def test_label_map(server: WebServer, expected: Prediction) -> None:
    for body, headers in ((png(), {}), form(png())):
        status, content = server.ask("/v1/segment", body, headers)
        assert status == 200
        indexed = Image.open(io.BytesIO(content))
        assert indexed.mode == "P" and np.array_equal(np.asarray(indexed), expected.labels)
        assert indexed.getpalette()[:3] == list(expected.palette[0])


def test_json_and_overlay(server: WebServer, expected: Prediction) -> None:
    asked = server.ask("/v1/segment?format=json&model=blocks", png())
    assert asked == server.ask("/v1/segment", png(), {"Accept": "application/json, */*"})
    found = json.loads(asked[1])
    assert (found["width"], found["height"]) == (120, 80)
    assert {each["name"]: each["share"] for each in found["classes"]} == expected.shares
    first = found["classes"][0]
    assert first["pixels"] == (expected.labels == first["id"]).sum()
    assert first["color"] == list(expected.palette[first["id"]])
    status, content = server.ask("/v1/segment?opacity=0", png(), {"Accept": "image/jpeg"})
    assert status == 200
    assert content == jpeg(expected.overlay(0.0))


def four_bands() -> NDArray[np.uint8]:
    """Four channels (40, 60), as a PNG file stores them."""
    return np.random.default_rng(0).integers(0, 256, (40, 60, 4), dtype=np.uint8)


def jpeg(image: NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".jpg", np.ascontiguousarray(image[:, :, ::-1]))[1].tobytes()


@pytest.mark.parametrize(
    ("bands", "shown"), [("", [1, 2, 3]), ("nir,nir,b2", [0, 0, 3]), ("b2,b3,nir", [3, 2, 0])]
)
def test_channels_that_are_shown(server: WebServer, bands: str, shown: list[int]) -> None:
    pixels = four_bands()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    path = f"/v1/segment?model=four&format=image&bands={bands}"
    mean, std = np.array([100, 110, 120, 130])[shown], np.array([40, 50, 60, 70])[shown]
    gray = (pixels[:, :, shown] - mean) / std * 51 + 127.5
    expected = np.clip(gray.astype(np.float32), 0, 255).astype(np.uint8)
    status, content = server.ask(path, file.getvalue())
    assert (status, content) == (200, jpeg(expected))
    status, labels = server.ask("/v1/segment?model=four", file.getvalue())
    assert status == 200
    indexed = Image.open(io.BytesIO(labels))
    palette = np.array(indexed.getpalette(), np.uint8).reshape(-1, 3)[:7]
    painted = overlay(expected, np.asarray(indexed), palette, 0.3)
    found = server.ask(path.replace("format=image", "format=jpeg&opacity=0.3"), file.getvalue())
    assert found == (200, jpeg(painted))


def test_what_is_there(server: WebServer, expected: Prediction) -> None:
    about = json.loads(server.ask("/v1/models")[1])
    assert [model["name"] for model in about["models"]] == ["blocks", "picky", "four"]
    assert "channels" not in about["models"][0]
    assert about["models"][2]["channels"] == ["nir", "b4", "b3", "b2"]
    assert about["models"][2]["shown"] == ["b4", "b3", "b2"]
    assert about["models"][0]["classes"][3] == {
        "id": 3,
        "name": "class3",
        "color": list(expected.palette[3]),
    }
    assert json.loads(server.ask("/v1/queue?ticket=a")[1]) == {"length": 0, "place": None}
    document = json.loads(server.ask("/openapi.json")[1])
    assert set(document["paths"]) == {"/v1/segment", "/v1/models", "/v1/queue"}
    answers = document["paths"]["/v1/segment"]["post"]["responses"]
    assert set(answers["200"]["content"]) == {"image/png", "application/json", "image/jpeg"}
    for path in ("/docs", "/redoc", "/index.html", "/page/app.js"):
        assert server.ask(path)[0] == 404


def test_refusals_are_messages(server: WebServer) -> None:
    no_file, form_headers = form(png(), field="other")
    for path, body, headers, status, words in (
        ("/v1/segment", b"no image", {}, 400, "not an image"),
        ("/v1/segment", b"", {}, 400, "not an image"),
        ("/v1/segment?model=other", png(), {}, 400, "model: 'other'"),
        ("/v1/segment?model=picky", png(), {}, 422, "the model cannot label this image"),
        ("/v1/segment?model=four&bands=nir,b2", png(), {}, 400, "three of nir, b4, b3, b2"),
        ("/v1/segment?bands=red,green,blue", png(), {}, 400, "the model takes RGB"),
        ("/v1/segment?format=gif", png(), {}, 422, "'png', 'json', 'jpeg' or 'image'"),
        ("/v1/segment?opacity=nan", png(), {}, 422, "opacity"),
        ("/v1/segment", no_file, form_headers, 400, "field `file`"),
        ("/v1/segment", b"--cut", form_headers, 400, "field `file`"),
        ("/v1/segment", png(), {"Content-Type": "multipart/form-data"}, 400, "field `file`"),
        ("/v1/segment", png(), {"Origin": "https://evil.example"}, 403, "another site"),
        ("/v1/segment", png(), {"Host": "evil.example"}, 421, "evil.example"),
        ("/v1/nothing", b"", {}, 404, "Not Found"),
    ):
        found, answer = server.ask(path, body, headers)
        assert (found, words in json.loads(answer)["error"]) == (status, True), answer
        assert server.secret.name.encode() not in answer
    assert server.ask("/v1/segment")[0] == 405


def test_too_many_bytes(server: WebServer) -> None:
    """Chunks have no length that is told beforehand, so only counting helps."""
    body, headers = form(bytes(1_000_000))
    headers["Transfer-Encoding"] = "chunked"
    parts = (body[place : place + 50_000] for place in range(0, len(body), 50_000))
    status, answer = server.ask("/v1/segment", parts, headers, chunked=True)
    assert status == 413 and "more than 0.27 MB" in json.loads(answer)["error"]
    status, answer = server.ask("/v1/segment", bytes(1_000_000))
    assert status == 413 and "1.00 MB" in json.loads(answer)["error"]


def test_the_commands_of_the_guide(server: WebServer, repository: Path, tmp_path: Path) -> None:
    guide = (repository / "docs/deployment.md").read_text()
    commands = re.findall(r"^(curl .*)$", guide, re.MULTILINE)
    assert len(commands) >= 5
    (tmp_path / "image.jpg").write_bytes(png())
    for command in commands:
        assert "http://127.0.0.1:7860" in command
        own = command.replace("127.0.0.1:7860", f"127.0.0.1:{server.port}")
        done = subprocess.run(
            f"{own.replace('best.xml', 'blocks')} --fail --silent --show-error --noproxy '*'",
            shell=True,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (command, done.stderr)
        if " -o " not in command:
            assert json.loads(done.stdout)
    assert Image.open(tmp_path / "labels.png").size == (120, 80)
    assert Image.open(tmp_path / "overlay.jpg").format == "JPEG"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_nothing_is_left_by_a_signal(name: str, repository: Path, tmp_path: Path) -> None:
    """Not even while a body is arriving."""
    number = getattr(signal, name, None)
    if number is None or sys.platform == "win32":
        pytest.skip("signals of POSIX systems")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    server = WebServer(repository, temporary)
    try:
        body, headers = form(bytes(150_000))
        assert server.ask("/v1/segment", body, headers)[0] == 400
        with server.connect() as endless:
            start = b"POST /v1/segment HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            endless.sendall(start + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n")
            time.sleep(0.5)  # until it is read, so that the server waits for more of it
            server.end(number)
            with contextlib.suppress(ConnectionResetError):
                answer = endless.recv(100)
    finally:
        server.end()
    # Ended by the signal, as whoever sent it expects.
    assert server.process.returncode == (130 if name == "SIGINT" else -number)
    assert not any(server.temporary.iterdir())
    assert "Traceback" not in server.errors
    if name != "SIGKILL":
        assert answer.startswith((b"HTTP/1.1 408", b"HTTP/1.1 503"))


# The command around a prediction that never ends.
STUCK = """
import sys, threading
from cgrseg.cli.main import main
from cgrseg.config.schema import TestConfig
from cgrseg.inference import Predictor
from tests.inference.fixtures import BlockBackend

class Stuck(BlockBackend):
    def logits(self, batch):
        threading.Event().wait()

names = [f"class{number}" for number in range(7)]
stuck = Predictor(Stuck(num_classes=7), TestConfig(resize="none"), names)
Predictor.from_pretrained = lambda *_, **__: stuck
sys.argv = ["cgrseg", "web", "stuck.pth", "--port", sys.argv[1]]
main()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX systems")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_the_command_does_not_wait_for_a_prediction(
    name: str, repository: Path, tmp_path: Path
) -> None:
    server = WebServer(repository, tmp_path / "temporary", program=STUCK)
    try:
        assert server.said.startswith(f"open {server.address}/")
        with server.connect() as waiting:
            start = b"POST /v1/segment?ticket=a HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            waiting.sendall(start + b"Content-Length: %d\r\n\r\n" % len(png()) + png())
            while json.loads(server.ask("/v1/queue?ticket=a")[1])["place"] != 0:
                time.sleep(0.05)
            server.end(getattr(signal, name))
            assert waiting.recv(100).startswith(b"HTTP/1.1 503")
    finally:
        server.end()
    assert server.process.returncode == {"SIGTERM": 143, "SIGINT": 130}[name]


@pytest.mark.slow
def test_a_token_is_asked_for(repository: Path, tmp_path: Path) -> None:
    server = WebServer(repository, tmp_path, token="a secret of the server")
    try:
        assert server.ask("/v1/segment", png())[0] == 401
        right = {"Authorization": "Bearer a secret of the server"}
        assert server.ask("/v1/segment", png(), right)[0] == 200
    finally:
        server.end()


def test_a_taken_port() -> None:
    with contextlib.closing(_listen("127.0.0.1", free_port())) as first:
        port = first.getsockname()[1]
        with pytest.raises(EnvironmentProblem, match=rf"--port {port + 1}\b"):
            _listen("127.0.0.1", port)


def test_the_last_port() -> None:
    with contextlib.ExitStack() as held:
        with contextlib.suppress(EnvironmentProblem):  # somebody else's is as good
            held.enter_context(contextlib.closing(_listen("127.0.0.1", 65535)))
        with pytest.raises(EnvironmentProblem, match=r"--port 65534\b"):
            _listen("127.0.0.1", 65535)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])
def test_an_address_of_no_interface(host: str) -> None:
    with pytest.raises(EnvironmentProblem, match=re.escape(host)) as caught:
        _listen(host, 7860)
    assert "--host 127.0.0.1" in str(caught.value) and "port 7861" not in str(caught.value)
