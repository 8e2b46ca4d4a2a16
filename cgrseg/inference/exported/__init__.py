"""Exported networks (`cgrseg export`) behind the same interface as a checkpoint's."""

from __future__ import annotations

from cgrseg.inference.exported.backend import ExportedBackend
from cgrseg.inference.exported.description import Description, InputKind, OutputKind, Size
from cgrseg.inference.exported.opening import describe, is_exported, open_exported

__all__ = [
    "Description",
    "ExportedBackend",
    "InputKind",
    "OutputKind",
    "Size",
    "describe",
    "is_exported",
    "open_exported",
]
