"""Which requests reach page and API, how long they may be, and what is said to the others."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from cgrseg.deploy.web import Limits
from cgrseg.deploy.web.guard import Guard
from cgrseg.deploy.web.uploads import KEPT_SECONDS, Room

LIMITS = Limits(upload_bytes=100_000, waiting=1)
HOME = ("Host", "127.0.0.1:7860")
UPLOAD = "/gradio_api/upload"
JOIN = "/gradio_api/queue/join"


class Answer:
    """What came back.

    Attributes:
        status: 0 without an answer.
        headers: by name.
        body: of the answer.
    """

    def __init__(self, sent: list[dict[str, Any]]) -> None:
        self.status = sent[0]["status"] if sent else 0
        self.headers = dict(sent[0]["headers"]) if sent else {}
        self.body = b"".join(message.get("body", b"") for message in sent[1:])
        self.starts = sum(message["type"] == "http.response.start" for message in sent)

    @property
    def error(self) -> str:
        assert self.headers[b"content-type"] == b"application/json"
        return json.loads(self.body)["error"]


async def measure(scope: Any, receive: Any, send: Any) -> None:
    """An application that reads its body and answers with its length."""
    seen, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            await send({"type": "http.response.start", "status": 500, "headers": []})
            raise ConnectionError("the client left")
        seen += len(message["body"])
        more = message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(seen).encode()})


def ask(
    folder: Path,
    *headers: tuple[str, str],
    body: tuple[bytes, ...] = (b"",),
    path: str = "/api/predict",
    method: str = "POST",
    host: str = "127.0.0.1",
    application: Any = measure,
) -> Answer:
    sent: list[dict[str, Any]] = []
    parts = [
        {"type": "http.request", "body": part, "more_body": number < len(body) - 1}
        for number, part in enumerate(body)
    ]

    async def receive() -> Any:
        return parts.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in headers],
    }
    asyncio.run(Guard(application, LIMITS, folder, host)(scope, receive, send))
    return Answer(sent)


def test_own_requests_pass(tmp_path: Path) -> None:
    found = ask(tmp_path, HOME, body=(b"abc",))
    assert (found.status, found.body) == (200, b"3")
    assert b"default-src 'self'" in found.headers[b"content-security-policy"]
    assert b"http" not in found.headers[b"content-security-policy"]
    own = ("Origin", "http://127.0.0.1:7860")
    assert ask(tmp_path, HOME, own, ("Sec-Fetch-Site", "same-origin")).status == 200
    assert ask(tmp_path, ("host", "[::1]:7860"), ("origin", "http://[::1]:7860")).status == 200
    assert ask(tmp_path, HOME, ("Sec-Fetch-Site", "none"), method="GET", path="/").status == 200


def test_behind_a_name_of_its_own(tmp_path: Path) -> None:
    name, origin = ("Host", "photos.example:8443"), ("Origin", "https://photos.example:8443")
    assert ask(tmp_path, name, origin, host="0.0.0.0").status == 200
    assert ask(tmp_path, HOME, origin).status == 403
    proxied = ("X-Forwarded-Host", "photos.example, inner.example")
    assert ask(tmp_path, HOME, origin, proxied).status == 200
    evil = ("Origin", "https://evil.example")
    assert ask(tmp_path, name, evil, host="0.0.0.0").status == 403


@pytest.mark.parametrize("path", ["/api/predict", UPLOAD, JOIN])
@pytest.mark.parametrize(
    "header",
    [
        ("Origin", "https://evil.example"),
        ("Origin", "null"),
        ("Origin", "http://[half"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),  # another port of this machine
    ],
)
def test_other_sites_are_refused(header: tuple[str, str], path: str, tmp_path: Path) -> None:
    found = ask(tmp_path, HOME, header, path=path)
    assert found.status == 403
    assert "another site's page" in found.error
    navigation = (("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document"))
    assert ask(tmp_path, HOME, header, *navigation, path=path).status == 403  # a form


def test_links_from_other_sites_open_the_page(tmp_path: Path) -> None:
    away = (HOME, ("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate"))
    link = ("Sec-Fetch-Dest", "document")
    assert ask(tmp_path, *away, link, method="GET", path="/").status == 200
    frame = ("Sec-Fetch-Dest", "iframe")
    assert ask(tmp_path, *away, frame, method="GET", path="/").status == 403


def test_other_names_are_refused(tmp_path: Path) -> None:
    found = ask(tmp_path, ("host", "evil.example"))
    assert found.status == 421 and "127.0.0.1 or localhost" in found.error
    assert ask(tmp_path).status == 421


def test_too_long_a_body(tmp_path: Path) -> None:
    found = ask(tmp_path, HOME, ("content-length", "999999"))
    assert found.status == 413 and "upload: 1.00 MB" in found.error
    assert ask(tmp_path, HOME, ("content-length", "some")).status == 413
    lying = ask(tmp_path, HOME, body=(b"x" * 60_000,) * 4)
    assert lying.status == 413 and lying.starts == 1
    assert "upload: more than 0.17 MB" in lying.error
    # Only photos are long.
    assert "body" in ask(tmp_path, HOME, path=JOIN, body=(b"x" * 60_000,) * 2).error
    assert ask(tmp_path, HOME, body=(b"x" * 60_000,) * 2).body == b"120000"


def test_an_applications_own_failure_is_not_hidden(tmp_path: Path) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        ask(tmp_path, HOME, application=broken)


def test_unneeded_services_of_the_framework_are_closed(tmp_path: Path) -> None:
    found = ask(tmp_path, HOME, path="/gradio_api/process_recording")
    assert found.status == 404 and "POST /api/predict" in found.error


def test_the_machine_fetches_no_photo(tmp_path: Path) -> None:
    """The framework would fetch an address that stands where the photo's path belongs."""
    meta = {"_type": "gradio.FileData"}
    for away in ("https://evil.example/a.png", " HTTP://evil.example/a.png"):
        data = {"data": [[{"path": away, "meta": meta}], "model"]}
        found = ask(tmp_path, HOME, path=JOIN, body=(json.dumps(data).encode(),))
        assert found.status == 400 and "another server" in found.error
    here = {"path": "/tmp/a.png", "url": "http://127.0.0.1:7860/gradio_api/file=/tmp/a.png"}
    body = json.dumps({"data": [{**here, "meta": meta}, "model"]}).encode()
    found = ask(tmp_path, HOME, path=JOIN, body=(body[:9], body[9:]))
    assert (found.status, found.body) == (200, str(len(body)).encode())
    assert ask(tmp_path, HOME, path=JOIN, body=(b"[" * 60_000,)).status == 200


