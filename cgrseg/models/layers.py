"""Building blocks shared by the backbone and the head."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def is_recorded() -> bool:
    """Whether operations are being recorded into a graph: compiled, exported or traced.

    A recorded graph must depend on its inputs alone, not on values cached by an earlier call.
    """
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return torch.compiler.is_compiling() or tracing


def recomputes(x: Tensor) -> bool:
    """Whether the backward pass computes large maps again that cost little, to save memory.

    On a CPU only, and not in float64, which is for checks against PyTorch's own operations.
    """
    eager = torch.is_grad_enabled() and not is_recorded()
    return eager and x.device.type == "cpu" and x.dtype != torch.float64


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


class _NormGeluConv(torch.autograd.Function):
    """Optional convolution, batch norm, GELU, convolution; only the input is kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm: nn.BatchNorm2d, gain: Tensor, shift: Tensor, conv: nn.Conv2d,
        weight: Tensor, bias: Tensor | None, first: nn.Conv2d | None, first_weight: Tensor | None,
        first_bias: Tensor | None,
    ) -> Tensor:  # fmt: skip
        inner = x if first is None else _convolve(x, first, first_weight, first_bias)
        normed, mean, scale = torch.native_batch_norm(
            inner, gain, shift, norm.running_mean, norm.running_var, True,
            cast(float, norm.momentum), norm.eps,
        )  # fmt: skip
        del inner
        ctx.save_for_backward(x, gain, shift, mean, scale, weight, first_weight, first_bias)
        ctx.norm, ctx.conv, ctx.first = norm, conv, first
        return _convolve(torch.ops.aten.gelu_(normed), conv, weight, bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, sent: Tensor) -> tuple[Tensor | None, ...]:
        aten = torch.ops.aten
        x, gain, shift, mean, scale, weight, first_weight, first_bias = ctx.saved_tensors
        by_x, _, by_gain, by_shift, _, by_weight, by_bias, _, *by_first = ctx.needs_input_grad
        first: nn.Conv2d | None = ctx.first
        inner = x if first is None else _convolve(x, first, first_weight, first_bias)
        # The same kernel as in the forward pass, with the statistics of the batch.
        normed = F.batch_norm(inner, mean, scale**-2, gain, shift, training=False, eps=0.0)
        sent, *of_conv = _convolution_backward(
            sent, F.gelu(normed), ctx.conv, weight, (True, by_weight, by_bias)
        )
        aten.gelu_backward.grad_input(sent, normed, approximate="none", grad_input=sent)
        del normed
        by_inner = by_x or any(by_first)
        dx, *of_norm = aten.native_batch_norm_backward(
            sent, inner, gain, None, None, mean, scale, True, ctx.norm.eps,
            (by_inner, by_gain, by_shift),
        )  # fmt: skip
        of_first: list[Tensor | None] = [None, None]
        if first is not None and by_inner:
            del sent, inner
            dx, *of_first = _convolution_backward(dx, x, first, first_weight, (by_x, *by_first))
        return dx, None, *of_norm, None, *of_conv, None, *of_first


def _convolve(x: Tensor, conv: nn.Conv2d, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    padding = cast(tuple[int, int], conv.padding)
    return F.conv2d(x, cast(Tensor, weight), bias, conv.stride, padding, conv.dilation, conv.groups)


def _convolution_backward(
    sent: Tensor, x: Tensor, conv: nn.Conv2d, weight: Tensor | None, wanted: tuple[bool, ...]
) -> Any:
    """Gradients by input, weight and bias, those that are wanted."""
    return torch.ops.aten.convolution_backward(
        sent, x, weight, [conv.out_channels], conv.stride, conv.padding, conv.dilation, False,
        (0, 0), conv.groups, wanted,
    )  # fmt: skip


def norm_gelu_conv(
    x: Tensor, norm: nn.BatchNorm2d, conv: nn.Conv2d, first: nn.Conv2d | None = None
) -> Tensor:
    """Apply batch norm, GELU and convolution; training on a CPU takes a third of the memory.

    Autograd keeps the inputs of all layers for the backward pass.  Here only `x` is kept, and
    the backward pass computes the others again.

    Args:
        x: (N, C, H, W).
        norm: batch norm over C channels.
        conv: convolution of C channels, zero padding.
        first: cheap convolution to C channels, zero padding, applied to `x` beforehand; None: none.

    Returns:
        (N, C', H', W'), equal to `conv(gelu(norm(first(x))))`; gradients are equal up to rounding.
    """
    if not (recomputes(x) and _trains(norm)):
        return cast(Tensor, conv(F.gelu(norm(x if first is None else first(x)))))
    parameters: list[Tensor | None] = [conv.weight, conv.bias]
    parameters += [None, None] if first is None else [first.weight, first.bias]
    if torch.is_autocast_enabled("cpu"):
        kind = torch.get_autocast_dtype("cpu")
        x = x.to(kind)
        parameters = [None if each is None else each.to(kind) for each in parameters]
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    with torch.autocast("cpu", enabled=False):
        return cast(
            Tensor,
            _NormGeluConv.apply(  # type: ignore[no-untyped-call]
                x, norm, norm.weight, norm.bias, conv, *parameters[:2], first, *parameters[2:]
            ),
        )


def _trains(norm: nn.BatchNorm2d) -> bool:
    """Whether a batch norm uses and records the statistics of this process's batch."""
    return type(norm) is nn.BatchNorm2d and norm.training


def scaled_norm(x: Tensor, norm: nn.BatchNorm2d, scale: Tensor) -> Tensor:
    """Apply batch norm and a scale per channel; training on a CPU does not keep the normed map.

    Args:
        x: (N, C, H, W).
        norm: batch norm over C channels.
        scale: (C, 1, 1).

    Returns:
        (N, C, H, W), `scale * norm(x)`; values and gradients are equal up to rounding.
    """
    # In half precision the product is float32, and stays so.
    if not (x.dtype == torch.float32 and recomputes(x) and _trains(norm)):
        return scale * norm(x)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    factor = scale.flatten()
    return F.batch_norm(
        x, norm.running_mean, norm.running_var, norm.weight * factor, norm.bias * factor, True,
        cast(float, norm.momentum), norm.eps,
    )  # fmt: skip


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
