"""What stands before page and API: requests meant for this server, of a size that it takes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cgrseg.deploy.web.service import Limits, too_many_bytes
from cgrseg.deploy.web.uploads import Room
from cgrseg.errors import explain

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")

# A browser asks nobody but this server, whatever a page or a library of it says.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "frame-ancestors 'self'; base-uri 'self'; form-action 'self'"
)
# A multipart upload is a little longer than its file.
_ENVELOPE = 64 << 10
_JOIN = "/gradio_api/queue/join"
_STORING = ("/api/predict", "/gradio_api/upload")
# The web framework offers more, such as cutting videos; the page needs none of it.
_POSTS = (*_STORING, _JOIN, "/gradio_api/cancel", "/gradio_api/reset")


class Guard:
    """Bodies within the limits, requests meant for this server, and answers that stay here.

    Args:
        application: what is guarded.
        limits: of uploads.
        folder: where uploads lie.
        host: that the server listens on.  On a loopback address only requests that name it
            are answered: a page of another site cannot reach it under a name of its own.
    """

    def __init__(self, application: Any, limits: Limits, folder: Path, host: str) -> None:
        self._application = application
        self._limits = limits
        self._room = Room(folder, limits.kept_bytes)
        self._names = LOOPBACK if host in LOOPBACK else None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request; see ASGI."""
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
            return
        if scope["type"] != "http":
            raise ValueError(f"no {scope['type']} here")
        headers = {
            name.lower().decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        refusal = self._foreign(scope, headers)
        if refusal is not None:
            await _refuse(send, *refusal)
            return
        path = scope["path"].rstrip("/")
        most = self._most(path)
        length = headers.get("content-length")
        if length is not None and not (length.isdigit() and int(length) <= most):
            await _refuse(send, 413, self._too_large(path, length))
            return
        exchange = _Exchange(receive, send, most, self._too_large(path, None))
        if path == _JOIN and await exchange.names_an_address():
            await _refuse(send, 400, _ELSEWHERE)
            return
        if path not in _STORING or scope["method"] != "POST":
            await exchange.run(self._application, scope)
            return
        with self._room.reserved(most if length is None else int(length)):
            if await asyncio.to_thread(self._room.is_full):
                await _refuse(send, 507, _FULL)
            else:
                await exchange.run(self._application, scope)

    def _foreign(self, scope: Message, headers: dict[str, str]) -> tuple[int, str] | None:
        """Why a request is none for this server, if so.

        Other sites' pages can make a browser on this machine send requests here.  The
        browser says so: `Origin` names the site, `Sec-Fetch-Site` how it is related to this
        one, and no page can change either.  Following a link to the page is no such request.
        """
        host = _name(headers.get("host", ""))
        if self._names is not None and host not in self._names:
            return 421, explain(
                "request",
                found=f"it is for {host[:80]!r}",
                expected=" or ".join(self._names),
                remedy="open the page under one of these names",
            )
        # A proxy may rename the host, and then says what the browser called it.
        own = {host, _name(headers.get("x-forwarded-host", "").partition(",")[0])} - {""}
        origin = headers.get("origin")
        is_link = scope["method"] in ("GET", "HEAD") and (
            headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest") == "document"
        )
        site = headers.get("sec-fetch-site", "none")
        foreign = origin is not None and _origin_name(origin) not in own
        if foreign or (site not in ("same-origin", "none") and not is_link):
            return 403, explain(
                "request",
                found=f"another site's page sent it ({(origin or site)[:80]})",
                expected="requests of this server's own page, or of programs",
                remedy="open this server's page itself; a proxy before it must hand on the "
                "header Host, or send X-Forwarded-Host",
            )
        if scope["method"] == "POST" and scope["path"].rstrip("/") not in _POSTS:
            return 404, explain(
                "request",
                found=f"POST {scope['path'][:80]}",
                expected="POST /api/predict",
                remedy="see the examples on the page",
            )
        return None

    def _most(self, path: str) -> int:
        """Bytes that a request may have."""
        return _ENVELOPE + (self._limits.upload_bytes if path in _STORING else 0)

    def _too_large(self, path: str, length: str | None) -> str:
        known = length is not None and length.isdigit()
        more = f"more than {self._most(path) / 1e6:.2f} MB"
        if path in _STORING:
            return too_many_bytes(
                f"{int(length or 0) / 1e6:.2f} MB" if known else more, self._limits
            )
        return explain(
            "request",
            found=f"its body has {more}",
            expected="a short one",
            remedy="send photos to /api/predict",
        )


class _Exchange:
    """One request and its answer: the body counted, the answer with our headers.

    Args:
        receive: of ASGI.
        send: likewise.
        most: bytes of the body.
        reason: of the refusal when there are more.
    """

    def __init__(self, receive: Receive, send: Send, most: int, reason: str) -> None:
        self._receive = receive
        self._send = send
        self._left = most
        self._reason = reason
        self._begun = self._refused = False
        self._kept: Message | None = None

    async def names_an_address(self) -> bool:
        """Whether a JSON body, which is kept for the application, asks for another server's file.

        The web framework would fetch it: this machine asks nobody for anything.
        """
        body, more = b"", True
        while more:
            message = await self._counted()
            if message["type"] == "http.disconnect":
                self._kept = message
                return False
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self._kept = {"type": "http.request", "body": body, "more_body": False}
        try:
            left = [json.loads(body)]
        except (ValueError, RecursionError):
            return False  # the application will say so
        while left:
            value = left.pop()
            if isinstance(value, dict):
                if "://" in str(value.get("path")):
                    return True
                left += value.values()
            elif isinstance(value, list):
                left += value
        return False

    async def run(self, application: Any, scope: Message) -> None:
        try:
            await application(scope, self._counted, self._homely)
        except asyncio.CancelledError:  # the server ends, and waits no longer
            if not self._begun:
                await _refuse(self._send, 503, _ENDING)
        except Exception:
            # Its body ended early for the application, which may call that a problem.
            if not self._refused:
                raise

    async def _counted(self) -> Message:
        if self._kept is not None:
            kept, self._kept = self._kept, None
            return kept
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            # Whoever lies about a length, or gives none, is answered here.
            if not self._begun:
                await _refuse(self._send, 413, self._reason)
            self._refused = True
            return {"type": "http.disconnect"}
        return message

    async def _homely(self, message: Message) -> None:
        if self._refused:
            return
        self._begun = True
        if message["type"] == "http.response.start":
            message["headers"] = [
                *message.get("headers", []),
                (b"content-security-policy", _POLICY.encode()),
                (b"referrer-policy", b"no-referrer"),
                (b"x-content-type-options", b"nosniff"),
            ]
        await self._send(message)


_FULL = explain(
    "server",
    found="the room for uploads is used up",
    expected="uploads of the last ten minutes within a limit (see --upload-mb and --waiting)",
    remedy="try again in ten minutes",
)

_ENDING = explain(
    "server",
    found="it is ending",
    expected="requests that are done within a few seconds",
    remedy="try again when it has been started again",
)
_ELSEWHERE = explain(
    "photo",
    found="the address of a file on another server",
    expected="a file that was uploaded here",
    remedy="download it, then upload it",
)


def _name(host: str) -> str:
    """A host without its port."""
    host = host.strip().lower()
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _origin_name(origin: str) -> str | None:
    with contextlib.suppress(ValueError):
        return urlsplit(origin).hostname
    return None


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
