"""Counted parameters and operations, against published figures and by hand."""

from __future__ import annotations

import pytest

from cgrseg.models import create_model
from cgrseg.reporting.cost import model_cost
from cgrseg.variants import VARIANTS


@pytest.mark.parametrize(
    ("name", "blocks", "millions"),
    [("cgrseg_t", 5, 9.36), ("cgrseg_b", 5, 18.11), ("cgrseg_b", 6, 19.11), ("cgrseg_l", 5, 35.68)],
)
def test_parameters(name: str, blocks: int, millions: float) -> None:
    model = create_model(name, context_blocks=blocks)
    cost = model_cost(model)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert round(cost.parameters / 1e6, 2) == millions


def test_parameters_of_a_geometric_bias_are_counted() -> None:
    model = create_model("cgrseg_t", attention_bias="geometric")
    counted = model_cost(model).parameters
    assert counted == sum(p.numel() for p in model.parameters())
    # Its tables hold fewer offsets than the published ones.
    assert counted < model_cost(create_model("cgrseg_t")).parameters


@pytest.mark.parametrize("name", [n for n, v in VARIANTS.items() if v.published_cost])
def test_operations_agree_with_the_published_table(name: str) -> None:
    cost = model_cost(create_model(name))
    published = (VARIANTS[name].published_cost or (0, 0))[1]
    assert abs(cost.published_macs / 1e9 / published - 1) < 0.03
    assert cost.all_macs > cost.published_macs


def test_parts_counted_by_hand() -> None:
    cost = model_cost(create_model("cgrseg_t", 7), (256, 384))
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
