"""Computed parameters and operations, against the network itself, published figures and by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cgrseg.models import CGRSeg, create_model
from cgrseg.reporting.cost import ModelCost, network_cost
from cgrseg.variants import VARIANTS, variant_sizes

MODULES = {
    "stem": "backbone.patch_embed",
    "stage 1 (stride 4)": "backbone.network.0",
    "downsampling to stride 8": "backbone.network.1",
    "stage 2 (stride 8)": "backbone.network.2",
    "downsampling to stride 16": "backbone.network.3",
    "stage 3 (stride 16)": "backbone.network.4",
    "downsampling to stride 32": "backbone.network.5",
    "stage 4 (stride 32)": "backbone.network.6",
    "pyramid context": "decode_head.trans",
    "calibration per scale": "decode_head.meta",
    "fusion per scale": "decode_head.SIM",
    "projections between scales": "decode_head.conv",
    "prototype guide": "decode_head.lgc",
    "fusion before the classifier": "decode_head.linear_fuse",
    "classifier": "decode_head.conv_seg",
}


def cost_of(model: CGRSeg, size: tuple[int, int] = (512, 512)) -> ModelCost:
    return network_cost(
        model.variant,
        model.num_classes,
        size,
        context_blocks=model.context_blocks,
        channels=model.decode_head.conv_seg.in_channels,
        attention_bias=model.backbone.attention_bias,
        in_channels=model.in_channels,
    )


def counted(model: CGRSeg, size: tuple[int, int]) -> dict[str, tuple[int, int, int]]:
    """Parameters and operations per part, counted while the network runs without arithmetic."""
    with torch.device("meta"):
        twin = CGRSeg(**model.options()).eval()
        image = torch.empty(1, model.in_channels, *size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(image)
    counts: dict[str, Any] = {
        name.removeprefix("CGRSeg.").removeprefix("CGRSeg"): (
            sum(v for op, v in operations.items() if "convolution" in str(op)) // 2,
            sum(operations.values()) // 2,
        )
        for name, operations in counter.get_flop_counts().items()
    }

    def belongs(name: str, prefix: str) -> bool:
        # A list of modules is never called itself: its direct members stand for it.
        member = name.startswith(prefix + ".") and "." not in name[len(prefix) + 1 :]
        return name == prefix or (prefix not in counts and member)

    parts = {}
    for part, prefix in MODULES.items():
        found = [values for name, values in counts.items() if belongs(name, prefix)]
        convolution, both = (sum(each[i] for each in found) for i in (0, 1))
        own = (p.numel() for n, p in twin.named_parameters() if n.startswith(prefix + "."))
        parts[part] = (sum(own), convolution, both - convolution)
    rest = counts["Global"][1] - sum(part[1] + part[2] for part in parts.values())
    return {**parts, "class centres": (0, 0, rest)}  # a function, not a module


@pytest.mark.parametrize(
    ("name", "classes", "size", "options"),
    [
        *((name, 150, (512, 512), {}) for name in VARIANTS),
        ("cgrseg_t", 7, (96, 160), {"context_blocks": 2, "attention_bias": "geometric"}),
        ("cgrseg_b", 19, (256, 1024), {"context_blocks": 6}),
        ("cgrseg_t", 1, (32, 32), {"channels": 64}),
        ("cgrseg_t", 3, (64, 32), {"in_channels": 5, "context_blocks": 1}),
    ],
)
def test_every_part_is_what_the_network_itself_does(
    name: str, classes: int, size: tuple[int, int], options: dict[str, Any]
) -> None:
    model = create_model(name, classes, **options)
    cost = network_cost(name, classes, size, **options)
    own = {p.name: (p.parameters, p.convolution_macs, p.product_macs) for p in cost.parts}
    assert own == counted(model, size)
    assert cost.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "blocks", "millions"),
    [("cgrseg_t", 5, 9.36), ("cgrseg_b", 5, 18.11), ("cgrseg_b", 6, 19.11), ("cgrseg_l", 5, 35.68)],
)
def test_parameters(name: str, blocks: int, millions: float) -> None:
    model = create_model(name, context_blocks=blocks)
    cost = cost_of(model)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert round(cost.parameters / 1e6, 2) == millions


def test_parameters_of_a_geometric_bias_are_counted() -> None:
    model = create_model("cgrseg_t", attention_bias="geometric")
    found = cost_of(model).parameters
    assert found == sum(p.numel() for p in model.parameters())
    # Its tables hold fewer offsets than the published ones.
    assert found < cost_of(create_model("cgrseg_t")).parameters


def test_ssa_head_costs_what_the_network_does() -> None:
    cost = network_cost("cgrseg_t", 7, (64, 96), head="ssa")
    with torch.device("meta"):
        model = create_model("cgrseg_t", 7, head="ssa").eval()
        image = torch.empty(1, 3, 64, 96)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    counts = counter.get_flop_counts()["Global"]
    convolutions = sum(v for op, v in counts.items() if "convolution" in str(op)) // 2
    assert (cost.published_macs, cost.all_macs) == (convolutions, sum(counts.values()) // 2)
    sizes = {name: value.numel() for name, value in model.named_parameters()}
    assert cost.parameters == sum(sizes.values())
    guided = sum(size for name, size in sizes.items() if ".gt_" in name)
    assert cost.inference_parameters == cost.parameters - guided


@pytest.mark.parametrize("name", ["cgrseg_b", "cgrseg_l"])
def test_ssa_head_costs_what_was_published(name: str) -> None:
    cost, published = network_cost(name, head="ssa"), variant_sizes(name, "ssa").published_cost
    assert published == {"cgrseg_b": (19.3, 7.6), "cgrseg_l": (35.8, 14.8)}[name]
    assert cost.inference_parameters / 1e6 == pytest.approx(published[0], rel=0.003)
    assert cost.parameters / 1e6 == pytest.approx(published[0], rel=0.03)
    assert cost.published_macs / 1e9 == pytest.approx(published[1], rel=0.03)


@pytest.mark.parametrize("name", [n for n, v in VARIANTS.items() if v.published_cost])
def test_operations_agree_with_the_published_table(name: str) -> None:
    cost = network_cost(name)
    published = (VARIANTS[name].published_cost or (0, 0))[1]
    assert abs(cost.published_macs / 1e9 / published - 1) < 0.03
    assert cost.all_macs > cost.published_macs


def test_parts_counted_by_hand() -> None:
    cost = network_cost("cgrseg_t", 7, (256, 384))
    parts = {part.name: part for part in cost.parts}
    cells = 32 * 48  # at stride 8
    assert parts["classifier"].convolution_macs == 2 * cells * 128 * 7
    assert parts["classifier"].parameters == 128 * 7 + 7
    assert parts["class centres"].product_macs == cells * 128 * 7
    stem = 128 * 192 * 16 * 27 + 64 * 96 * 32 * 16 * 9
    assert parts["stem"].convolution_macs == stem
    # One attention in each of two blocks: queries x keys, then weights x values.
    keys = (256 // 32) * (384 // 32)
    per_block = 8 * keys * keys * (32 + 128)
    assert parts["stage 4 (stride 32)"].product_macs == 2 * per_block


def test_size_that_the_network_does_not_take_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        network_cost("cgrseg_t", size=(500, 512))
