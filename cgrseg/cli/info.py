"""`cgrseg info`: the installation, the cost of a network, the content of a checkpoint or config."""

from __future__ import annotations

import ctypes
import json
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cgrseg.cli import completion
from cgrseg.cli.common import make_console, make_table, model_options
from cgrseg.cli.options import AsJson, NumClasses, Settings, size_option
from cgrseg.extras import EXTRAS
from cgrseg.variants import NETWORK_STRIDE, VARIANTS, variant_sizes

if TYPE_CHECKING:
    from rich.console import Console

    from cgrseg.reporting.cost import ModelCost

CORE = (
    "torch",
    "lightning",
    "torchmetrics",
    "numpy",
    "opencv-python-headless",
    "pydantic",
    "safetensors",
    "huggingface-hub",
)


def info(
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL|CHECKPOINT|CONFIG]",
            help=f"Variant ({', '.join(VARIANTS)}), checkpoint, or config (a preset's name or a "
            "file). Default: show this installation.",
            show_default=False,
            autocompletion=completion.models_and_presets,
        ),
    ] = None,
    settings: Settings = None,
    presets: Annotated[bool, typer.Option("--presets", help="List all presets.")] = False,
    size: Annotated[Any, size_option("Multiples of 32. Default: 512x512.")] = "512x512",
    num_classes: NumClasses = 150,
    as_json: AsJson = False,
) -> None:
    """Show parameters and operations of a network, or what a checkpoint or config holds.

    Examples:
      cgrseg info cgrseg_t

      cgrseg info work_dirs/demo/best.pth --size 512x704

      cgrseg info --presets
    """
    from cgrseg.errors import ConfigError

    console = make_console()
    if presets:
        _print_presets(console, as_json)
    elif subject is None:
        _print_installation(console, as_json)
    elif subject in VARIANTS:
        options = {"num_classes": num_classes, **model_options(settings or ())}
        _print_cost(console, _cost_of(subject, size, options), as_json)
    elif _is_config(subject):
        from cgrseg.cli.train import print_settings
        from cgrseg.config import load_config

        config = load_config(subject, settings or ())
        if as_json:
            console.print_json(config.model_dump_json())
        else:
            print_settings(console, config)
    else:
        if settings:
            raise ConfigError(
                settings[0],
                found=f"a setting, with the checkpoint {subject}",
                expected="settings with MODEL or CONFIG; a checkpoint is shown as it is",
                remedy="leave it out",
            )
        _print_checkpoint(console, subject, size, as_json)


def _is_config(subject: str) -> bool:
    from cgrseg.config import list_presets

    path = Path(subject)
    run_folder = (path / "config.json").is_file() and not any(path.glob("*.safetensors"))
    return subject in list_presets() or path.suffix in (".py", ".json") or run_folder


def _print_presets(console: Console, as_json: bool) -> None:
    from cgrseg.config.presets import DATASETS, list_presets, preset_name

    if as_json:
        console.print_json(json.dumps(list_presets()))
        return
    for recipe in DATASETS.values():
        console.print(recipe.about)
        for model in VARIANTS:
            console.print(f"  {preset_name(model, recipe)}", markup=False)


def _print_installation(console: Console, as_json: bool) -> None:
    import cgrseg

    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    if as_json:
        optional = [name for names in EXTRAS.values() for name in names.values()]
        packages = {name: version(name) for name in (*CORE, *optional)}
        console.print_json(
            json.dumps(
                {
                    "cgrseg": cgrseg.__version__,
                    "python": platform.python_version(),
                    "platform": platform.platform(),
                    "packages": packages,
                    "devices": _devices(),
                }
            )
        )
        return
    console.print(f"cgrseg {cgrseg.__version__}, Python {platform.python_version()}")
    console.print(platform.platform(), markup=False)
    for name in CORE:
        console.print(f"  {name} {version(name) or 'not installed'}", markup=False)
    for extra, names in EXTRAS.items():
        missing = [name for name in names.values() if version(name) is None]
        state = f"without {', '.join(missing)}" if missing else "complete"
        console.print(f"  extra [{extra}]: {state}", markup=False)
    console.print("devices:")
    for line in _devices():
        console.print(f"  {line}", markup=False)


