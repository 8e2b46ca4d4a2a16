"""Batch norm, GELU and convolution with inputs that the backward pass computes again."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cgrseg.models.layers import norm_gelu_conv


def layers(groups: int, stride: int) -> tuple[nn.BatchNorm2d, nn.Conv2d]:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(12)
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    nn.init.normal_(norm.bias)
    return norm, nn.Conv2d(12, 12, 3, stride, padding=1, groups=groups)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("groups", "stride"), [(1, 2), (12, 1)])
def test_values_and_gradients_are_those_of_the_three_layers(
    groups: int, stride: int, channels_last: bool, bf16: bool
) -> None:
    ours = layers(groups, stride)
    plain = copy.deepcopy(ours)
    dtype = torch.bfloat16 if bf16 else torch.float32
    x = torch.randn(2, 12, 9, 14).mul(3).add(1).to(dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x, copied = x.clone().requires_grad_(), x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        found = norm_gelu_conv(x, *ours)
        wanted = plain[1](F.gelu(plain[0](copied)))
    assert found.dtype == wanted.dtype == dtype
    assert torch.equal(found, wanted)
    sent = torch.randn_like(found)
    found.backward(sent)
    wanted.backward(sent)
    limit = 2e-2 if bf16 else 2e-6
    pairs = [(x, copied), *zip(ours[0].parameters(), plain[0].parameters(), strict=True)]
    pairs += zip(ours[1].parameters(), plain[1].parameters(), strict=True)
    for one, other in pairs:
        assert one.grad is not None and other.grad is not None
        assert one.grad.dtype == other.grad.dtype
        distance = (one.grad - other.grad).float().norm() / other.grad.float().norm()
        assert float(distance) < limit
    for name, value in plain[0].state_dict().items():
        assert torch.equal(ours[0].state_dict()[name], value), name


def test_one_large_map_is_kept_instead_of_three() -> None:
    kept: list[int] = []

    def note(value: Tensor) -> Tensor:
        kept.append(value.numel() if value.ndim == 4 and value.shape[0] == 2 else 0)
        return value

    norm, conv = layers(12, 1)
    x = torch.randn(2, 12, 8, 8, requires_grad=True)
    counts = []
    for run in (norm_gelu_conv, lambda x, norm, conv: conv(F.gelu(norm(x)))):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
            run(x, norm, conv)
        counts.append(sum(kept) // x.numel())
    assert counts == [1, 3]


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
