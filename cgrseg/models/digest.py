"""SHA-256 digests of weights: the origin of a result, and the check of a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of all parameters and buffers of a network, with their names."""
    return tensors_digest(model.state_dict())


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors with their names, shapes and dtypes; the order does not matter."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        data = value.detach().to("cpu").contiguous()
        digest.update(f"{name} {tuple(data.shape)} {data.dtype};".encode())
        digest.update(data.flatten().view(torch.uint8).numpy().data if data.numel() else b"")
    return digest.hexdigest()
