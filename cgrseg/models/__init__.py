"""The network: backbone, modules of the head, composition, registry, weights."""

from __future__ import annotations

from cgrseg.models.cgrseg import CGRSeg
from cgrseg.models.checkpoint_files import read_checkpoint
from cgrseg.models.registry import create_model, list_models, load_model
from cgrseg.models.weights import LoadReport, load_weights

__all__ = [
    "CGRSeg",
    "LoadReport",
    "create_model",
    "list_models",
    "load_model",
    "load_weights",
    "read_checkpoint",
]
