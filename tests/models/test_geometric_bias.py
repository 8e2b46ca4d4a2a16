"""Geometry-true attention biases: true offsets at every size, kept and loaded like the others."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cgrseg.config import Config
from cgrseg.config.schema import ModelConfig
from cgrseg.datasets import get_spec
from cgrseg.errors import WeightsError
from cgrseg.inference.fast.network import fast_form
from cgrseg.models import CGRSeg, create_model, efficientformer_v2, load_model, load_weights
from cgrseg.models.attention_bias import AttentionBias, GeometricBias, offset_index, resized_offsets
from cgrseg.models.efficientformer_v2 import EfficientFormerV2
from cgrseg.training.module import build_model
from tests.golden_weights import set_golden_weights


def table_of(cells: int, heads: int = 2, seed: int = 0) -> nn.Parameter:
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter(torch.randn(heads, cells**2, generator=generator))


def test_a_table_of_two_by_hand() -> None:
    """Offsets 0 and 1 have 0 and 6 down, 0 and 12 across; three cells put 1/2 between them."""
    table = torch.tensor([[0.0, 12.0, 6.0, 18.0]])
    assert resized_offsets(table, 3, 3).tolist() == [
        [[0.0, 6.0, 12.0], [3.0, 9.0, 15.0], [6.0, 12.0, 18.0]]
    ]
    # The short side spans the table; the long side goes on at the same pace, then stays.
    assert resized_offsets(table, 3, 5)[0, 0].tolist() == [0.0, 6.0, 12.0, 12.0, 12.0]
    assert resized_offsets(table, 5, 3)[0, :, 0].tolist() == [0.0, 3.0, 6.0, 6.0, 6.0]
    assert resized_offsets(table, 1, 1).tolist() == [[[0.0]]]


def test_a_step_down_is_one_bias_here_and_many_in_the_published_form() -> None:
    """A map of 16x22 cells, and a table for one of 16x16."""
    table = table_of(16, heads=1)
    height, width = 16, 22
    cells = height * width
    published = AttentionBias()(table, offset_index(16), cells, cells, True)[0].detach()
    ours = GeometricBias()(table, height, width, True)[0].detach()
    queries = torch.arange(cells - width)
    assert ours[queries, queries + width].unique().tolist() == [table[0, 16].item()]
    assert published[queries, queries + width].std() > 0.2


@settings(deadline=None, max_examples=40)
@given(
    cells=st.integers(2, 8),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    stride=st.sampled_from([1, 2]),
    part=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_every_pair_has_the_bias_of_its_offset(
    cells: int, height: int, width: int, stride: int, part: tuple[float, float]
) -> None:
    table = table_of(cells)
    bias = GeometricBias(stride)
    whole = bias(table, height, width, True).detach()
    by_offset = resized_offsets(table, height, width).detach()
    places = [(y, x) for y in range(0, height, stride) for x in range(0, width, stride)]
    assert whole.shape == (2, len(places), height * width)
    for query, (qy, qx) in enumerate(places):
        for key in range(height * width):
            ky, kx = divmod(key, width)
            expected = by_offset[:, abs(qy - ky), abs(qx - kx)]
            assert torch.equal(whole[:, query, key], expected)
    start, stop = sorted(round(share * len(places)) for share in part)
    some = bias.some(table, height, width, (start, stop))
    assert torch.equal(some.detach(), whole[:, start:stop])


def test_own_size_gives_the_table_exactly() -> None:
    table = table_of(7)
    assert torch.equal(resized_offsets(table, 7, 7).flatten(1), table)
    assert torch.equal(resized_offsets(table, 7, 9)[:, :, :7].flatten(1), table)


def test_kept_in_eval_mode_and_never_stale() -> None:
    table = table_of(4)
    bias = GeometricBias()
    with torch.no_grad():
        first = bias(table, 5, 3, False)
        assert bias(table, 5, 3, False) is first
        other = bias(table, 3, 5, False)  # as many cells, another map
        assert not torch.equal(first, other)
        table.data[0, 1] += 1.0
        assert not torch.equal(bias(table, 5, 3, False), first)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(bias)))
    assert twin.query_stride == bias.query_stride and twin.cached_bytes == 0


def test_mixed_precision_does_not_round_it() -> None:
    table = table_of(7)
    expected = GeometricBias()(table, 16, 16, True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(GeometricBias()(table, 16, 16, True), expected)


def test_gradients_are_the_sums_over_pairs() -> None:
    table = table_of(2, heads=1)
    GeometricBias()(table, 2, 2, True).sum().backward()
    # Of 16 pairs, 4 have each of the offsets (0,0), (0,1), (1,0), (1,1).
    assert table.grad is not None and table.grad.tolist() == [[4.0, 4.0, 4.0, 4.0]]


@pytest.fixture(scope="module")
def geometric() -> CGRSeg:
    torch.manual_seed(0)
    model = create_model("cgrseg_t", 5, attention_bias="geometric")
    set_golden_weights(model)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("attention_biases"):
                value.normal_()
    return model.eval()


@torch.no_grad()
def test_in_parts_equals_at_once(geometric: CGRSeg, monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.randn(1, 3, 96, 160, generator=torch.Generator().manual_seed(1))
    expected = geometric(image)
    monkeypatch.setattr(
        efficientformer_v2,
        "query_parts",
        lambda images, heads, queries, *rest: [
            (q, min(q + 4, queries)) for q in range(0, queries, 4)
        ],
    )
    torch.testing.assert_close(geometric(image), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("size", [(96, 160), (160, 96)])
def test_fast_form_agrees(geometric: CGRSeg, size: tuple[int, int]) -> None:
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(2))
    fast = fast_form(geometric)
    fast.prepare(96, 160)
    fast.prepare(160, 96)
    expected = geometric(image)
    found = fast(image)
    assert float((found - expected).norm() / expected.norm()) < 1e-4


def test_checkpoints_tell_the_form_and_are_not_mixed_up(geometric: CGRSeg, tmp_path: Path) -> None:
    path = tmp_path / "geometric.pth"
    torch.save({"state_dict": geometric.state_dict(), "meta": {}}, path)
    loaded = load_model(path, verbose=False)
    assert loaded.backbone.attention_bias == "geometric"
    assert all(
        torch.equal(value, geometric.state_dict()[name])
        for name, value in loaded.state_dict().items()
    )
    assert geometric.options()["attention_bias"] == "geometric"  # what save_pretrained writes
    published = create_model("cgrseg_t", 5)
    with pytest.raises(WeightsError, match="geometric attention biases"):
        load_weights(published, path, verbose=False)
    other = tmp_path / "published.pth"
    torch.save({"state_dict": published.state_dict(), "meta": {}}, other)
    with pytest.raises(WeightsError, match=r"expected.*geometric attention biases"):
        load_weights(geometric, other, verbose=False)


def test_every_published_name_keeps_its_place_by_default() -> None:
    published = EfficientFormerV2("efficientformerv2_s0").state_dict()
    ours = EfficientFormerV2("efficientformerv2_s0", attention_bias="geometric").state_dict()
    gone = {name for name in published if name not in ours}
    assert gone and set(ours) < set(published)
    assert {name.rpartition(".")[2] for name in gone} == {
        "attention_biases_seg",
        "attention_bias_idxs_seg",
    }


def test_the_setting_reaches_the_network() -> None:
    config = Config(model=ModelConfig(attention_bias="geometric"))
    model = build_model(config, get_spec("camvid"))
    learned: list[Tensor] = [
        value for name, value in model.named_parameters() if name.endswith("attention_biases")
    ]
    assert [tuple(value.shape) for value in learned] == [(8, 49)] * 2 + [(8, 196)] + [(8, 49)] * 2


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match="attention_bias: got 'true'"):
        create_model("cgrseg_t", attention_bias="true")
