"""Digests of weights: which weights made a result, and whether a file still holds them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of every parameter and buffer of a network with its name."""
    return tensors_digest(model.state_dict())


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors with their names, shapes and dtypes, whatever their order."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        data = value.detach().to("cpu").contiguous()
        digest.update(f"{name} {tuple(data.shape)} {data.dtype};".encode())
        digest.update(data.flatten().view(torch.uint8).numpy().data if data.numel() else b"")
    return digest.hexdigest()
