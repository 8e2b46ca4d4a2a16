"""Folding of batch norms and layer scales into convolutions, exactly.

In eval mode both are a scale and a shift per channel.  The neighboring convolution absorbs
them in float64, so that the only rounding is the final one to float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class FoldedConv:
    """Weights and geometry of a convolution, O outputs from I inputs.

    Attributes:
        weight: (O, I / groups, kernel height, kernel width), float64 as soon as it is changed.
        bias: float64 (O,).
        stride: stride along both axes.
        padding: zeros added on each side, (rows, columns).
        groups: number of channel groups.
    """

    weight: Tensor
    bias: Tensor
    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int

    @classmethod
    def of(cls, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None) -> FoldedConv:
        """A convolution with the batch norm (eval mode) that follows it folded in."""
        weight, bias = conv.weight.detach(), conv.bias
        zeros = weight.new_zeros(len(weight), dtype=torch.float64)
        folded = cls(
            weight,
            zeros if bias is None else bias.detach().double(),
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
        """A sequence (convolution, batch norm), folded."""
        conv, norm = cast(nn.Sequential, pair)
        return cls.of(cast(nn.Conv2d, conv), cast(nn.BatchNorm2d, norm))

    def scaled(self, factors: Tensor | float) -> FoldedConv:
        """The convolution with scaled output channels; factors: a number or (O,)."""
        by = torch.as_tensor(factors, dtype=torch.float64).detach().double().flatten()
        by = by.to(self.weight.device)
        return replace(self, weight=self.weight * by[:, None, None, None], bias=self.bias * by)

    def after_norm(self, norm: nn.BatchNorm2d) -> FoldedConv:
        """The convolution with the batch norm that precedes it folded in.

        Exact only without zero padding between the two: a 1x1 kernel.

        Raises:
            ValueError: a convolution with padding or groups.
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
        """A depthwise convolution plus its own input at the kernel's center."""
        weight = self.weight.to(torch.float64, copy=True)
        rows, columns = weight.shape[2] // 2, weight.shape[3] // 2
        weight[:, 0, rows, columns] += 1.0
        return replace(self, weight=weight)

    def beside(self, *others: FoldedConv) -> FoldedConv:
        """One convolution with the outputs of all, one after another.

        Raises:
            ValueError: convolutions of different geometry.
        """
        convolutions = (self, *others)
        forms = {(c.weight.shape[1:], c.stride, c.padding, c.groups) for c in convolutions}
        if len(forms) > 1 or self.groups != 1:
            raise ValueError(
                f"merging convolutions: got {sorted(map(str, forms))}, expected equal inputs, "
                "kernels, strides and paddings and 1 group"
            )
        return replace(
            self,
            weight=torch.cat([c.weight for c in convolutions]),
            bias=torch.cat([c.bias for c in convolutions]),
        )

    def module(self) -> nn.Conv2d:
        """A float32 module without gradients, channels-last."""
        outputs, inputs, rows, columns = self.weight.shape
        conv = nn.Conv2d(
            inputs * self.groups,
            outputs,
            (rows, columns),
            stride=self.stride,
            padding=self.padding,
            groups=self.groups,
            device="meta",  # no memory and no random numbers for weights that are replaced
        )
        weight = self.weight.to(torch.float32, memory_format=torch.channels_last, copy=True)
        conv.weight = nn.Parameter(weight, requires_grad=False)
        conv.bias = nn.Parameter(self.bias.float(), requires_grad=False)
        return conv


def norm_as_affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift, float64 (C,), that a batch norm applies in eval mode.

    Raises:
        ValueError: a norm without stored statistics.
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
