"""Maths that makes prediction and training fast, each beside a plain version to compare with.

The names below are imported at first use: labels in NumPy need no PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cgrseg.ops.argmax import (
        upsample_argmax,
        upsample_argmax_reference,
        upsample_confidence,
        upsample_topk,
    )
    from cgrseg.ops.cross_entropy import (
        upsample_accuracy,
        upsample_cross_entropy,
        upsample_cross_entropy_reference,
    )

__all__ = [
    "upsample_accuracy",
    "upsample_argmax",
    "upsample_argmax_reference",
    "upsample_confidence",
    "upsample_cross_entropy",
    "upsample_cross_entropy_reference",
    "upsample_topk",
]

_IN_CROSS_ENTROPY = ("upsample_accuracy", "upsample_cross_entropy")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'cgrseg.ops' has no attribute {name!r}")
    home = "cross_entropy" if name.startswith(_IN_CROSS_ENTROPY) else "argmax"
    value = getattr(importlib.import_module(f"cgrseg.ops.{home}"), name)
    globals()[name] = value
    return value
