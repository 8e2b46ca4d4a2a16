"""Files of `cgrseg export`: what they say about themselves, and how to open them."""

from __future__ import annotations

from cgrseg.inference.exported.description import Description, InputKind, OutputKind, Size
from cgrseg.inference.exported.opening import describe, is_exported, open_file

__all__ = [
    "Description",
    "InputKind",
    "OutputKind",
    "Size",
    "describe",
    "is_exported",
    "open_file",
]
