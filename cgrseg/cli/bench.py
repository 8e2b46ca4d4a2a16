"""`cgrseg bench`: speed and memory of prediction on this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cgrseg.cli import completion
from cgrseg.cli.common import hold_lock, make_console, model_options, split_settings
from cgrseg.cli.options import (
    AsJson,
    Device,
    NumClasses,
    Threads,
    TrustCode,
    batch_size_option,
    out_option,
    size_option,
)
from cgrseg.processes import quick_imports
from cgrseg.variants import VARIANTS

if TYPE_CHECKING:
    from rich.console import Console

    from cgrseg.bench.machine import Peaks
    from cgrseg.models import CGRSeg


def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL|CHECKPOINT]... [KEY=VALUE]...",
            help=f"Variants ({', '.join(VARIANTS)}) or checkpoints. Default: cgrseg_t. KEY=VALUE "
            "are settings of MODEL, e.g. model.context_blocks=6.",
            show_default=False,
            autocompletion=completion.models_files_or_settings,
        ),
    ] = None,
    subjects: Annotated[
        str | None,
        typer.Option(
            show_default=False,
            help="Backends and comparison networks, separated by commas; 'plain' is always "
            "measured. Default: eager, folded-fp32, compiled-fp32, and compiled-bf16 where the "
            "device computes bf16 in hardware. Others: eager-channels-last, eager-bf16, "
            "eager-fp16, folded-bf16, folded-fp16, compiled-fp16, segformer-b0, segformer-b1, "
            "yolo26n-sem (n, s, m, l, x; @640: of 640x640; -openvino: as their OpenVINO export); "
            "or exported files, e.g. best.onnx or best.xml@bf16.",
        ),
    ] = None,
    size: Annotated[Any, size_option("Multiples of 32. Default: 512x512.")] = "512x512",
    batch_size: Annotated[
        list[int] | None, batch_size_option("May be repeated. Default: 1.")
    ] = None,
    works: Annotated[
        str,
        typer.Option(
            help="Parts to measure, separated by commas: network (tensor to logits), labels "
            "(tensor to label map) and image (decoded image to label map)."
        ),
    ] = "network,labels,image",
    rounds: Annotated[
        int,
        typer.Option(
            help="Number of rounds. Each round measures twice and keeps the second time.",
            min=1,
            max=1000,
        ),
    ] = 15,
    threads: Threads = None,
    clock: Annotated[
        str,
        typer.Option(
            help="Clock: wall (elapsed time) or processor (CPU time, for a machine with other "
            "load; use with --threads 1)."
        ),
    ] = "wall",
    num_classes: NumClasses = 150,
    apart: Annotated[
        bool,
        typer.Option(
            "--apart",
            help="Time each subject in a separate process, with separate threads and memory.",
        ),
    ] = False,
    memory: Annotated[bool, typer.Option(help="Measure memory in separate processes.")] = True,
    peaks: Annotated[bool, typer.Option(help="Measure the peak throughput of the device.")] = True,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also list the slowest operations (CPU; minutes).")
    ] = False,
    out: Annotated[Path | None, out_option("JSON file for all numbers.")] = None,
    as_json: AsJson = False,
    trust_code: TrustCode = False,
    device: Device = None,
) -> None:
    """Measure speed and memory of prediction and print tables.

    The first compilation of a network takes about a minute per precision. The
    compiled network is cached in ~/.cache/cgrseg (or $CGRSEG_CACHE), also for `cgrseg predict`.

    Examples:
      cgrseg bench

      cgrseg bench cgrseg_t cgrseg_b cgrseg_l --batch-size 1 --batch-size 8 --out speed.json

      cgrseg bench work_dirs/demo/best.pth --subjects compiled-bf16
    """
    with quick_imports():
        from cgrseg.bench.run import run_bench
        from cgrseg.bench.tables import as_markdown
        from cgrseg.config.fields import size_text
        from cgrseg.devices import resolve_device, use_threads
        from cgrseg.errors import ConfigError
        from cgrseg.files import write_json
        from cgrseg.precision import bf16_in_hardware

    if out is not None:
        hold_lock(out.parent)
    use_threads(threads)
    if any(side < 32 or side % 32 for side in size):
        raise ConfigError(
            "--size",
            found=size_text(*size),
            expected="height and width as multiples of 32, the network's largest stride",
            remedy=f"round up: --size {size_text(*(max(32, -(-s // 32) * 32) for s in size))}",
        )
    names, settings = split_settings(models or [])
    networks, weights = _networks(names or ["cgrseg_t"], num_classes, model_options(settings))
    where = resolve_device(device)
    if where.type == "cuda":
        networks = [network.to(where) for network in networks]
    if subjects is None:
        subjects = "eager,folded-fp32,compiled-fp32"
        subjects += ",compiled-bf16" * bf16_in_hardware(where)[0]
    result = run_bench(
        networks,
        [name.strip() for name in subjects.split(",") if name.strip()],
        size=size,
        batches=batch_size or [1],
        works=[work.strip() for work in works.split(",")],
        rounds=rounds,
        clock=clock,
        apart=apart,
        device=where,
        memory=memory,
        peaks=peaks or profile,
        weights=weights,
        trust_code=trust_code,
        tell=lambda text: print(text, file=sys.stderr, flush=True),
    )
    table = result.as_dict()
    console = make_console(stderr=as_json)
    if not as_json:
        console.print(as_markdown(result), markup=False, soft_wrap=True)
    if profile and result.peaks is not None:
        table["profiles"] = _profiles(console, networks, size, result.peaks)
    if as_json:
        typer.echo(json.dumps(table, indent=2))
    if out is not None:
        write_json(out, table)
        console.print(f"written: {out}", markup=False, soft_wrap=True)


def _networks(
    names: list[str], num_classes: int, options: dict[str, Any]
) -> tuple[list[CGRSeg], str]:
    """Networks in eval mode, and the origin of their weights in words."""
    from cgrseg.bench.random_weights import draw_weights
    from cgrseg.errors import ConfigError
    from cgrseg.models import create_model, list_models, load_model

    networks = [
        draw_weights(create_model(name, num_classes, **options))
        if name in list_models()
        else load_model(name).eval()
        for name in names
    ]
    counts = sorted({network.num_classes for network in networks})
    if len(counts) > 1:
        raise ConfigError(
            "networks",
            found=f"{' and '.join(map(str, counts))} classes",
            expected="equal numbers of classes, so that one table can hold them",
            remedy="measure them one by one, or give --num-classes",
        )
    for name, network in zip(names, networks, strict=True):
        if network.in_channels != 3:
            raise ConfigError(
                name,
                found=f"a network for images of {network.in_channels} channels",
                expected="8-bit RGB, which all of the forms that are compared take",
                remedy=f"measure its variant: cgrseg bench {network.variant}",
            )
    files = [name for name in names if name not in list_models()]
    return networks, f"of {', '.join(files)}" if files else "drawn at random"


def _profiles(
    console: Console, networks: list[CGRSeg], size: tuple[int, int], peaks: Peaks
) -> dict[str, object]:
    """Print the largest costs of every network, and return them for JSON."""
    from dataclasses import asdict

    from cgrseg.bench.profile import profile_network
    from cgrseg.bench.tables import profile_markdown
    from cgrseg.precision import PRECISIONS

    found: dict[str, object] = {}
    for network in networks:
        for precision in (name for name in PRECISIONS if name in peaks.flops):
            profile = profile_network(network, size, precision, peaks)
            title = f"{network.variant}, {precision}: the largest costs left"
            console.print(profile_markdown(profile, title), markup=False, soft_wrap=True)
            found[f"{network.variant} {precision}"] = asdict(profile)
    return found
