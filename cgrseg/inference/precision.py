"""The arithmetic that a network can be asked to predict in."""

from __future__ import annotations

from typing import Literal

import torch

from cgrseg.errors import ConfigError, explain

Precision = Literal["fp32", "bf16", "fp16"]

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def check_precision(name: str, setting: str = "precision") -> Precision:
    """`name`, if networks predict in it.

    Args:
        name: what was asked for.
        setting: what the message calls it.

    Raises:
        ConfigError: another name.
    """
    if name not in DTYPES:
        raise ConfigError(
            explain(
                setting,
                found=repr(name),
                expected="fp32, bf16 or fp16",
                remedy="choose one of these, or leave it out for fp32",
            )
        )
    return name
