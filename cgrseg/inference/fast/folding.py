"""Exact algebra on convolutions: what follows or precedes one becomes part of its numbers.

In eval mode a batch norm is a scale and a shift per channel, as are layer scales.  Both
are absorbed by the convolution beside them, in float64, so that the only rounding is the
final one to float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class FoldedConv:
    """A convolution as numbers, O outputs from I inputs.

    Attributes:
        weight: float64 (O, I / groups, kernel height, kernel width).
        bias: float64 (O,).
        stride: of both axes.
        padding: zeros added on each side, (rows, columns).
        groups: of channels.
    """

    weight: Tensor
    bias: Tensor
    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int

    @classmethod
    def of(cls, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None) -> FoldedConv:
        """A convolution, and the batch norm (eval mode) that follows it, as one."""
        weight = conv.weight.detach().double()
        bias = conv.bias
        folded = cls(
            weight,
            weight.new_zeros(len(weight)) if bias is None else bias.detach().double(),
            cast("tuple[int, int]", tuple(conv.stride)),
            cast("tuple[int, int]", tuple(conv.padding)),
            conv.groups,
        )
        if norm is None:
            return folded
        scale, shift = norm_as_affine(norm)
        scaled = folded.scaled(scale)
        return replace(scaled, bias=scaled.bias + shift)

    @classmethod
    def of_pair(cls, pair: nn.Module) -> FoldedConv:
        """The same for a sequence (convolution, batch norm)."""
        conv, norm = cast(nn.Sequential, pair)
        return cls.of(cast(nn.Conv2d, conv), cast(nn.BatchNorm2d, norm))

    def scaled(self, factors: Tensor | float) -> FoldedConv:
        """With every output channel multiplied; factors: a number or (O,)."""
        by = torch.as_tensor(factors, dtype=torch.float64).detach().double().flatten()
        by = by.to(self.weight.device)
        return replace(self, weight=self.weight * by[:, None, None, None], bias=self.bias * by)

    def after_norm(self, norm: nn.BatchNorm2d) -> FoldedConv:
        """With the batch norm that precedes it.

        Exact only where no zero padding comes between the two: a 1x1 kernel.

        Raises:
            ValueError: for a kernel that pads, or grouped channels.
        """
        if self.padding != (0, 0) or self.groups != 1:
            raise ValueError(
                f"folding a norm into the next convolution: got padding {self.padding} and "
                f"{self.groups} groups, expected no padding and 1 group"
            )
        scale, shift = norm_as_affine(norm)
        moved = (self.weight * shift[None, :, None, None]).sum((1, 2, 3))
        weight = self.weight * scale[None, :, None, None]
        return replace(self, weight=weight, bias=self.bias + moved)

    def plus_subsample(self) -> FoldedConv:
        """Depthwise, with its own input at the kernel's centre added to the result."""
        weight = self.weight.clone()
        rows, columns = weight.shape[2] // 2, weight.shape[3] // 2
        weight[:, 0, rows, columns] += 1.0
        return replace(self, weight=weight)

    def beside(self, *others: FoldedConv) -> FoldedConv:
        """One convolution whose outputs are those of all of them, one after another.

        Raises:
            ValueError: when they do not read their input alike.
        """
        together = (self, *others)
        forms = {(c.weight.shape[1:], c.stride, c.padding, c.groups) for c in together}
        if len(forms) > 1 or self.groups != 1:
            raise ValueError(
                f"merging convolutions: got {sorted(map(str, forms))}, expected equal inputs, "
                "kernels, strides and paddings and 1 group"
            )
        return replace(
            self,
            weight=torch.cat([c.weight for c in together]),
            bias=torch.cat([c.bias for c in together]),
        )

    def module(self, dtype: torch.dtype = torch.float32) -> nn.Conv2d:
        """As a module that needs no gradient."""
        outputs, inputs = self.weight.shape[:2]
        kernel = (self.weight.shape[2], self.weight.shape[3])
        with torch.device(self.weight.device):
            conv = nn.utils.skip_init(
                nn.Conv2d,
                inputs * self.groups,
                outputs,
                kernel,
                stride=self.stride,
                padding=self.padding,
                groups=self.groups,
                dtype=dtype,
            )
        with torch.no_grad():
            conv.weight.copy_(self.weight)
            conv.bias.copy_(self.bias)
        return conv.requires_grad_(False)


def norm_as_affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift, float64 (C,), that a batch norm applies in eval mode.

    Raises:
        ValueError: for a norm without stored statistics.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("batch norm: got no stored statistics, expected a trained network")
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return scale, shift
