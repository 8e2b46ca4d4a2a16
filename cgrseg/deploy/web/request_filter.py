"""Request filter: host and origin checks, token, size and time limits, security headers."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

from cgrseg.deploy.web.service import Limits, Refused, too_many_bytes
from cgrseg.deploy.web.uploads import Disconnected, Message, Receive, Uploads, discard

Send = Callable[[Message], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
API = "/v1/"
SEGMENT = "/v1/segment"

LOG = logging.getLogger("cgrseg.web")
# A browser asks nobody but this server, whatever the page says; blob: is a local video.
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src blob:; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    b"require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"permissions-policy", b"camera=(self), microphone=(), geolocation=()"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
_STATUS_HEADERS = {
    401: ((b"www-authenticate", b"Bearer"),),
    503: ((b"retry-after", b"30"),),
}
# A multipart upload is a little longer than its file.
_ENVELOPE = 64 << 10


class RequestFilter:
    """ASGI application around another one.

    Args:
        application: the filtered application.
        limits: limits of every request.
        host: address that the server listens on.  Requests for a loopback name are answered;
            requests for an IP address too, unless it is a loopback address: DNS rebinding needs
            a name.
        names: further host names that are answered.
        token: secret that every request of the API must carry; None: no token is needed.
        check_room: raises :class:`~cgrseg.deploy.web.service.Refused` when no image can be
            taken, so that it is refused before it is sent.
    """

    def __init__(
        self,
        application: Any,
        limits: Limits,
        host: str,
        *,
        names: Iterable[str] = (),
        token: str | None = None,
        check_room: Callable[[], None] = lambda: None,
    ) -> None:
        self._application = application
        self._limits = limits
        self._local = host in LOOPBACK
        self._names = {name.lower() for name in (*LOOPBACK, host, *names)}
        self._token = token
        self._check_room = check_room
        self._largest = limits.upload_bytes + _ENVELOPE
        self._uploads = Uploads(limits, self._largest)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request; see ASGI."""
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
            return
        if scope["type"] != "http":
            raise ValueError(f"expected an HTTP request, got {scope['type']}")
        begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [
                    *message.get("headers", []),
                    *_HEADERS,
                    *_STATUS_HEADERS.get(message["status"], ()),
                ]
            await send(message)

        try:
            body = await self._admit(scope, receive)
            await self._application(scope, _replayed(body, receive), send_with_headers)
        except Refused as error:
            await discard(receive)
            await _refuse(send_with_headers, error)
        except Disconnected:
            pass
        except asyncio.CancelledError:  # the server ends, and waits no longer
            if not begun:
                ending = Refused(
                    503,
                    "server",
                    found="it is shutting down",
                    expected="requests that take a few seconds at most",
                    remedy="try again when the server has been started again",
                )
                await _refuse(send_with_headers, ending)
        except Exception:
            LOG.exception("a request failed")
            if not begun:
                await _refuse(send_with_headers, internal_error())

    async def _admit(self, scope: Message, receive: Receive) -> bytes:
        """The body of a request that passes all checks.

        Raises:
            Refused: it does not pass.
        """
        headers = {
            name.lower().decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        self._check_host(headers)
        _check_origin(scope, headers)
        self._check_token(scope["path"], headers)
        length = headers.get("content-length", "0" if "transfer-encoding" not in headers else None)
        if (scope["method"], scope["path"]) != ("POST", SEGMENT):
            if length != "0":
                raise Refused(
                    413,
                    "request",
                    found="a body",
                    expected="none for this address",
                    remedy=f"send images to {SEGMENT}",
                )
            return b""
        self._check_room()
        if length is not None and not (length.isdecimal() and int(length) <= self._largest):
            found = f"{int(length) / 1e6:.2f} MB" if length.isdecimal() else "an unknown length"
            raise too_many_bytes(found, self._limits)
        too_long = too_many_bytes(f"more than {self._largest / 1e6:.2f} MB", self._limits)
        return await self._uploads.read(receive, self._largest, too_long)

    def _check_host(self, headers: dict[str, str]) -> None:
        host = _host_name(headers.get("host", ""))
        if host not in self._names and (self._local or not _is_address(host)):
            raise Refused(
                421,
                "request",
                found=f"it is for the host {host[:80]!r}",
                expected=", ".join(sorted(self._names))
                + ("" if self._local else " or an IP address"),
                remedy="open the page under this name, or start the server with "
                "`--allow-host NAME`",
            )

    def _check_token(self, path: str, headers: dict[str, str]) -> None:
        if self._token is None or not path.startswith(API):
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        same = secrets.compare_digest(given.strip().encode(), self._token.encode())
        if kind.lower() != "bearer" or not same:
            raise Refused(
                401,
                "token",
                found="a wrong one" if given else "none",
                expected="the token that the server printed when it started",
                remedy="open the printed address, or send `Authorization: Bearer TOKEN`",
            )


def _check_origin(scope: Message, headers: dict[str, str]) -> None:
    """Refuse requests that a page of another site sends.

    A page of another site can make a browser on this machine send requests here.  The browser
    says so: `Origin` names the site, `Sec-Fetch-Site` how it is related to this server, and no
    page can change either.  A link to the page is no such request.
    """
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
    is_link = (
        (scope["method"], scope["path"]) == ("GET", "/")
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )
    foreign = origin is not None and _authority(origin) != headers.get("host", "").lower()
    if foreign or (site not in ("same-origin", "none") and not is_link):
        raise Refused(
            403,
            "request",
            found=f"a page of another site sent it ({(origin or site)[:80]})",
            expected="requests of this server's own page, or of programs",
            remedy="open the page of this server; a proxy must pass the header Host on",
        )


def _replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` of a request whose body was read: the body, then what comes after it."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def internal_error() -> Refused:
    """The answer to a request that failed by a bug; its trace is in the server's log."""
    return Refused(
        500,
        "server",
        found="an internal error",
        expected="an answer",
        remedy="see the output of the server, and report the problem",
    )


def _host_name(host: str) -> str:
    """A host without its port."""
    host = host.strip().lower()
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _authority(origin: str) -> str | None:
    """Host and port of an origin, as the header `Host` has them."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


async def _refuse(send: Send, error: Refused) -> None:
    body = json.dumps({"error": str(error)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
