"""Trained segmentation weights by name.

A row is what `cgrseg publish RUN --to OWNER/NAME` prints; to add weights, add the row.  The name
works wherever a checkpoint is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedWeights:
    """Trained weights in a repository of the Hugging Face hub.

    Attributes:
        name: name for users, without a slash.
        variant: variant of the network.
        dataset: name of the dataset; None: unknown.
        num_classes: number of classes.
        scores: scores in 0..1 by name, as the model card has them; empty: not evaluated.
        sha256: digest of `model.safetensors`.
        license_id: license as the hub names it; None: none was given.
        hub_id: repository, as `owner/name`.
        revision: commit of the repository.
    """

    name: str
    variant: str
    dataset: str | None
    num_classes: int
    scores: Mapping[str, float]
    sha256: str
    license_id: str | None
    hub_id: str
    revision: str


_ROWS: tuple[PublishedWeights, ...] = ()  # nobody has published any yet

PUBLISHED: dict[str, PublishedWeights] = {row.name: row for row in _ROWS}
"""The rows by name."""