def test_room_for_uploads(tmp_path: Path) -> None:
    kept = tmp_path / "gradio" / "hash"
    kept.mkdir(parents=True)
    for number in range(16):
        (kept / str(number)).write_bytes(bytes(LIMITS.upload_bytes))
    found = ask(tmp_path, HOME, path=UPLOAD, body=(b"abc",))
    assert found.status == 507 and "used up" in found.error
    assert ask(tmp_path, HOME, path=UPLOAD, method="GET").status == 200
    assert ask(tmp_path, HOME, path=JOIN, body=(b"abc",)).status == 200
    # What is too old is nobody's any more; neither is its folder.
    long_ago = time.time() - KEPT_SECONDS - 60
    for path in (*kept.iterdir(), kept):
        os.utime(path, (long_ago, long_ago))
    assert ask(tmp_path, HOME, path=UPLOAD, body=(b"abc",)).status == 200
    assert not any(kept.glob("*")) and kept.parent.exists()


def test_what_arrives_counts_too(tmp_path: Path) -> None:
    room = Room(tmp_path, 300_000)
    with room.reserved(200_000):
        assert not room.is_full()
        with room.reserved(100_001):
            assert room.is_full()
    (tmp_path / "empty").touch()
    with room.reserved(300_000 - (64 << 10) + 1):
        assert room.is_full()
    assert not room.is_full()
