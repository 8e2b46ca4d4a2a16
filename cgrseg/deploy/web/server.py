"""The server process: socket, connections with their limits, and an end on a signal."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from cgrseg.deploy.web.api import make_api
from cgrseg.deploy.web.request_filter import RequestFilter
from cgrseg.deploy.web.service import Limits, PredictionQueue, Service
from cgrseg.errors import EnvironmentProblem
from cgrseg.extras import require

_GRACE = 5  # seconds for answers under way when the server ends
_BACKLOG = 128
# asyncio accepts as many connections as the backlog has before it reads from the first one.
_ACCEPTED_AT_ONCE = 16
_CHECK_SECONDS = 1.0
_OTHER_FILES = 64  # file descriptors that are no connections


def serve(
    service: Service,
    host: str,
    port: int,
    ready: Callable[[str], None],
    *,
    names: Sequence[str] = (),
    token: str | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, which this process then gets.

    Nothing is written to a disk: images, label maps and multipart uploads stay in memory.

    Args:
        service: labels the images.
        host: address to listen on.
        port: port to listen on.
        ready: called with the address of the page once it can be requested.
        names: further host names that are answered.
        token: secret that every request of the API must carry; None: no token is needed.

    Raises:
        EnvironmentProblem: packages are missing, or the port is taken.
    """
    uvicorn = require("uvicorn", "cgrseg web")

    # An extra: to the type checker a module that is only known at run time.
    class Server(uvicorn.Server):  # type: ignore[misc, name-defined]
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            listening.listen(_BACKLOG)
            if self.started:
                await asyncio.to_thread(ready, address)  # it may request the page

    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}/"
    queue = PredictionQueue(service.limits)
    application = RequestFilter(
        make_api(service, queue),
        service.limits,
        host,
        names=names,
        token=token,
        check_room=queue.check_room,
    )
    listening = _listen(host, port)
    try:
        settings: Any = uvicorn.Config(
            application,
            http=_limited_protocol(service.limits),
            ws="none",
            log_level="error",  # warnings are about the requests of strangers
            server_header=False,
            proxy_headers=False,
            backlog=_ACCEPTED_AT_ONCE,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=_GRACE,
        )
        Server(settings).run(sockets=[listening])
    finally:
        listening.close()
        queue.close()


def _listen(host: str, port: int) -> socket.socket:
    """A socket, made here so that a taken port is a message of ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, port))
            listening.listen(_BACKLOG)  # before that another server could still take the port
        except BaseException:
            listening.close()
            raise
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            free = 7860 if error.errno == errno.EACCES else port - 1 if port == 65535 else port + 1
            remedy = f"choose another port, for example --port {free}"
        else:
            remedy = "choose an address of this machine, for example --host 127.0.0.1"
        raise EnvironmentProblem(
            f"{host}:{port}",
            found=f"the server cannot listen there ({error.strerror or error})",
            expected="an address of this machine and a free port",
            remedy=remedy,
        ) from error
    return listening


def _max_connections(wanted: int) -> int:
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


def _limited_protocol(limits: Limits) -> Any:
    """A protocol class for `uvicorn.Config(http=...)` that keeps the limits.

    uvicorn waits without limit for the header of a request, and for a client that does not read its
    answer: a few hundred such sockets would keep everybody else out.
    """
    most = _max_connections(limits.connections)
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
