"""Open connections: their number, and the time that one may take without a complete request.

uvicorn waits for ever for the header of a request, and for a client that does not read its
answer: a few hundred such sockets would keep everybody else out.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from typing import Any

from cgrseg.deploy.web.service import Limits
from cgrseg.extras import require

_CHECK_SECONDS = 1.0
_OTHER_FILES = 64  # file descriptors that are no connections


def most_connections(wanted: int) -> int:
    """Number of connections that the system allows, at most as many as wanted.

    The limit on open files is raised where it is lower and may be raised.
    """
    if sys.platform == "win32":
        return wanted
    import resource

    files = wanted + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < files:
        with contextlib.suppress(ValueError, OSError):
            raised = files if hard == resource.RLIM_INFINITY else min(files, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
        return max(1, min(wanted, soft - _OTHER_FILES))
    return wanted


def limited_protocol(limits: Limits) -> Any:
    """A protocol class for `uvicorn.Config(http=...)` that keeps the limits."""
    most = most_connections(limits.connections)
    h11_impl = require("uvicorn.protocols.http.h11_impl", "cgrseg web")

    # An extra: to the type checker a class that is only known at run time.
    class LimitedProtocol(h11_impl.H11Protocol):  # type: ignore[misc, name-defined]
        """One connection.

        A connection is idle while it waits for its client: before the header of a request is
        complete, after an answer (even if the client still sends the rest of a refused body),
        and while the client does not read.
        """

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.since = time.monotonic()
            self.answered = None
            self.checking = self.loop.call_later(_CHECK_SECONDS, self.check)
            if len(self.connections) > most:
                # A sender that is slow on purpose is never idle, but its request is incomplete.
                incomplete = [
                    each for each in self.connections if each.is_idle() or each.cycle.more_body
                ]
                oldest = min(incomplete, key=lambda each: each.since)
                self.connections.discard(oldest)
                oldest.transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            self.checking.cancel()
            super().connection_lost(exc)

        def is_idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete or self.flow.write_paused

        def send_400_response(self, msg: str) -> None:
            try:
                super().send_400_response(msg)
            except h11_impl.h11.LocalProtocolError:  # an answer to this request has begun
                self.transport.abort()

        def check(self) -> None:
            """End the connection when its time is over."""
            now = time.monotonic()
            if not self.is_idle() or self.answered is not self.cycle:
                self.since, self.answered = now, self.cycle if self.is_idle() else None
            reading = self.transport.get_write_buffer_size() > 0  # the client reads an answer
            if now - self.since > (limits.seconds if reading else limits.stall_seconds):
                self.transport.abort()
                return
            self.checking = self.loop.call_later(_CHECK_SECONDS, self.check)

    return LimitedProtocol
