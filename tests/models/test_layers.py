"""Batch norm, GELU and convolution with inputs that the backward pass computes again."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cgrseg.models.layers import norm_gelu_conv, scaled_norm


def layers(groups: int, stride: int) -> tuple[nn.BatchNorm2d, nn.Conv2d]:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(12)
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    nn.init.normal_(norm.bias)
    return norm, nn.Conv2d(12, 12, 3, stride, padding=1, groups=groups)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(("groups", "stride"), [(1, 2), (12, 1)])
def test_values_and_gradients_are_those_of_the_layers(
    groups: int, stride: int, first: bool, channels_last: bool, bf16: bool
) -> None:
    ours = (*layers(groups, stride), nn.Conv2d(12, 12, 1))
    plain = copy.deepcopy(ours)
    dtype = torch.bfloat16 if bf16 else torch.float32
    x = torch.randn(2, 12, 9, 14).mul(3).add(1).to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x, copied = x.clone().requires_grad_(), x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        found = norm_gelu_conv(x, ours[0], ours[1], ours[2] if first else None)
        inner = plain[2](copied) if first else copied
        wanted = plain[1](F.gelu(plain[0](inner)))
    assert found.dtype == wanted.dtype == dtype
    assert torch.equal(found, wanted)
    sent = torch.randn_like(found)
    found.backward(sent)
    wanted.backward(sent)
    limit = 2e-2 if bf16 else 2e-6
    pairs = [(x, copied)]
    used = 3 if first else 2
    for mine, theirs in zip(ours[:used], plain[:used], strict=True):
        pairs += zip(mine.parameters(), theirs.parameters(), strict=True)
    for one, other in pairs:
        assert one.grad is not None and other.grad is not None
        assert one.grad.dtype == other.grad.dtype
        distance = (one.grad - other.grad).float().norm()
        # A bias before a batch norm has a gradient of 0, but for rounding.
        assert float(distance / other.grad.float().norm().clamp(min=1.0)) < limit
    for name, value in plain[0].state_dict().items():
        assert torch.equal(ours[0].state_dict()[name], value), name


def kept_maps(run: Callable[[], object], size: int) -> int:
    """Number of maps of a size that autograd keeps."""
    kept: list[int] = []

    def note(value: Tensor) -> Tensor:
        kept.append(value.numel() if value.ndim == 4 and value.shape[0] == 2 else 0)
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        run()
    return sum(kept) // size


def test_one_large_map_is_kept_instead_of_three() -> None:
    norm, conv = layers(12, 1)
    first, scale = nn.Conv2d(12, 12, 1), torch.ones(12, 1, 1, requires_grad=True)
    x = torch.randn(2, 12, 8, 8, requires_grad=True)
    assert kept_maps(lambda: norm_gelu_conv(x, norm, conv), x.numel()) == 1
    assert kept_maps(lambda: norm_gelu_conv(x, norm, conv, first), x.numel()) == 1
    assert kept_maps(lambda: conv(F.gelu(norm(x))), x.numel()) == 3
    assert kept_maps(lambda: scaled_norm(x, norm, scale), x.numel()) == 1
    assert kept_maps(lambda: scale * norm(x), x.numel()) == 2


@pytest.mark.parametrize("size", [1.0, 1e-5])
def test_a_scaled_norm_is_the_product(size: float) -> None:
    ours = layers(1, 1)[0]
    plain = copy.deepcopy(ours)
    x = torch.randn(2, 12, 9, 14).mul(3).add(1)
    scales = [torch.linspace(-size, size, 12)[:, None, None].requires_grad_() for _ in range(2)]
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    found = scaled_norm(inputs[0], ours, scales[0])
    wanted = scales[1] * plain(inputs[1])
    torch.testing.assert_close(found, wanted, rtol=2e-6, atol=2e-6 * size)
    sent = torch.randn_like(found)
    found.backward(sent)
    wanted.backward(sent)
    pairs = [inputs, scales, *zip(ours.parameters(), plain.parameters(), strict=True)]
    for one, other in pairs:
        assert one.grad is not None and other.grad is not None
        assert float((one.grad - other.grad).norm() / other.grad.norm()) < 2e-6
    for name, value in plain.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_frozen_parts_get_no_gradient() -> None:
    norm, conv = layers(1, 1)
    norm.requires_grad_(False)
    conv.weight.requires_grad_(False)
    x = torch.randn(2, 12, 8, 8)
    norm_gelu_conv(x, norm, conv).sum().backward()
    assert conv.bias is not None and conv.bias.grad is not None
    assert norm.weight.grad is None and conv.weight.grad is None
    norm.eval()  # stored statistics: the ordinary layers
    torch.testing.assert_close(norm_gelu_conv(x, norm, conv), conv(F.gelu(norm(x))))
