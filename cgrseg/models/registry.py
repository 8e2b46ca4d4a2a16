"""Build a network by name, or from a file with weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from cgrseg.class_names import usable_names, usable_palette
from cgrseg.models.cgrseg import CGRSeg
from cgrseg.models.checkpoint_files import read_checkpoint
from cgrseg.models.weights import load_checkpoint, network_options, stored_metadata
from cgrseg.variants import VARIANTS


def list_models() -> list[str]:
    """Names that :func:`create_model` accepts, smallest network first."""
    return list(VARIANTS)


def create_model(name: str = "cgrseg_t", num_classes: int = 150, **options: Any) -> CGRSeg:
    """Build a network with random weights.

    Args:
        name: a name of :func:`list_models`.
        num_classes: K, number of classes.
        **options: arguments of :class:`cgrseg.models.CGRSeg`: `context_blocks`, `channels`
            (head width), `dropout`, `drop_path`, `freeze_norm`,
            `freeze_backbone`, `attention_bias`, `classes`, `palette`, `preprocessing`,
            `in_channels`, `head`.

    Returns:
        A module in training mode, from float (N, in_channels, H, W), H and W multiples of 32, to
        logits (N, num_classes, H / 8, W / 8).

    Raises:
        ValueError: there is no such name (the message lists the names).
    """
    return CGRSeg(name, num_classes, **options)


def load_model(path: str | Path, *, verbose: bool = True) -> CGRSeg:
    """Build the network that a checkpoint belongs to and load it, in eval mode.

    The tensors decide variant, head, context blocks, head width and number of classes. Classes,
    palette and preprocessing come from the file where it has them.

    Args:
        path: `.pth` or `.safetensors` file, folder of `save_pretrained`, hub id, or a name
            of :data:`cgrseg.published.PUBLISHED`.
        verbose: print the report on the standard error stream.

    Raises:
        WeightsError: as :func:`load_weights`, and when no variant fits the file.
    """
    checkpoint = read_checkpoint(path)
    options, stored = network_options(checkpoint), stored_metadata(checkpoint)
    count = options["num_classes"]
    model = CGRSeg(
        **options,
        classes=usable_names(stored["classes"], count, checkpoint.source),
        palette=usable_palette(stored["palette"], count, checkpoint.source),
        preprocessing=stored["preprocessing"],
    )
    model.initial_weights = stored["initial_weights"]
    report = load_checkpoint(model, checkpoint)
    if verbose:
        print(report, file=sys.stderr)
    return model.eval()
