"""Which requests reach page and API, how long they may be, and what the others are told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from cgrseg.console import plain_warnings
from cgrseg.deploy.web import Limits
from cgrseg.deploy.web.request_filter import RequestFilter
from cgrseg.deploy.web.service import Refused
from cgrseg.deploy.web.uploads import Uploads

LIMITS = Limits(upload_bytes=100_000, waiting=1, seconds=0.6, stall_seconds=0.2)
HOME = ("Host", "127.0.0.1:7860")


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

    @property
    def error(self) -> str:
        assert self.headers[b"content-type"] == b"application/json"
        return json.loads(self.body)["error"]


async def measure(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers with the length of the body."""
    message = await receive()
    assert not message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % len(message["body"])})


def sender(parts: list[bytes], pause: float = 0.0, *, ends: bool = True) -> Callable[[], Any]:
    """`receive` of ASGI: the parts one after another, then nothing any more."""
    left = [
        {"type": "http.request", "body": part, "more_body": not ends or number < len(parts) - 1}
        for number, part in enumerate(parts)
    ]

    async def receive() -> Any:
        await asyncio.sleep(pause if left else 60)
        return left.pop(0)

    return receive


def ask(
    *headers: tuple[str, str],
    body: list[bytes] | None = None,
    path: str = "/v1/segment",
    method: str = "POST",
    host: str = "127.0.0.1",
    application: Any = measure,
    receive: Any = None,
    **options: Any,
) -> Answer:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in headers],
    }
    filtered = RequestFilter(application, LIMITS, host, **options)
    asyncio.run(filtered(scope, receive or sender(body or [b""]), send))
    return Answer(sent)


def test_own_requests_pass() -> None:
    found = ask(HOME, body=[b"ab", b"c"])
    assert (found.status, found.body) == (200, b"3")
    own = ("Origin", "http://127.0.0.1:7860")
    assert ask(HOME, own, ("Sec-Fetch-Site", "same-origin")).status == 200
    assert ask(("host", "[::1]:7860"), ("origin", "http://[::1]:7860")).status == 200
    assert ask(HOME, ("Sec-Fetch-Site", "none"), method="GET", path="/").status == 200


def test_the_browser_may_load_nothing_from_elsewhere() -> None:
    for found in (ask(HOME), ask(("host", "evil.example"))):
        policy = found.headers[b"content-security-policy"].decode()
        rules = dict(rule.strip().partition(" ")[::2] for rule in policy.split(";"))
        assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == "'none'"
        sources = {source for rule, value in rules.items() for source in value.split()}
        assert sources == {"'none'", "'self'", "blob:", "'script'"}
        assert rules["script-src"] == rules["connect-src"] == "'self'"
        assert found.headers[b"x-content-type-options"] == b"nosniff"
        assert found.headers[b"cross-origin-resource-policy"] == b"same-origin"


def test_names_of_the_server() -> None:
    name, origin = ("Host", "images.example:8443"), ("Origin", "https://images.example:8443")
    assert ask(name, origin).status == 421
    assert ask(name, origin, host="0.0.0.0").status == 421  # DNS rebinding needs a name
    assert ask(name, origin, host="0.0.0.0", names=["Images.example"]).status == 200
    assert ask(("Host", "192.168.1.5:7860"), host="0.0.0.0").status == 200
    assert ask(("Host", "192.168.1.5:7860")).status == 421
    found = ask(("host", "evil.example"))
    assert found.status == 421 and "127.0.0.1, ::1, localhost" in found.error
    assert ask().status == 421
    # A proxy must pass the name on; nobody can claim another one.
    assert ask(HOME, origin, ("X-Forwarded-Host", "images.example:8443")).status == 403


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/segment"), ("GET", "/v1/queue")])
@pytest.mark.parametrize(
    "header",
    [
        ("Origin", "https://evil.example"),
        ("Origin", "null"),
        ("Origin", "http://[half"),
        ("Origin", "http://127.0.0.1:3000"),  # another port of this machine
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
    ],
)
def test_other_sites_are_refused(header: tuple[str, str], method: str, path: str) -> None:
    found = ask(HOME, header, path=path, method=method)
    assert found.status == 403
    assert "another site sent it" in found.error
    navigation = (("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document"))
    assert ask(HOME, header, *navigation, path=path, method=method).status == 403


