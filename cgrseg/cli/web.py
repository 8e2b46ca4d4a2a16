"""`cgrseg web`: a page in the browser, and an HTTP API."""

from __future__ import annotations

import math
import os
import re
import secrets
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cgrseg.cli import completion
from cgrseg.cli.common import make_console, split_settings, test_settings
from cgrseg.cli.options import Device, Precision, TrustCode
from cgrseg.processes import quick_imports

_SHORTEST_TOKEN = 16
# What an address and a header carry unchanged.
_TOKEN = re.compile(rf"[A-Za-z0-9._~-]{{{_SHORTEST_TOKEN},}}")


def web(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT... [KEY=VALUE]...",
            help="Checkpoints, folders of save_pretrained or exported files; the page offers all "
            "of them. KEY=VALUE are test settings, e.g. test.flip=true.",
            show_default=False,
            autocompletion=completion.files_or_settings,
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on. 0.0.0.0 accepts the whole network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="CGRSEG_WEB_TOKEN",
            help=f"Secret of at least {_SHORTEST_TOKEN} characters that every request must carry. "
            "Default: no token if only this machine can connect, else a generated one.",
            show_default=False,
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Host name that the page is opened under, e.g. of a proxy; repeatable."),
    ] = None,
    upload_mb: Annotated[
        float, typer.Option(help="Maximum upload size in MB.", min=0.1, max=2048)
    ] = 20,
    megapixels: Annotated[
        float, typer.Option(help="Maximum size of an image in megapixels.", min=0.01, max=4096)
    ] = 40,
    seconds: Annotated[
        float, typer.Option(help="Request timeout in seconds, including queueing.", min=1, max=3600)
    ] = 60,
    waiting: Annotated[
        int, typer.Option(help="Maximum number of requests in the queue.", min=1, max=1024)
    ] = 16,
    frames: Annotated[
        int,
        typer.Option(help="Maximum number of frames that the page records.", min=1, max=100_000),
    ] = 600,
    precision: Precision = "fp32",
    trust_code: TrustCode = False,
    device: Device = None,
) -> None:
    """Serve a web page that segments images and videos and shows the class under the pointer.

    The server listens on this machine only, unless --host names another address. It
    contacts no other server and writes no upload to disk. Ctrl-C stops it.

    Examples:
      cgrseg web best.pth

      cgrseg web small.pth large.onnx --port 8000
    """
    with quick_imports():
        from cgrseg.deploy.web import Limits, Service, serve
        from cgrseg.deploy.web.request_filter import LOOPBACK
        from cgrseg.errors import ConfigError
        from cgrseg.extras import require_extra
        from cgrseg.inference import Predictor
        from cgrseg.precision import check_precision
        from cgrseg.processes import Terminated

    require_extra("web", "cgrseg web")  # before a long loading
    if token is not None and not _TOKEN.fullmatch(token):
        raise ConfigError(
            "--token",
            found=f"{len(token)} characters",
            expected=f"at least {_SHORTEST_TOKEN} letters, digits or characters of -._~, which "
            "nobody can guess",
            remedy="leave it out, and one is generated",
        )
    local = host in LOOPBACK
    names = list(allow_host or ())
    if not local:
        names += [socket.gethostname(), f"{socket.gethostname()}.local"]
        token = token or secrets.token_urlsafe(24)
        print(
            f"warning: everyone who can reach {host} and has the token can use this page; "
            "the connection is not encrypted",
            file=sys.stderr,
        )
    numbers = {"--upload-mb": upload_mb, "--megapixels": megapixels, "--seconds": seconds}
    for name, value in numbers.items():
        if math.isnan(value):
            raise ConfigError(name, found="nan", expected="a number", remedy="correct the option")
    limits = Limits(
        upload_bytes=int(upload_mb * (1 << 20)),
        pixels=int(megapixels * 1e6),
        seconds=seconds,
        waiting=waiting,
        frames=frames,
    )
    sources, settings = split_settings(checkpoints)
    if not sources:
        raise ConfigError(
            "CHECKPOINT",
            found="settings only",
            expected="at least one checkpoint, folder or exported file",
            remedy="for example `cgrseg web best.pth`",
        )
    models = {
        name: Predictor.from_pretrained(
            source, device, check_precision(precision, "--precision"), trust_code=trust_code
        )
        for name, source in zip(model_names(sources), sources, strict=True)
    }
    for predictor in models.values():
        predictor.test = test_settings(predictor.test, settings, multi_scale=False)
    console = make_console()

    def ready(address: str) -> None:
        secret = f"#token={token}" if token else ""
        console.print(f"open {address}{secret} (Ctrl-C ends it)", markup=False, soft_wrap=True)

    try:
        serve(Service(models, limits), host, port, ready, names=names, token=token)
    except (KeyboardInterrupt, Terminated) as ended:
        # Python would wait for the prediction under way, which may take minutes.
        print("\nstopped", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130 if isinstance(ended, KeyboardInterrupt) else int(ended.code or 0))


def model_names(checkpoints: Sequence[str]) -> list[str]:
    """Names for the list of models: never a whole path of this machine.

    The file's own name; with its folder's where two are alike; numbered where they still are.
    """
    # A name that is no UTF-8 cannot be sent as it is.
    paths = [Path(os.fsencode(each).decode(errors="replace")) for each in checkpoints]
    names = [path.name for path in paths]
    for number, path in enumerate(paths):
        if [other.name for other in paths].count(path.name) > 1:
            names[number] = "/".join(path.parts[-2:]) if len(path.parts) > 1 else path.name
    return [
        name if names.count(name) == 1 else f"{name} ({names[: number + 1].count(name)})"
        for number, name in enumerate(names)
    ]
