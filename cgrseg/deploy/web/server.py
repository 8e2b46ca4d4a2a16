"""The server process: a socket to listen on, the application, and an end on a signal."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence
from typing import Any

from cgrseg.deploy.web.api import make_api
from cgrseg.deploy.web.connections import limited_protocol
from cgrseg.deploy.web.page_files import page_files
from cgrseg.deploy.web.queue import PredictionQueue
from cgrseg.deploy.web.request_filter import RequestFilter
from cgrseg.deploy.web.service import Service
from cgrseg.errors import EnvironmentProblem
from cgrseg.extras import require

_GRACE = 5  # seconds for answers under way when the server ends
_BACKLOG = 128
# asyncio accepts as many connections as the backlog has before it reads from the first one.
_ACCEPTED_AT_ONCE = 16


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
        make_api(service, queue, page_files()),
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
            http=limited_protocol(service.limits),
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
