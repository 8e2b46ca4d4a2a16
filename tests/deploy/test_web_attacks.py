"""Requests that want files of the server, or want to keep others out."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
import sys
import time
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.deploy.web_server import WebServer, form, png

ROUTES = ["/", "/app.js", "/openapi.json", "/v1/segment", "/v1/models", "/v1/queue"]
# Of the page's former framework: upload, copy and read back.
FORMER = ["/gradio_api/file=", "/gradio_api/queue/join", "/gradio_api/upload", "/file=", "/config"]


def raw(server: WebServer, request: bytes) -> bytes:
    """The whole answer to bytes, sent as they are."""
    with server.connect() as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def named(path: Path) -> list[str]:
    """The ways to write a path."""
    plain = str(path)
    up = "/.." * 12 + plain
    return [
        *(plain, f"file://{plain}", f"file://localhost{plain}", f"http://127.0.0.1{plain}"),
        *(up, up[1:], f"/{plain}", quote(plain, safe=""), quote(quote(plain, safe=""), safe="")),
        *(up.replace("..", "%2e%2e"), up.replace("..", "%252e%252e"), up.replace("/", "%5c")),
        *(up.replace("..", "..;"), up.replace("/../", "/....//"), f"{plain}%00.png"),
    ]


def test_no_route_gives_a_file_away(server: WebServer, tmp_path: Path) -> None:
    secret = server.secret.read_bytes()
    link = tmp_path / "link.png"
    link.symlink_to(server.secret)
    answers = []
    for route, name in itertools.product([*ROUTES, *FORMER, ""], named(server.secret)):
        for target in (f"{route}{name}", f"{route}/{name}", f"{route}?model={name}&ticket={name}"):
            request = f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
            answers.append(raw(server, request.encode()))
    for route, path in itertools.product([*ROUTES, *FORMER], (server.secret, link)):
        data = {"path": str(path), "url": f"file://{path}", "meta": {"_type": "gradio.FileData"}}
        bodies: list[tuple[bytes, dict[str, str]]] = [
            (json.dumps({"data": [data, "blocks"], "fn_index": 0}).encode(), {}),
            (str(path).encode(), {}),
            form(str(path).encode(), filename=str(path)),
            form(str(path).encode(), filename="../../../../" + str(path)),
            (f"file={quote(str(path))}".encode(), {}),
        ]
        for body, headers in bodies:
            status, answer = server.ask(route, body, headers)
            assert status in (400, 404, 405, 413), (route, body)
            answers.append(answer)
    assert len(answers) > 500
    for answer in answers:
        assert secret not in answer and b"Traceback" not in answer
        assert str(Path(__file__).parents[2]).encode() not in answer  # nor names one


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "evil.example", "X-Forwarded-Host": "127.0.0.1"},
        {"Origin": "https://evil.example"},
        {"Origin": "http://localhost"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_no_route_answers_another_host_or_site(server: WebServer, headers: dict[str, str]) -> None:
    for route in ROUTES:
        assert server.ask(route, None, headers)[0] in (403, 421)
        assert server.ask(route, png(), headers)[0] in (403, 421)


def test_a_body_that_breaks_off_in_nonsense(server: WebServer) -> None:
    """While it is read, and after the request was refused; the server prints no trace."""
    start = b"\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n"
    assert raw(server, b"POST /v1/segment HTTP/1.1" + start + b"zz\r\n")[9:12] == b"400"
    with server.connect() as connection:
        connection.sendall(b"POST /v1/models HTTP/1.1" + start)
        assert connection.recv(65536)[9:12] == b"413"
        connection.sendall(b"zz\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert b"HTTP" not in b"".join(iter(lambda: connection.recv(65536), b""))
    others_are_answered(server)


def others_are_answered(server: WebServer) -> None:
    assert server.ask("/")[0] == 200
    assert server.ask("/v1/segment", png())[0] == 200


def test_more_half_open_sockets_than_connections(server: WebServer) -> None:
    """None is waited for, and each is ended; the last ones are senders of a body."""
    header = b"POST /v1/segment HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    starts = [b"", b"GET / HT", header, header + b"Content-Length: 9000\r\n\r\n"]
    starts.append(header + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab")
    with contextlib.ExitStack() as held:
        sockets = []
        for number in range(200):
            sockets.append(held.enter_context(server.connect()))
            with contextlib.suppress(OSError):  # it is closed already for a newer one
                sockets[-1].sendall(starts[number * len(starts) // 200])
        time.sleep(0.5)  # until they are read, so that each connection has a body under way
        others_are_answered(server)
        for socket in sockets:  # the server ends each one by itself
            socket.settimeout(60)
            with contextlib.suppress(ConnectionResetError):
                while socket.recv(65536):
                    pass
        others_are_answered(server)


def test_a_body_that_never_ends(server: WebServer) -> None:
    with server.connect() as endless:
        header = (
            b"POST /v1/segment HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        endless.sendall(header)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(60_000):
                endless.sendall(b"100\r\n" + bytes(256) + b"\r\n")
                time.sleep(0.001)
            pytest.fail("the connection was not closed")
        others_are_answered(server)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_thousand_requests_at_once(server: WebServer) -> None:
    body = png()
    request = b"POST /v1/segment HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    request += b"Content-Length: %d\r\n\r\n" % len(body) + body
    others_are_answered(server)
    before = server.peak_megabytes()

    async def ask(begun: list[None]) -> bytes:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            begun.append(None)
            writer.write(request)
            answer = await reader.read()
            writer.close()
        except ConnectionResetError:
            return b""
        return answer[9:12]

    def visit() -> tuple[int, bytes]:
        # On a starved machine a connection may have to make room before it was read: loaded again.
        for _ in range(2):
            with contextlib.suppress(ConnectionResetError):
                return server.ask("/")
        return server.ask("/")

    async def scenario() -> tuple[list[bytes], list[int]]:
        begun: list[None] = []
        tasks = [asyncio.ensure_future(ask(begun)) for _ in range(1_000)]
        while len(begun) < 300:
            await asyncio.sleep(0.01)
        page = await asyncio.gather(*[asyncio.to_thread(visit) for _ in range(3)])
        return await asyncio.gather(*tasks), [status for status, _ in page]

    answers, page = asyncio.run(scenario())
    assert page == [200] * 3
    assert set(answers) <= {b"200", b"503", b""} and answers.count(b"200") >= 4
    others_are_answered(server)
    assert server.peak_megabytes() < before + 100


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_huge_image_and_a_long_video(server: WebServer, tmp_path: Path) -> None:
    """400 megapixels, and an hour of frames: neither is decoded."""
    others_are_answered(server)
    before = server.peak_megabytes()
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    status, answer = server.ask("/v1/segment", bomb.getvalue())
    assert status == 413 and "20000x20000 pixels" in json.loads(answer)["error"]
    clip = tmp_path / "hour.mp4"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"mp4v"), 1, (32, 32))
    for _ in range(3_600):
        writer.write(np.zeros((32, 32, 3), np.uint8))
    writer.release()
    status, answer = server.ask("/v1/segment", clip.read_bytes())
    assert status == 400 and "not an image" in json.loads(answer)["error"]
    # A playlist would make a video decoder open other files.
    playlist = f"#EXTM3U\n#EXTINF:1,\nfile://{server.secret}\n".encode()
    assert server.ask("/v1/segment", playlist)[0] == 400
    others_are_answered(server)
    assert server.peak_megabytes() < before + 100


@pytest.mark.slow
def test_a_client_that_does_not_read_its_answer(server: WebServer) -> None:
    """Its connection ends when its time is over; meanwhile it keeps nobody out."""
    request = b"GET /app.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with contextlib.ExitStack() as held:
        for _ in range(100):
            connection = held.enter_context(server.connect())
            with contextlib.suppress(OSError):
                connection.sendall(request * 50)
        time.sleep(1)
        others_are_answered(server)