def test_links_from_other_sites_open_the_page() -> None:
    away = (HOME, ("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate"))
    link = ("Sec-Fetch-Dest", "document")
    assert ask(*away, link, method="GET", path="/").status == 200
    frame = ("Sec-Fetch-Dest", "iframe")
    assert ask(*away, frame, method="GET", path="/").status == 403


def test_token() -> None:
    token = "a secret of the server"
    right = ("Authorization", f"Bearer {token}")
    assert ask(HOME, right, token=token).status == 200
    assert ask(HOME, ("authorization", f"bearer {token}"), token=token).status == 200
    for wrong in ("Bearer a secret", f"Basic {token}", token, "Bearer", "Bearer ü"):
        found = ask(HOME, ("Authorization", wrong), token=token)
        assert found.status == 401 and found.headers[b"www-authenticate"] == b"Bearer"
    assert "what to do: open the printed address" in ask(HOME, token=token).error
    assert ask(HOME, token=token, method="GET", path="/v1/models").status == 401
    assert ask(HOME, token=token, method="GET", path="/").status == 200  # the page asks for it


def test_too_long_a_body() -> None:
    found = ask(HOME, ("content-length", "999999"))
    assert found.status == 413 and "upload: 1.00 MB" in found.error
    assert ask(HOME, ("content-length", "some")).status == 413
    lying = ask(HOME, body=[b"x" * 60_000] * 4)
    assert lying.status == 413 and "upload: more than 0.17 MB" in lying.error
    assert ask(HOME, body=[b"x" * 60_000] * 2).body == b"120000"
    # Only images are taken.
    for header in (("content-length", "1"), ("transfer-encoding", "chunked")):
        assert ask(HOME, header, path="/v1/models").status == 413


def test_a_slow_body() -> None:
    stalled = ask(HOME, receive=sender([b"x"], ends=False))
    assert stalled.status == 408 and "too slowly" in stalled.error
    endless = ask(HOME, receive=sender([b"x"] * 1_000, pause=0.05, ends=False))
    assert endless.status == 408


def test_the_body_that_paused_longest_makes_room() -> None:
    async def scenario() -> None:
        uploads = Uploads(Limits(waiting=1, stall_seconds=60), 100)
        too_long = Refused(413, "too long")
        paused = []
        for _ in range(2):
            body = uploads.read(sender([b"x" * 90], ends=False), 100, too_long)
            paused.append(asyncio.ensure_future(body))
            await asyncio.sleep(0.05)
        assert await uploads.read(sender([b"x" * 90]), 100, too_long) == b"x" * 90
        with pytest.raises(Refused, match="being uploaded at the moment") as caught:
            await paused[0]
        assert caught.value.status == 503 and not paused[1].done()
        paused[1].cancel()

    asyncio.run(scenario())


def test_a_client_that_leaves_is_told_nothing() -> None:
    async def leave() -> Any:
        return {"type": "http.disconnect"}

    assert ask(HOME, receive=leave).status == 0


def test_a_full_queue_is_told_before_the_body() -> None:
    def check_room() -> None:
        raise Refused(503, "full")

    found = ask(HOME, receive=sender([b"x"], ends=False), check_room=check_room)
    assert (found.status, found.error) == (503, "full")
    assert found.headers[b"retry-after"] == b"30"
    assert ask(HOME, method="GET", path="/", check_room=check_room).status == 200


def test_a_failure_of_ours_shows_its_trace_to_the_owner(capsys: pytest.CaptureFixture) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("a bug in /home/somebody")

    with plain_warnings():
        found = ask(HOME, application=broken)
    assert found.status == 500 and "internal error" in found.error
    assert b"somebody" not in found.body
    shown = capsys.readouterr().err
    assert shown.startswith("error: a request failed\nTraceback")
    assert "a bug in /home/somebody" in shown
