"""`cgrseg data fetch`: download a dataset by name."""

from __future__ import annotations

import functools
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from cgrseg.cli import completion
from cgrseg.cli.common import EXIT_PARTLY, make_console
from cgrseg.cli.options import Workers, out_option
from cgrseg.errors import ConfigError
from cgrseg.progress import shown_progress


def fetch(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A dataset of `cgrseg data list`.",
            show_default=False,
            autocompletion=completion.datasets,
        ),
    ],
    out: Annotated[
        Path | None,
        out_option(
            "Dataset root. Default: that of the presets, e.g. data/ade/ADEChallengeData2016."
        ),
    ] = None,
    sources: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="URL|FILE|FOLDER",
            help="Another place of the archives: a mirror, or what you downloaded by hand. The "
            "address of a folder ends with a slash. May be repeated.",
            show_default=False,
        ),
    ] = None,
    keep_archives: Annotated[
        bool, typer.Option("--keep-archives", help="Keep the archives in OUT/archives.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Accept the terms of the dataset, do not ask.")
    ] = False,
    workers: Workers = None,
) -> None:
    """Download a dataset, lay it out, convert and check it.

    Shows the terms of use, what is downloaded from where, and how large it is,
    and asks first. The same command resumes an interrupted download.
    Existing files are never replaced.

    Examples:
      cgrseg data fetch ade20k

      cgrseg data fetch coco-stuff10k --out /data/coco_stuff10k --yes

      cgrseg data fetch cityscapes --from downloads
    """
    from cgrseg.data.fetch import fetch_dataset, find_download, plan_text

    spec, download = find_download(name)
    root = Path(spec.default_root) if out is None else out
    console = make_console()
    say = functools.partial(console.print, markup=False, soft_wrap=True)
    say(plan_text(spec, download, root, sources or ()))
    if not yes:
        _ask(name)
    fetched = fetch_dataset(
        spec.name,
        root,
        sources=sources or (),
        keep_archives=keep_archives,
        shown=lambda what, unit: shown_progress(what, unit=unit),
        workers=workers,
    )
    if fetched.there:
        say(f"{root}: the dataset is there already; nothing was downloaded")
    if fetched.conversion is not None:
        say(fetched.conversion.text().rpartition("\nnext: ")[0])
    say(fetched.report.text())
    if fetched.archives is not None:
        say(f"archives: {fetched.archives}")
    if not fetched.ok:
        raise typer.Exit(EXIT_PARTLY)
    say(f"to train: {_train_command(spec.name, root, spec.default_root)}")


def _ask(name: str) -> None:
    """Ask whether to download; the command ends unless the answer is yes."""
    if not sys.stdin.isatty():
        raise ConfigError(
            f"cgrseg data fetch {name}",
            found="there is no terminal to ask on; nothing was downloaded",
            expected="your consent to the terms above",
            remedy="read them, and run the command again with --yes",
        )
    if not typer.confirm("Accept the terms and download the dataset?"):
        print("nothing was downloaded")
        raise typer.Exit(EXIT_PARTLY)


def _train_command(name: str, root: Path, usual: str) -> str:
    from cgrseg.config import list_presets, load_config

    presets = (each for each in list_presets() if load_config(each).data.dataset == name)
    preset = next(presets, None)
    words = ["cgrseg", "train", preset or "cgrseg-t_custom"]
    if preset is None:
        words.append(f"data.dataset={name}")
    if preset is None or root != Path(usual):
        words.append(f"data.root={root}")
    return shlex.join(words)
