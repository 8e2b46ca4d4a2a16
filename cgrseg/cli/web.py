"""`cgrseg web`: a page in the browser, on this machine."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Annotated

import typer

from cgrseg.cli import completion
from cgrseg.cli.common import make_console, split_settings, test_settings
from cgrseg.cli.options import Device, Precision, TrustCode


def web(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT... [KEY=VALUE]...",
            help="Checkpoints, folders of save_pretrained or exported files; the page offers all "
            "of them. KEY=VALUE are test settings, e.g. test.flip=true.",
            show_default=False,
            autocompletion=completion.settings,
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets the whole network in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    upload_mb: Annotated[float, typer.Option(help="Of one file.", min=0.1)] = 20,
    megapixels: Annotated[float, typer.Option(help="Of one photo.", min=0.01)] = 40,
    seconds: Annotated[float, typer.Option(help="For one answer, waiting included.", min=1)] = 60,
    waiting: Annotated[int, typer.Option(help="Requests at once.", min=1)] = 16,
    precision: Precision = "fp32",
    trust_code: TrustCode = False,
    device: Device = None,
) -> None:
    """Open a page that labels photos: drop one, take one, point at it to read a class.

    It listens on this machine only, unless told otherwise; nothing is sent
    anywhere, and what is uploaded is gone when it ends (Ctrl-C).

    Examples:
      cgrseg web best.pth

      cgrseg web small.pth large.onnx --port 8000
    """
    from cgrseg.deploy.web import Limits, Service, serve
    from cgrseg.deploy.web.guard import LOOPBACK
    from cgrseg.inference import Predictor
    from cgrseg.inference.exported.packages import need
    from cgrseg.inference.precision import check_choice

    # Imported when its temporary folder is known: it looks for one at once.
    if importlib.util.find_spec("gradio") is None:
        need("gradio", "cgrseg web", "web")
    limits = Limits(
        upload_bytes=int(upload_mb * (1 << 20)),
        pixels=int(megapixels * 1e6),
        seconds=seconds,
        waiting=waiting,
    )
    names, settings = split_settings(checkpoints)
    models = {
        _name(checkpoint, names): Predictor.from_pretrained(
            checkpoint,
            device,
            check_choice(precision, "--precision"),
            trust_code=trust_code,
        )
        for checkpoint in names
    }
    for predictor in models.values():
        predictor.test = test_settings(predictor.test, settings, multi_scale=False)
    console = make_console()
    if host not in LOOPBACK:
        print(
            f"warning: everyone who can reach {host} can use this page; it has no passwords and no "
            "encryption",
            file=sys.stderr,
        )
    serve(
        Service(models, limits),
        host,
        port,
        lambda address: console.print(f"open {address} (Ctrl-C ends it)", markup=False),
    )


def _name(checkpoint: str, others: list[str]) -> str:
    """A name for the list: the file's own, or its whole path where two are alike."""
    own = Path(checkpoint).name
    return own if [Path(other).name for other in others].count(own) == 1 else checkpoint
