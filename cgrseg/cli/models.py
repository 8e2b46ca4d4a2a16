"""`cgrseg models`: the weights that are known by name."""

from __future__ import annotations

import json

from cgrseg.cli.common import make_console
from cgrseg.cli.options import AsJson


def models(as_json: AsJson = False) -> None:
    """List the weights that are known by name.

    Segmentation weights, whose name stands for a checkpoint in every command;
    and ImageNet weights of the backbones, which model.pretrained=imagenet means.

    Examples:
      cgrseg models
    """
    from dataclasses import asdict

    from rich.table import Table

    from cgrseg.published import PUBLISHED
    from cgrseg.variants import VARIANTS, imagenet_weights

    backbones = [
        {
            "variant": name,
            "hub_id": imagenet_weights(name),
            "license": "apache-2.0",
            "cached": _cached(imagenet_weights(name)),
        }
        for name in VARIANTS
    ]
    console = make_console()
    if as_json:
        rows = [asdict(each) for each in PUBLISHED.values()]
        console.print_json(json.dumps({"segmentation": rows, "imagenet": backbones}))
        return
    if PUBLISHED:
        table = Table("name", "network", "dataset", "mIoU", "license", "repository")
        for each in PUBLISHED.values():
            score = f"{100 * each.scores['mIoU']:.1f}" if "mIoU" in each.scores else ""
            origin = f"{each.hub_id}@{each.revision[:12]}"
            words = (each.name, each.variant, each.dataset or "", score, each.license_id or "")
            table.add_row(*words, origin)
        console.print(table)
    else:
        console.print(
            "Segmentation weights: nobody has published any for this table yet. A checkpoint of "
            "the authors, of a run of yours or a hub id is taken in the place of a name; "
            "`cgrseg publish` makes a row.",
            markup=False,
        )
    table = Table("network", "ImageNet weights of the backbone", "license", "in the cache")
    for row in backbones:
        table.add_row(
            *(row[key] or "not yet" for key in ("variant", "hub_id", "license", "cached"))
        )
    console.print(table)


def _cached(hub_id: str) -> str | None:
    """Path of a repository's weights in the cache of `huggingface_hub`; None: not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, "model.safetensors")
    return found if isinstance(found, str) else None
