"""Receive request bodies within a size, a time and a memory budget for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from cgrseg.deploy.web.service import Limits, Refused

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

_DISCARDED_BYTES = 4 << 20
_DISCARDED_SECONDS = 1.0


class Disconnected(Exception):
    """The client left before its request was complete."""


async def discard(receive: Receive) -> None:
    """Read the rest of a body, unless it is long or slow, and forget it.

    A client that is still sending when the connection is closed may never see the answer.
    """

    async def read() -> None:
        left = _DISCARDED_BYTES
        while left > 0:
            message = await receive()
            if not message.get("more_body", False):
                return
            left -= len(message["body"])

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(read(), _DISCARDED_SECONDS)


@dataclass(eq=False)
class _Upload:
    """A body that is arriving, and the time of its last bytes."""

    body: bytearray = field(default_factory=bytearray)
    last: float = field(default_factory=time.monotonic)
    given_up: asyncio.Event = field(default_factory=asyncio.Event)


class Uploads:
    """All request bodies that are arriving.

    Args:
        limits: `seconds` and `stall_seconds` bound the time of one body.
        largest: size of the largest body in bytes. All bodies together have room for `waiting` of
            them and one more; the body that paused longest makes room for others.
    """

    def __init__(self, limits: Limits, largest: int) -> None:
        self._limits = limits
        self._room = (limits.waiting + 1) * largest
        self._arriving: set[_Upload] = set()

    async def read(self, receive: Receive, most: int, too_long: Refused) -> bytes:
        """Read a whole body.

        Args:
            receive: function of ASGI.
            most: maximum number of bytes.
            too_long: error for a longer body.

        Raises:
            Refused: the body is too long, too slow, or there is no room for it.
            Disconnected: the client left.
        """
        upload = _Upload()
        self._arriving.add(upload)
        collecting = asyncio.ensure_future(self._collect(receive, most, too_long, upload))
        giving_up = asyncio.ensure_future(upload.given_up.wait())
        try:
            await asyncio.wait(
                {collecting, giving_up},
                timeout=self._limits.seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if upload.given_up.is_set():
                raise Refused(
                    503,
                    "server",
                    found="too many images are being uploaded at the moment",
                    expected="uploads within a common memory budget (--upload-mb times --waiting)",
                    remedy="try again in a minute",
                )
            if not collecting.done():
                raise _too_slow()
            collecting.result()
            return bytes(upload.body)
        finally:
            collecting.cancel()
            giving_up.cancel()
            self._arriving.discard(upload)

    async def _collect(
        self, receive: Receive, most: int, too_long: Refused, upload: _Upload
    ) -> None:
        more = True
        while more:
            try:
                message = await asyncio.wait_for(receive(), self._limits.stall_seconds)
            except asyncio.TimeoutError as error:
                raise _too_slow() from error
            if message["type"] == "http.disconnect":
                raise Disconnected
            part, more = message.get("body", b""), message.get("more_body", False)
            if len(upload.body) + len(part) > most:
                raise too_long
            if part:
                upload.last = time.monotonic()
            upload.body += part
            while sum(len(each.body) for each in self._arriving) > self._room:
                paused = min(self._arriving, key=lambda each: each.last)
                paused.given_up.set()
                self._arriving.discard(paused)


def _too_slow() -> Refused:
    return Refused(
        408,
        "request",
        found="the body arrived too slowly",
        expected="a body within --seconds, without long pauses",
        remedy="send a smaller image, or use a faster connection",
    )
