"""`cgrseg web` around a cheap stand-in for the network, in a process of its own."""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from tests.inference.fixtures import photo

# What is requested within `ready` must be answered.  Opened files are counted from then on.
PROGRAM = """
import os, sys, urllib.request
from cgrseg.config.schema import ChannelsConfig, ChannelTestConfig, TestConfig
from cgrseg.deploy.web import Limits, Service, serve
from cgrseg.errors import ConfigError
from cgrseg.inference import Predictor
from tests.inference.fixtures import BlockBackend

port, secret, token = int(sys.argv[1]), sys.argv[2], sys.argv[3] or None

class Four(BlockBackend):
    in_channels = 4

    def logits(self, batch):
        return super().logits(batch[:, 1:])

class Picky(BlockBackend):
    def logits(self, batch):
        raise ConfigError(f"{secret}: an input of another size")

def watch(event, arguments):
    if event == "open":
        path, _, flags = arguments
        if os.fspath(path) == secret if not isinstance(path, int) else False:
            print("READ", path, flush=True)
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            print("WRITTEN", path, flush=True)

def ready(address):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    print(opener.open(address, timeout=30).status, address, flush=True)
    sys.addaudithook(watch)

names = [f"class{number}" for number in range(7)]
settings = TestConfig(resize="none")
channels = ChannelsConfig(
    names=["nir", "b4", "b3", "b2"],
    rgb=["b4", "b3", "b2"],
    mean=[100, 110, 120, 130],
    std=[40, 50, 60, 70],
    types=["uint8"] * 4,
)
four = ChannelTestConfig(resize="none", channels=channels)
models = {
    "blocks": Predictor(BlockBackend(num_classes=7), settings, names),
    "picky": Predictor(Picky(num_classes=7), settings, names),
    "four": Predictor(Four(num_classes=7), four, names),
}
limits = Limits(
    upload_bytes=200_000,
    pixels=50_000,
    waiting=4,
    seconds=30,
    stall_seconds=2,
    connections=64,
)
try:
    serve(Service(models, limits), "127.0.0.1", port, ready, token=token)
except KeyboardInterrupt:
    sys.exit(130)  # as the command does
"""


class WebServer:
    """A server in a process of its own.

    Attributes:
        process: that one.
        port: that it listens on.
        said: its first line.
        temporary: its folder for temporary files.
        secret: a file that it may read, and whose content it must give to nobody.
        printed: what it printed after its first line, once it has ended.
        errors: what it printed on standard error, once it has ended.
    """

    def __init__(
        self, repository: Path, temporary: Path, token: str = "", program: str = PROGRAM
    ) -> None:
        self.port = free_port()
        self.temporary = temporary
        self.printed = self.errors = ""
        self.secret = temporary.parent / f"{temporary.name}-secret.txt"
        self.secret.write_text("content of a file of the server")
        arguments = [str(self.port), str(self.secret), token]
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            cwd=repository,
            env={
                **os.environ,
                "TMPDIR": str(temporary),
                "OMP_NUM_THREADS": "1",
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        *,
        method: str | None = None,
        chunked: bool = False,
    ) -> tuple[int, bytes]:
        """Status and body of one request; POST where a body is given."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            method = method or ("GET" if body is None else "POST")
            connection.request(method, path, body, headers or {}, encode_chunked=chunked)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 60)

    def peak_megabytes(self) -> float:
        """The most memory that it has had (Linux)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 1024

    def end(self, by: int | None = None) -> None:
        """End it at the latest now; first by a signal, if one is given."""
        if by is not None:
            self.process.send_signal(by)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
        self.process.kill()
        self.printed, self.errors = self.process.communicate()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def png(height: int = 80, width: int = 120) -> bytes:
    content = io.BytesIO()
    Image.fromarray(photo(height, width)).save(content, "PNG")
    return content.getvalue()


def form(content: bytes, field: str = "file", filename: str = "a.png") -> tuple[bytes, dict]:
    """An upload as a form sends it."""
    head = f'--cut\r\nContent-Disposition: form-data; name="{field}"; filename="{filename}"\r\n\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=cut"}
    return head.encode() + content + b"\r\n--cut--\r\n", headers
