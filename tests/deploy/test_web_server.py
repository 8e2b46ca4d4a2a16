"""The server as a process of its own: when it can be asked, what it refuses, how it ends."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cgrseg.deploy.web.server import _listen
from cgrseg.errors import EnvironmentProblem
from tests.inference.fixtures import photo

pytest.importorskip("gradio", reason="needs the extra [web]")
pytest.importorskip("uvicorn", reason="needs the extra [web]")

# What is asked within `ready` must be answered.
PROGRAM = """
import sys, urllib.request
from cgrseg.config.schema import TestConfig
from cgrseg.deploy.web import Limits, Service, serve
from cgrseg.inference import Predictor
from tests.inference.fixtures import BlockBackend

def ready(address):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    print(opener.open(address, timeout=30).status, address, flush=True)

names = [f"class{number}" for number in range(7)]
predictor = Predictor(BlockBackend(num_classes=7), TestConfig(resize="none"), names)
limits = Limits(upload_bytes=200_000, pixels=50_000, waiting=1)
try:
    serve(Service({"blocks": predictor}, limits), "127.0.0.1", int(sys.argv[1]), ready)
except KeyboardInterrupt:
    sys.exit(130)  # as the command does
"""


class Server:
    """A server in a process of its own.

    Attributes:
        process: that one.
        port: that it listens on.
        said: its first line.
    """

    def __init__(self, repository: Path, temporary: Path) -> None:
        self.port = free_port()
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(self.port)],
            cwd=repository,
            env={**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline()

    def ask(
        self, path: str, body: Any, headers: dict[str, str] | None = None, *, chunked: bool = False
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", path, body, headers or {}, encode_chunked=chunked)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def end(self) -> str:
        """End it at the latest now; what it said on standard error."""
        self.process.kill()
        return str(self.process.communicate()[1])


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def png() -> bytes:
    content = io.BytesIO()
    Image.fromarray(photo(80, 120)).save(content, "PNG")
    return content.getvalue()


def form(content: bytes) -> tuple[bytes, dict[str, str]]:
    """An upload as the page sends it."""
    head = b'--cut\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=cut"}
    return head + content + b"\r\n--cut--\r\n", headers


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(repository, tmp_path_factory.mktemp("server"))
    yield made
    made.end()


def test_it_can_be_asked_when_it_says_so(server: Server) -> None:
    assert server.said == f"200 http://127.0.0.1:{server.port}/\n"


def test_pages_of_other_sites_get_nothing(server: Server) -> None:
    body, headers = form(png())
    status, answer = server.ask("/gradio_api/upload", body, headers)
    assert status == 200 and Path(json.loads(answer)[0]).read_bytes() == png()
    assert server.ask("/api/predict", png())[0] == 200
    for foreign in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert server.ask("/gradio_api/upload", body, {**headers, **foreign})[0] == 403
        status, answer = server.ask("/api/predict", png(), foreign)
        assert status == 403 and "another site" in json.loads(answer)["error"]


@pytest.mark.parametrize("path", ["/api/predict", "/gradio_api/upload"])
def test_a_body_without_end_is_refused(path: str, server: Server) -> None:
    """No length is given, so only counting helps."""
    body, headers = form(bytes(1_000_000))
    headers["Transfer-Encoding"] = "chunked"
    parts = (body[place : place + 50_000] for place in range(0, len(body), 50_000))
    status, answer = server.ask(path, parts, headers, chunked=True)
    assert status == 413  # the page's framework has its own words for it
    if path == "/api/predict":
        assert "more than 0.27 MB" in json.loads(answer)["error"]
    status, answer = server.ask(path, bytes(1_000_000))
    assert status == 413 and "1.00 MB" in json.loads(answer)["error"]


def test_two_open_tabs_leave_room_for_a_request(server: Server) -> None:
    """A browser holds up to six connections for each."""
    with contextlib.ExitStack() as held:
        for _ in range(14):
            idle = socket.create_connection(("127.0.0.1", server.port), 10)
            held.enter_context(idle)
            idle.sendall(b"GET / HTTP/1.1\r\n")
        assert server.ask("/api/predict", png())[0] == 200


@pytest.mark.parametrize(
    "name",
    [
        "SIGTERM",
        pytest.param("SIGHUP", marks=pytest.mark.slow),
        pytest.param("SIGINT", marks=pytest.mark.slow),
    ],
)
def test_nothing_is_left_by_a_signal(name: str, repository: Path, tmp_path: Path) -> None:
    number = getattr(signal, name, None)
    if number is None or sys.platform == "win32":
        pytest.skip("signals of POSIX systems")
    server = Server(repository, tmp_path)
    try:
        body, headers = form(png())
        assert server.ask("/gradio_api/upload", body, headers)[0] == 200
        (home,) = tmp_path.glob("cgrseg-web-*")
        assert any(path.name == "a.png" for path in home.rglob("*"))
        with socket.create_connection(("127.0.0.1", server.port), 10) as endless:
            start = b"POST /api/predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            endless.sendall(start + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n")
            time.sleep(0.5)  # until it is read, so that the server waits for more of it
            server.process.send_signal(number)
            server.process.wait(30)
            answer = endless.recv(100)
    finally:
        said = server.end()
    # Ended by the signal, as whoever sent it expects.
    expected = 130 if name == "SIGINT" else -signal.SIGTERM
    assert server.process.returncode == expected
    assert not home.exists()
    assert answer.startswith(b"HTTP/1.1 503") and "Traceback" not in said


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
