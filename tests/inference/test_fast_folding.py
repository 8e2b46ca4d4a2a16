"""Algebra on convolutions: hand-computed numbers, and equality with the layers it replaces."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cgrseg.inference.fast.folding import FoldedConv, norm_as_affine
from cgrseg.inference.fast.network import (
    FastAdaptation,
    FastCalibration,
    FastGuide,
    pool_pyramid,
)
from cgrseg.models import pyramid
from cgrseg.models.dpg_head import DynamicPrototypeGuide, class_centers
from cgrseg.models.layers import ConvNormAct, conv_norm
from cgrseg.models.rcm import RectangularSelfCalibrationModule
from cgrseg.models.ssa_head import SSAHead
from cgrseg.variants import VARIANTS


def disturb(module: nn.Module, seed: int) -> None:
    """Random weights and statistics, so that nothing is hidden by a zero or a one."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.copy_(0.5 + torch.rand(value.shape, generator=draws))
        for parameter in module.parameters():
            parameter.sub_(0.9)


def norm_of(mean: float, var: float, weight: float, bias: float) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(1, eps=0.0).eval()
    with torch.no_grad():
        norm.running_mean.fill_(mean)
        norm.running_var.fill_(var)
        norm.weight.fill_(weight)
        norm.bias.fill_(bias)
    return norm


def conv_of(weight: float, bias: float, padding: int = 0) -> nn.Conv2d:
    conv = nn.Conv2d(1, 1, 1 + 2 * padding, padding=padding)
    with torch.no_grad():
        conv.weight.fill_(weight)
        conv.bias.fill_(bias)
    return conv


def test_norm_after_a_convolution_by_hand() -> None:
    # ((2 x + 1) - 3) / 2 * 5 + 7 = 5 x + 2
    folded = FoldedConv.of(conv_of(2, 1), norm_of(mean=3, var=4, weight=5, bias=7))
    assert folded.weight.item() == 5
    assert folded.bias.item() == 2


def test_norm_before_a_convolution_by_hand() -> None:
    # 2 ((x - 3) / 2 * 5 + 7) + 1 = 5 x
    folded = FoldedConv.of(conv_of(2, 1)).after_norm(norm_of(mean=3, var=4, weight=5, bias=7))
    assert folded.weight.item() == 5
    assert folded.bias.item() == 0


def test_scale_by_hand() -> None:
    folded = FoldedConv.of(conv_of(2, 1)).scaled(-3.0)
    assert (folded.weight.item(), folded.bias.item()) == (-6, -3)


def test_norm_before_a_padding_convolution_is_refused() -> None:
    # Zeros of the padding come after the norm: its shift does not reach them.
    with pytest.raises(ValueError, match="expected no padding"):
        FoldedConv.of(conv_of(2, 1, padding=1)).after_norm(norm_of(1, 1, 1, 1))


def test_norm_without_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match="no stored statistics"):
        norm_as_affine(nn.BatchNorm2d(4, track_running_stats=False))


def test_unlike_convolutions_are_not_merged() -> None:
    with pytest.raises(ValueError, match="expected equal inputs"):
        FoldedConv.of(nn.Conv2d(4, 2, 1)).beside(FoldedConv.of(nn.Conv2d(4, 2, 1, stride=2)))


def test_merged_convolutions_give_both_results() -> None:
    first, second = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 3, 1)
    x = torch.randn(2, 4, 5, 6)
    joint = FoldedConv.of(first).beside(FoldedConv.of(second)).module()(x)
    torch.testing.assert_close(joint, torch.cat([first(x), second(x)], dim=1))


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 1)])
def test_subsample_within_a_depthwise_kernel(size: tuple[int, int]) -> None:
    local = nn.Conv2d(4, 4, 3, 2, padding=1, groups=4)
    x = torch.randn(1, 4, *size)
    expected = local(x) + x[:, :, ::2, ::2]
    torch.testing.assert_close(FoldedConv.of(local).plus_subsample().module()(x), expected)


def test_pair_with_stride_and_groups() -> None:
    pair = conv_norm(6, 6, 3, 2, groups=6).eval()
    disturb(pair, 0)
    x = torch.randn(2, 6, 9, 8)
    torch.testing.assert_close(FoldedConv.of_pair(pair).module()(x), pair(x))


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 14),
    width=st.integers(1, 14),
    strip=st.sampled_from([3, 9, 11]),
    seed=st.integers(0, 1000),
)
def test_calibration_equals_the_module(height: int, width: int, strip: int, seed: int) -> None:
    """Also where the strip is longer than the map, so that some taps never meet it."""
    module = RectangularSelfCalibrationModule(3, strip).double().eval()
    disturb(module, seed)
    fast = FastCalibration(module).double()
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed)).double()
    # The folded numbers are float32.
    torch.testing.assert_close(fast(x), module(x), rtol=2e-6, atol=2e-6)


@settings(max_examples=25, deadline=None)
@given(
    images=st.integers(1, 3),
    classes=st.integers(1, 9),
    cells=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 1000),
)
def test_guide_without_class_centers(
    images: int, classes: int, cells: tuple[int, int], seed: int
) -> None:
    width = 8
    fuse = ConvNormAct(width, width, groups=width, relu=True).eval()
    classify = nn.Conv2d(width, classes, 1)
    guide = DynamicPrototypeGuide(width).eval()
    for number, module in enumerate((fuse, classify, guide)):
        disturb(module, seed + number)
    features = torch.randn(images, width, *cells, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        centres = class_centers(features, classify(fuse(features)))
        expected = classify(guide(features, centres) + features)
        found = FastGuide(fuse, classify, guide)(features)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


@settings(max_examples=25, deadline=None)
@given(
    images=st.integers(1, 3),
    classes=st.integers(1, 9),
    cells=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 1000),
)
def test_adaptation_with_its_projections_merged(
    images: int, classes: int, cells: tuple[int, int], seed: int
) -> None:
    sizes = replace(VARIANTS["cgrseg_t"], channels=8, context_blocks=1)
    draws = torch.Generator().manual_seed(seed)
    head = SSAHead(sizes, (4, 4, 4), classes, 0.1).eval()
    disturb(head, seed)
    fused = torch.randn(images, 8, *cells, generator=draws)
    head.reconstruct = lambda features: features  # type: ignore[assignment, method-assign, return-value]
    with torch.no_grad():
        expected, _ = head(fused)
        fast = FastAdaptation(head)
        torch.testing.assert_close(fast(fused), expected, rtol=2e-5, atol=1e-4)
        kept = fast.project
        assert torch.equal(fast.half().float().project, kept)


@pytest.mark.parametrize("smallest", [(2, 2), (3, 2), (5, 7), (1, 1)])
def test_pyramid_of_even_and_odd_maps(smallest: tuple[int, int]) -> None:
    height, width = smallest
    maps = [torch.randn(2, 3, height * f, width * f) for f in (4, 2, 1)]
    torch.testing.assert_close(pool_pyramid(maps), pyramid.pool_pyramid(maps))


def test_upsampling_commutes_with_a_convolution_of_one_cell() -> None:
    """What the head relies on when it projects before it upsamples."""
    conv = nn.Conv2d(4, 3, 1)
    x = torch.randn(1, 4, 5, 6)

    def up(maps: torch.Tensor) -> torch.Tensor:
        return F.interpolate(maps, size=(10, 12), mode="bilinear", align_corners=False)

    torch.testing.assert_close(up(conv(x)), conv(up(x)))
