"""Resized attention biases: right at every size, and never those of another table."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.jit._trace import TracerWarning

from cgrseg.models import create_model
from cgrseg.models.attention_bias import AttentionBias, offset_index
from cgrseg.models.efficientformer_v2 import Attention, EfficientFormerV2
from tests.golden_weights import set_golden_weights
from tests.small_variant import small_variant


def brute_force_index(cells: int, query_stride: int) -> Tensor:
    """Offsets numbered in the order in which they are first met, pair by pair."""
    numbers: dict[tuple[int, int], int] = {}
    rows = []
    for qy in range(0, cells, query_stride):
        for qx in range(0, cells, query_stride):
            row = []
            for ky in range(cells):
                for kx in range(cells):
                    offset = (abs(qy - ky), abs(qx - kx))
                    row.append(numbers.setdefault(offset, len(numbers)))
            rows.append(row)
    return torch.tensor(rows)


@pytest.mark.parametrize(("cells", "stride"), [(3, 1), (4, 2), (7, 1), (14, 2)])
def test_offsets_are_numbered_as_first_met(cells: int, stride: int) -> None:
    assert torch.equal(offset_index(cells, stride), brute_force_index(cells, stride))


def layer() -> Attention:
    torch.manual_seed(0)
    attention = Attention(16, cells=4).eval()
    torch.nn.init.normal_(attention.attention_biases_seg)
    return attention


def fresh(attention: Attention, x: Tensor) -> Tensor:
    """What a copy that never ran in eval mode before says."""
    twin = Attention(16, cells=4)
    twin.load_state_dict(attention.state_dict())
    return twin.to(x.dtype).eval()(x)


SIZES = [(4, 4), (6, 4), (2, 8), (4, 4)]


def inputs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(1, 16, h, w, generator=generator).to(dtype) for h, w in SIZES]


@torch.no_grad()
def test_several_sizes_in_turn() -> None:
    attention = layer()
    for _ in range(2):
        for x in inputs():
            assert torch.equal(attention(x), fresh(attention, x))


@torch.no_grad()
def test_equals_bicubic_resize_of_the_whole_matrix() -> None:
    attention = layer()
    table, index = attention.attention_biases_seg, attention.attention_bias_idxs_seg
    expected = F.interpolate(table[:, index][None], size=(24, 24), mode="bicubic")[0]
    assert torch.equal(attention.bias(table, index, 24, 24, False), expected)
    assert torch.equal(attention.bias(table, index, 24, 24, True), expected)
    assert torch.equal(attention.bias(table, index, 16, 16, False), table[:, index])


def write_in_place(attention: Attention) -> None:
    attention.attention_biases_seg.add_(1.5)


def write_through_data(attention: Attention) -> None:
    # As averaged weights are swapped in by many tools; no version counter sees it.
    attention.attention_biases_seg.data.copy_(attention.attention_biases_seg.data * -2.0)


def write_one_value(attention: Attention) -> None:
    attention.attention_biases_seg.data[3, 5] += 4.0


def replace_data(attention: Attention) -> None:
    attention.attention_biases_seg.data = torch.randn_like(attention.attention_biases_seg)


def load(attention: Attention) -> None:
    state = {
        k: v + 1 if k == "attention_biases_seg" else v for k, v in attention.state_dict().items()
    }
    attention.load_state_dict(state)


def assign(attention: Attention) -> None:
    state = attention.state_dict()
    state["attention_biases_seg"] = torch.randn_like(state["attention_biases_seg"])
    attention.load_state_dict(state, assign=True)


def train_a_step(attention: Attention) -> None:
    with torch.enable_grad():
        optimizer = torch.optim.SGD(attention.parameters(), lr=10.0)
        attention.train()(inputs()[0]).square().mean().backward()
        optimizer.step()
    attention.eval()


CHANGES = [
    write_in_place,
    write_through_data,
    write_one_value,
    replace_data,
    load,
    assign,
    train_a_step,
]


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_never_stale(change) -> None:  # type: ignore[no-untyped-def]
    attention = layer()
    before = [attention(x) for x in inputs()]
    change(attention)
    for x, old in zip(inputs(), before, strict=True):
        new = attention(x)
        assert torch.equal(new, fresh(attention, x))
        assert not torch.equal(new, old)


@torch.no_grad()
def test_dtype_moves() -> None:
    attention = layer()
    attention(inputs()[1])
    attention.double()
    x = inputs(torch.float64)[1]
    assert attention(x).dtype == torch.float64
    torch.testing.assert_close(attention(x), fresh(attention, x))
    attention.float()
    x = inputs()[1]
    assert torch.equal(attention(x), fresh(attention, x))


@torch.no_grad()
def test_copies_have_a_cache_of_their_own() -> None:
    attention = layer()
    x = inputs()[1]
    old = attention(x)
    for twin in (copy.deepcopy(attention), pickle.loads(pickle.dumps(attention))):
        assert torch.equal(twin(x), old)
        write_through_data(twin)
        assert torch.equal(twin(x), fresh(twin, x))
        assert torch.equal(attention(x), old)


def test_gradients_reach_the_table_in_eval_mode() -> None:
    attention = layer()
    x = inputs()[1]
    with torch.no_grad():
        attention(x)  # fills the cache
    attention(x).square().sum().backward()
    gradient = attention.attention_biases_seg.grad
    assert gradient is not None and bool(gradient.any())


def test_cache_filled_in_inference_mode_serves_training_of_other_parts() -> None:
    attention = layer()
    attention.attention_biases_seg.requires_grad_(False)
    x = inputs()[1]
    with torch.inference_mode():
        attention(x)
    attention(x).square().sum().backward()
    assert attention.q[0].weight.grad is not None


@torch.no_grad()
def test_a_kept_bias_is_not_computed_again() -> None:
    attention = layer()
    x = inputs()[1]
    attention(x)
    table, index = attention.attention_biases_seg, attention.attention_bias_idxs_seg
    once = attention.bias(table, index, 24, 24, False)
    assert attention.bias(table, index, 24, 24, False) is once


def test_cache_is_no_part_of_the_state_and_stays_small() -> None:
    attention = layer()
    with torch.no_grad():
        for width in range(2, 400, 40):
            x = torch.randn(1, 16, 4, width)
            assert torch.equal(attention(x), fresh(attention, x))
            assert attention.bias.cached_bytes <= 24 * 1024 * 1024
    assert isinstance(attention.bias, AttentionBias)
    assert all("bias." not in name for name in attention.state_dict())


@pytest.mark.slow
@torch.no_grad()
def test_compiled_network_follows_the_table() -> None:
    attention = layer()
    compiled = torch.compile(attention, dynamic=False)
    for x in inputs()[:2]:
        torch.testing.assert_close(compiled(x), fresh(attention, x), rtol=1e-5, atol=1e-5)
        write_through_data(attention)
        torch.testing.assert_close(compiled(x), fresh(attention, x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_exported_program_equals_the_network_and_takes_new_tables() -> None:
    torch.manual_seed(0)
    backbone = EfficientFormerV2("efficientformerv2_s0").eval()
    for name, parameter in backbone.named_parameters():
        if name.endswith("attention_biases_seg"):
            torch.nn.init.normal_(parameter)
    x = torch.randn(1, 3, 64, 96)
    backbone(x)
    program = torch.export.export(backbone, (x,))
    for ours, theirs in zip(program.module()(x), backbone(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    state = backbone.state_dict()
    for name in state:
        if name.endswith(("attention_biases_seg", "layer_scale_1")):
            state[name] = torch.randn_like(state[name])
    module = program.module()
    module.load_state_dict(state)
    backbone.load_state_dict(state)
    for ours, theirs in zip(module(x), backbone(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_trace_as_the_first_use_equals_the_network() -> None:
    forms: list[tuple[str, Literal["error", "ignore"]]]
    forms = [("published", "error"), ("geometric", "ignore")]
    for form, quiet in forms:
        with small_variant() as name:
            model = create_model(name, num_classes=3, attention_bias=form).eval()
        set_golden_weights(model)
        example = torch.rand(1, 3, 64, 96)
        with warnings.catch_warnings():
            warnings.simplefilter(quiet, TracerWarning)
            traced = torch.jit.trace(model, example)
        other = torch.rand(1, 3, 64, 96)
        with torch.no_grad():
            torch.testing.assert_close(traced(other), model(other), rtol=1e-5, atol=1e-6)
