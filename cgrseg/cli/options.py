"""Options that several commands share: one name, short form, type and help text each.

Functions make the options whose help has a further sentence per command.  `docs/commands.md` is
generated from all options; a test checks that they agree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from cgrseg.cli import completion
from cgrseg.errors import ConfigError

SETTINGS_HELP = "Settings of the config, e.g. {example} (docs/configuration.md)."


def settings_argument(example: str = "optimizer.lr=1e-4") -> Any:
    """Trailing `KEY=VALUE` arguments of a command that reads a config."""
    return typer.Argument(
        metavar="[KEY=VALUE]...",
        help=SETTINGS_HELP.format(example=example),
        show_default=False,
        autocompletion=completion.settings,
    )


def out_option(detail: str) -> Any:
    """`--out`, `-o`; `detail`: content and default of the output path."""
    return typer.Option(
        "--out", "-o", metavar="PATH", help=f"Output path. {detail}", show_default=False
    )


def overwrite_option(detail: str = "") -> Any:
    """`--overwrite`; `detail`: what happens without it."""
    return typer.Option("--overwrite", help=f"Replace existing results. {detail}".strip())


def size_option(detail: str = "") -> Any:
    """`--size`; repeatable where the parameter is a list."""
    return typer.Option(
        "--size",
        metavar="HEIGHTxWIDTH",
        parser=size_of_option,
        help=f"Size in pixels, e.g. 512x704, or 512 for a square. {detail}".strip(),
        show_default=False,
    )


def batch_size_option(detail: str = "") -> Any:
    """`--batch-size`; repeatable where the parameter is a list."""
    return typer.Option(
        "--batch-size", help=f"Number of images per batch. {detail}".strip(), min=1, max=65_536
    )


def precision_option(detail: str, completed: Callable[[str], list[str]]) -> Any:
    """`--precision`; `completed`: names for shell completion."""
    return typer.Option(
        "--precision",
        help=f"Precision of the network, fp32 or fp16. {detail}",
        autocompletion=completed,
    )


def split_option(detail: str) -> Any:
    """`--split`; repeatable where the parameter is a list."""
    return typer.Option("--split", help=f"Name of the split. {detail}", show_default=False)


def size_of_option(text: Any) -> tuple[int, int]:
    """Parse the text of `--size`.

    Raises:
        ConfigError: the text is not a size.
    """
    from cgrseg.config.fields import MAX_SIDE, read_size

    size = read_size(text)
    if not isinstance(size, tuple) or not all(1 <= side <= MAX_SIDE for side in size):
        raise ConfigError(
            "--size",
            found=repr(text),
            expected=f"a size in pixels, HEIGHTxWIDTH, each from 1 to {MAX_SIDE}",
            remedy="for example --size 512x704, or --size 512 for a square",
        )
    return size


Settings = Annotated[list[str] | None, settings_argument()]
DataRoot = Annotated[
    str | None,
    typer.Option(
        "--data-root",
        help="Dataset root, which may be an address. Default: data.root of the config.",
        show_default=False,
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(
        metavar="ray",
        help="Engine: ray shares the images out to the workers of a Ray cluster (extra [ray]); a "
        "prediction then also writes a table of the images. Default: this process.",
        show_default=False,
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        envvar="RAY_ADDRESS",
        metavar="ADDRESS",
        help="Address of a running Ray cluster. Default: a cluster on this machine, for this "
        "command.",
        show_default=False,
    ),
]
RayWorkers = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=100_000,
        help="Number of worker processes. With --engine ray alone, each with --threads CPU "
        "threads (1 unless given). Default: as many as the cluster has room for.",
        show_default=False,
    ),
]
GpusPerWorker = Annotated[
    float,
    typer.Option(min=0, max=1024, help="Number of GPUs of a Ray worker, or a part of one."),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="Device: cpu, cuda, cuda:0, ... or mps. Default: a GPU if there is one.",
        show_default=False,
        autocompletion=completion.devices,
    ),
]
Precision = Annotated[
    str,
    precision_option(
        "Also bf16; or auto: bf16 where the device computes it in hardware, else fp32.",
        completion.precisions,
    ),
]
Compile = Annotated[
    str,
    typer.Option(
        "--compile",
        metavar="[auto|on|off]",
        help="Form of the network: on (compiled), auto (the fastest that is ready) or off (as "
        "published). --compile alone means on, --no-compile means off. A compilation takes about "
        "a minute per image size and is cached; the network is then twice as fast or more. "
        "Without one, auto takes OpenVINO for many images where it is installed, else the "
        "network with folded norms.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        help="Number of CPU threads. Default: the cores that the process may use.",
        min=1,
        max=1024,
        show_default=False,
    ),
]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code",
        help="Run the machine code of compiled packages (.pt2 of --format aoti). The "
        "code has all rights of your account: use only files whose origin you know.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        help="Number of worker processes. Default: chosen from the amount of work.",
        min=0,
        max=512,
        show_default=False,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", help="Seed of all random numbers.", min=0, max=2**63 - 1, show_default=False
    ),
]
BatchSize = Annotated[int, batch_size_option()]
MultiScale = Annotated[
    bool,
    typer.Option(
        "--multi-scale",
        help="Average over the published scales, each with and without a horizontal flip.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit", help="Maximum number of images.", min=1, max=2**31 - 1, show_default=False
    ),
]
Opacity = Annotated[
    float,
    typer.Option("--opacity", help="Opacity of the labels in overlays, 0 to 1.", min=0, max=1),
]
NumClasses = Annotated[
    int, typer.Option("--num-classes", help="Number of classes of MODEL.", min=1, max=10_000)
]
Dataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        help="Dataset name of FOLDER (`cgrseg data list`). Default: detected from its folders.",
        show_default=False,
        autocompletion=completion.datasets,
    ),
]
TrainScenes = Annotated[
    int, typer.Option("--train-scenes", help="Number of training scenes.", min=0, max=1_000_000)
]
ValScenes = Annotated[
    int, typer.Option("--val-scenes", help="Number of validation scenes.", min=0, max=1_000_000)
]


def check_engine(engine: str | None, options: dict[str, object], no_images: str) -> None:
    """Refuse what Ray does not do, and options of Ray without it.

    Args:
        engine: value of `--engine`.
        options: those of Ray with their values, empty where they are not given.
        no_images: what the command works on, if it is not images in one process; else empty.

    Raises:
        ConfigError: another engine, or options that contradict each other.
    """
    from cgrseg.errors import ConfigError, check_choice

    if engine is not None:
        check_choice("--engine", engine, ["ray"])
        if no_images:
            raise ConfigError(
                "--engine",
                found=f"ray, with {no_images}",
                expected="images, in one process, whose workers Ray starts",
                remedy="leave out --engine ray",
            )
    for name, value in options.items():
        if value and engine is None:
            raise ConfigError(
                name,
                found="given without --engine ray",
                expected="an option of Ray with --engine ray",
                remedy="add --engine ray, or leave the option out",
            )
