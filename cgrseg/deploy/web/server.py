"""The server: the page at `/`, an API at `/api/predict`, and what keeps both at home."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from cgrseg.deploy.web.page import look, make_page
from cgrseg.deploy.web.result import as_json, label_png, overlay_jpeg
from cgrseg.deploy.web.service import BusyError, Service
from cgrseg.errors import ConfigError, EnvironmentProblem, explain
from cgrseg.inference.exported.packages import need

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
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}/"
    with temporary_home() as folder:
        application = make_application(service, folder, address, host)
        settings = uvicorn.Config(
            application,
            host=host,
            port=port,
            log_level="warning",
            limit_concurrency=8 * service.limits.waiting,
            timeout_keep_alive=10,
        )
        server = uvicorn.Server(settings)
        listening = _listen(settings, host, port)
        try:
            ready(address)
            server.run(sockets=[listening])
        finally:
            listening.close()
            service.close()


def _listen(settings: Any, host: str, port: int) -> Any:
    """A socket, made here so that a taken port is a message of ours."""
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise EnvironmentProblem(
            explain(
                f"{host}:{port}",
                found=f"the server cannot listen there ({error.strerror or error})",
                expected="an address of this machine and a free port",
                remedy=f"choose another port, for example --port {port + 1}",
            )
        ) from error
    return listening


@contextlib.contextmanager
def temporary_home() -> Iterator[Path]:
    """The one folder that is written to while the server runs; it is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="cgrseg-web-"))
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)  # spooled uploads of the web framework too
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "gradio")
    try:
        yield folder
    finally:
        tempfile.tempdir = before
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
    _add_api(fastapi, application, service)
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
    return Guard(application, service.limits.upload_bytes, host)


def _add_api(fastapi: Any, application: Any, service: Service) -> None:
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse, Response

    def answer(content: bytes, model: str, result: str) -> Any:
        with tempfile.NamedTemporaryFile(suffix=".upload") as upload:
            upload.write(content)
            upload.flush()
            found = service.predict(Path(upload.name), model)
        if result == "shares":
            return JSONResponse(as_json(found))
        if result == "overlay":
            return Response(overlay_jpeg(found, 0.5), media_type="image/jpeg")
        return Response(label_png(found), media_type="image/png")

    async def predict(request: Any) -> Any:
        model = request.query_params.get("model", next(iter(service.models)))
        result = request.query_params.get("result", "labels")
        try:
            if result not in ("labels", "overlay", "shares"):
                raise ConfigError(
                    explain(
                        "result",
                        found=repr(result)[:80],
                        expected="labels, overlay or shares",
                        remedy="choose from these",
                    )
                )
            return await run_in_threadpool(answer, await request.body(), model, result)
        except BusyError as error:
            return JSONResponse({"error": str(error)}, 503, {"Retry-After": "30"})
        except Exception as error:
            from cgrseg.errors import CGRSegError

            if not isinstance(error, CGRSegError):
                raise
            return JSONResponse({"error": str(error)}, 400)

    application.add_route("/api/predict", predict, methods=["POST"])


class Guard:
    """Bodies within the limit, requests meant for this server, and answers that stay here.

    Args:
        application: what is guarded.
        upload_bytes: of one file.
        host: that the server listens on.  On a loopback address only requests that name it
            are answered: a page of another site cannot reach it under a name of its own.
    """

    def __init__(self, application: Any, upload_bytes: int, host: str) -> None:
        self._application = application
        self._most = upload_bytes + _ENVELOPE
        self._names = LOOPBACK if host in LOOPBACK else None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request; see ASGI."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        named = _without_port(headers.get(b"host", b"").decode("latin-1"))
        if self._names is not None and named not in self._names:
            await _refuse(send, 421, f"this server is for {' and '.join(self._names)} only")
            return
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._most:
            await _refuse(send, 413, "the file is too large")
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._most:
                return {"type": "http.disconnect"}  # whoever lies about a length is left
            return message

        async def homely(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"content-security-policy", _POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        await self._application(scope, counted, homely)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = reason.encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
