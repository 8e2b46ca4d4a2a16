"""The server: the page at `/`, an API at `/api/predict`, and an end that leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cgrseg.deploy.web.api import add_api
from cgrseg.deploy.web.guard import Guard
from cgrseg.deploy.web.page import look, make_page
from cgrseg.deploy.web.service import Service
from cgrseg.errors import EnvironmentProblem, explain
from cgrseg.files import explained
from cgrseg.inference.exported.packages import need

_GRACE = 5  # seconds for answers under way when the server ends
_CONNECTIONS = 128  # at least; one open page has several


def serve(service: Service, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until interrupted.

    Args:
        service: labels the photos.
        host: address to listen on.
        port: likewise.
        ready: called with the page's address once it can be asked.

    Raises:
        EnvironmentProblem: packages are missing, or the port is taken.
    """
    uvicorn = need("uvicorn", "cgrseg web", "web")

    # An extra: to the type checker a module that is only known at run time.
    class Server(uvicorn.Server):  # type: ignore[misc, name-defined]
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                await asyncio.to_thread(ready, address)  # it may ask the page

    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}/"
    listening = _listen(host, port)
    try:
        with ended_by_signals(), temporary_home() as folder:
            settings = uvicorn.Config(
                make_application(service, folder, address, host),
                log_level="warning",
                ws="none",
                limit_concurrency=max(_CONNECTIONS, 8 * service.limits.waiting),
                timeout_keep_alive=10,
                timeout_graceful_shutdown=_GRACE,
            )
            Server(settings).run(sockets=[listening])
    finally:
        listening.close()
        service.close()


def _listen(host: str, port: int) -> socket.socket:
    """A socket, made here so that a taken port is a message of ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, port))
            listening.listen()  # before that another server could still take the port
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
            explain(
                f"{host}:{port}",
                found=f"the server cannot listen there ({error.strerror or error})",
                expected="an address of this machine and a free port",
                remedy=remedy,
            )
        ) from error
    return listening


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let a signal that ends this process leave the block in order first.

    The server stops on SIGTERM, then raises it again for whoever had it before; by itself it
    would end the process there, before anything is tidied up.  A closed terminal is the same.
    """
    caught = False

    def leave(number: int, _frame: object) -> None:
        nonlocal caught
        if not caught:  # one more must not break off the tidying
            caught = True
            raise SystemExit(128 + number)

    def hang_up(_number: int, _frame: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before[signal.SIGTERM] = signal.signal(signal.SIGTERM, leave)
        # One that is ignored, as under nohup, stays ignored; Windows has none.
        if signal.getsignal(getattr(signal, "SIGHUP", signal.SIGTERM)) is signal.SIG_DFL:
            before[signal.SIGHUP] = signal.signal(signal.SIGHUP, hang_up)
    try:
        yield
    except SystemExit:
        if not caught:
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    if caught:
        signal.raise_signal(signal.SIGTERM)


@contextlib.contextmanager
def temporary_home() -> Iterator[Path]:
    """The one folder that is written to while the server runs; it is gone afterwards.

    Raises:
        EnvironmentProblem: it cannot be made.
    """
    before = tempfile.tempdir
    with explained(tempfile.gettempdir()):
        folder = Path(tempfile.mkdtemp(prefix="cgrseg-web-"))
    try:
        tempfile.tempdir = str(folder)  # spooled uploads of the web framework too
        (folder / "gradio").mkdir()
        os.environ["GRADIO_TEMP_DIR"] = str(folder / "gradio")
        yield folder
    finally:
        tempfile.tempdir = before
        os.environ.pop("GRADIO_TEMP_DIR", None)
        shutil.rmtree(folder, ignore_errors=True)


def make_application(service: Service, folder: Path, address: str, host: str) -> Any:
    """Page and API as one ASGI application.

    Args:
        service: labels the photos.
        folder: the only one that is written to.
        address: of the server, shown in examples.
        host: that it listens on.

    Raises:
        EnvironmentProblem: packages are missing.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    gradio = need("gradio", "cgrseg web", "web")
    fastapi = need("fastapi", "cgrseg web", "web")
    application = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_api(application, service)
    page = make_page(gradio, service, folder / "gradio", address)
    gradio.mount_gradio_app(
        application,
        page,
        path="/",
        server_name=host,
        footer_links=[],
        run_history=False,
        max_file_size=service.limits.upload_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        **look(gradio),
    )
    return Guard(application, service.limits, folder, host)
