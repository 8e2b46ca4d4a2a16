"""`cgrseg publish`: weights of a run as a folder with a model card, and its upload to the hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cgrseg.cli.common import make_console
from cgrseg.cli.options import DataRoot, out_option, overwrite_option
from cgrseg.processes import quick_imports


def publish(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="Run folder (its best.pth, else latest.pth), or a checkpoint.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None, out_option("Published folder. Default: published, in the run folder.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="Hub id to upload the folder to. Default: no upload.",
            show_default=False,
        ),
    ] = None,
    license_id: Annotated[
        str | None,
        typer.Option(
            "--license",
            metavar="ID",
            help="License of the weights, as the hub names it, e.g. apache-2.0. Default: the "
            "model card says that none was given.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="Title of the model card. Default: the name of the run.", show_default=False
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Create a private repository on the hub.")
    ] = False,
    image: Annotated[
        list[str] | None,
        typer.Option(
            help="Image of the check; may be repeated. Default: 8 validation images.",
            show_default=False,
        ),
    ] = None,
    data_root: DataRoot = None,
    overwrite: Annotated[
        bool, overwrite_option("A folder of the same weights is uploaded without it.")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Add a commit to a hub repository that exists.")
    ] = False,
) -> None:
    """Write trained weights as a folder for other people, and upload it if asked.

    The folder holds model.safetensors, config.json, preprocessor_config.json and
    README.md: a model card with scores, classes, data and settings of the run. It
    is kept only if it opens again and predicts what the checkpoint predicts, bit
    for bit. cgrseg and transformers open it. Nothing is uploaded without --to.

    Examples:
      cgrseg publish work_dirs/mine --license cc-by-4.0

      cgrseg publish work_dirs/mine --to someone/streets --license apache-2.0
    """
    with quick_imports():
        from cgrseg.publishing import publish as run_publish

    done = run_publish(
        run,
        out=out,
        name=name,
        license_id=license_id,
        images=image or (),
        data_root=data_root,
        to=to,
        private=private,
        overwrite=overwrite,
        update=update,
        tell=lambda text: print(text, file=sys.stderr, flush=True),
    )
    console = make_console()

    def show(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    show(f"checked: labels and confidences of {done.checked} images equal the checkpoint's")
    show(f"published: {done.folder}")
    show(f"sha256 of model.safetensors: {done.sha256}")
    if done.row is not None:
        show(f"uploaded: {done.address}, commit {done.row.revision}")
        show(f"row for the table of weights by name, cgrseg/published.py: {done.row!r}")
