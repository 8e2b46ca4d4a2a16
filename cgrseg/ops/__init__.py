"""Maths that makes prediction and training fast, each beside a plain version to compare with."""

from __future__ import annotations

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