def _devices() -> list[str]:
    stated = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(stated) if stated.isdecimal() and int(stated) else _usable_cpus()
    lines = [f"cpu, {threads} threads"]
    if not _may_have_gpu():
        return lines
    import torch

    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        lines.append(f"cuda:{number}, {device.name}, {device.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        lines.append("mps")
    return lines


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _may_have_gpu() -> bool:
    """Whether a driver for a GPU is there; without one, PyTorch, slow to import, is not asked."""
    if platform.system() == "Darwin" or Path("/dev/kfd").exists():  # Metal, or an AMD GPU
        return True
    try:
        ctypes.CDLL("nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _cost_of(variant: str, size: tuple[int, int], options: Mapping[str, Any]) -> ModelCost:
    from cgrseg.config.fields import size_text
    from cgrseg.errors import ConfigError
    from cgrseg.reporting.cost import network_cost

    if any(side < NETWORK_STRIDE or side % NETWORK_STRIDE for side in size):
        multiples = [max(1, -(-side // NETWORK_STRIDE)) * NETWORK_STRIDE for side in size]
        raise ConfigError(
            "--size",
            found=size_text(*size),
            expected=f"height and width as multiples of {NETWORK_STRIDE}, the network's largest "
            "stride",
            remedy=f"round up: --size {size_text(*multiples)}",
        )
    return network_cost(variant, size=size, **options)


def _print_cost(console: Console, cost: ModelCost, as_json: bool) -> None:
    if as_json:
        console.print_json(json.dumps(cost.as_dict()))
        return
    table = make_table(
        *("part", "parameters", "convolutions", "products"),
        title=f"{cost.variant}, {cost.num_classes} classes, {cost.head} head, "
        f"{cost.context_blocks} context blocks, one image of {cost.size[0]}x{cost.size[1]}",
    )
    for part in cost.parts:
        table.add_row(
            part.name,
            f"{part.parameters / 1e6:.3f}",
            f"{part.convolution_macs / 1e9:.3f}",
            f"{part.product_macs / 1e9:.3f}",
        )
    table.add_section()
    products = cost.all_macs - cost.published_macs
    table.add_row(
        "all",
        f"{cost.parameters / 1e6:.2f}",
        f"{cost.published_macs / 1e9:.2f}",
        f"{products / 1e9:.2f}",
    )
    if cost.inference_parameters != cost.parameters:
        table.add_row("in inference", f"{cost.inference_parameters / 1e6:.2f}", "", "")
    published = variant_sizes(cost.variant, cost.head).published_cost
    if published is not None:
        table.add_row("published (512, 150)", *map(str, published), "")
    console.print(table)
    console.print(
        "Parameters in millions; operations in billions of multiply-accumulates. The published "
        f"figure counts convolutions alone; with matrix products it is {cost.all_macs / 1e9:.2f}.",
        style="dim",
    )


def _print_checkpoint(console: Console, path: str, size: tuple[int, int], as_json: bool) -> None:
    from cgrseg.models import load_model, read_checkpoint
    from cgrseg.models.weights import channel_names

    model = load_model(path)
    options = model.options()
    shaping = ("num_classes", "context_blocks", "channels", "attention_bias")
    shape = {name: options[name] for name in shaping}
    shape |= {"in_channels": model.in_channels, "head": model.head}
    cost = _cost_of(model.variant, size, shape)
    if not as_json:
        meta = read_checkpoint(path).meta
        network = f"{model.variant}, {model.num_classes} classes, {model.head} head"
        console.print(f"{path}: {network}", markup=False)
        if model.classes is not None:
            console.print(f"classes: {', '.join(model.classes)}", markup=False)
        if (names := channel_names(model.preprocessing)) is not None:
            console.print(f"channels: {', '.join(names)}", markup=False)
        for key in ("iteration", "version"):
            if meta.get(key) is not None:
                console.print(f"{key}: {meta[key]}", markup=False)
        stored = meta.get("config")
        if isinstance(stored, dict):
            console.print(f"run: {stored.get('name')}", markup=False)
        console.print()
    _print_cost(console, cost, as_json)
