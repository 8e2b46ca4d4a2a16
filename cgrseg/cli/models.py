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

    from rich.table import Column, Table

    from cgrseg.hub import cached_path
    from cgrseg.published import PUBLISHED
    from cgrseg.variants import VARIANTS, imagenet_weights

    backbones = []
    for name, variant in VARIANTS.items():
        source = imagenet_weights(name)
        cached = cached_path(source, "model.safetensors")
        backbones.append(
            {
                "variant": name,
                "hub_id": source,
                "megabytes": variant.imagenet_megabytes,
                "license": "apache-2.0",
                "cached": None if cached is None else str(cached),
            }
        )
    console = make_console()
    if as_json:
        rows = [asdict(each) for each in PUBLISHED.values()]
        console.print_json(json.dumps({"segmentation": rows, "imagenet": backbones}))
        return
    if PUBLISHED:
        repository = Column("repository", overflow="fold")
        table = Table("name", "network", "dataset", "mIoU", "license", repository)
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
    console.print("ImageNet weights of the backbones (model.pretrained=imagenet):", markup=False)
    for row in backbones:
        size = f"about {row['megabytes']} MB"
        kept = row["cached"] or "not in the cache"
        line = f"  {row['variant']}  {row['hub_id']}  {size}  {row['license']}  {kept}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
