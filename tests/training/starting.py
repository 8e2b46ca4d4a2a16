"""The start of a training, up to its first iteration."""

from __future__ import annotations

from cgrseg.config.schema import Config
from cgrseg.devices import find_placement
from cgrseg.errors import CGRSegError
from cgrseg.training.data_source import DatasetSource


def training_starts(config: Config) -> bool:
    """Whether a training gets as far as its first batch."""
    try:
        source = DatasetSource(config, find_placement("cpu"))
    except CGRSegError:
        return False
    assert source.size > 0
    return True
