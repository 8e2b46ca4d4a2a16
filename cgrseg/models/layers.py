"""Building blocks shared by the backbone and the head."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def is_recorded() -> bool:
    """Whether operations are being recorded into a graph: compiled, exported or traced.

    A recorded graph must depend on its inputs alone, not on values cached by an earlier call.
    """
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return torch.compiler.is_compiling() or tracing


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016, arXiv 1603.09382), per sample.

    In training mode a sample's residual branch is dropped with probability `rate`
    and scaled by 1 / (1 - rate) otherwise; in eval mode it is the identity.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"DropPath rate: got {rate}, expected 0 <= rate < 1")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Drop whole samples of `x` (N, ...)."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        return x * (torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(keep) / keep)

    def extra_repr(self) -> str:
        """Show the rate when the network is printed."""
        return f"rate={self.rate:.4f}"


def drop_path(rate: float) -> nn.Module:
    """Stochastic depth, or the identity at rate 0."""
    return DropPath(rate) if rate > 0.0 else nn.Identity()


def conv_norm(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 1,
    stride: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    """Convolution with "same" padding and bias, then batch norm, for the backbone."""
    return nn.Sequential(
        nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups
        ),
        nn.BatchNorm2d(out_channels),
    )


class ConvNormAct(nn.Module):
    """1x1 convolution without bias, batch norm and optional ReLU, for the head.

    Published checkpoints name its parameters `conv` and `bn`.  Initialization: Kaiming normal over
    the fan-out, as published.
    """

    def __init__(
        self, in_channels: int, out_channels: int, groups: int = 1, relu: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.activation = nn.ReLU(inplace=True) if relu else nn.Identity()
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H, W)."""
        return self.activation(self.bn(self.conv(x)))
