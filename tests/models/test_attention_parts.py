"""Attention in parts is the attention of the whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cgrseg.models import attention_bias, attention_parts, create_model
from cgrseg.models.attention_parts import query_parts, resized_bias_parts
from cgrseg.models.efficientformer_v2 import Attention, AttentionDownsample
from tests.golden_weights import set_golden_weights

sides = st.integers(1, 40)


@settings(deadline=None, max_examples=60)
@given(rows=sides, columns=sides, queries=sides, keys=sides, step=st.integers(1, 40))
def test_rows_of_resized_biases_are_those_of_the_whole(
    rows: int, columns: int, queries: int, keys: int, step: int
) -> None:
    bias = torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(rows))
    whole = F.interpolate(bias[None], size=(queries, keys), mode="bicubic")[0]
    parts = [(start, min(start + step, queries)) for start in range(0, queries, step)]
    found = torch.cat(list(resized_bias_parts(bias, queries, keys, parts)), dim=1)
    torch.testing.assert_close(found, whole, rtol=0, atol=2e-5)


def test_parts_cover_all_queries_within_the_limit() -> None:
    # 8 heads x 25,088 keys x 4 bytes are 802,816 bytes a query: 10 of them in 8 MiB.
    parts = query_parts(1, 8, 6272, 25088)
    assert parts[0] == (0, 10) and parts[1][0] == 10 and parts[-1][1] == 6272
    assert sum(stop - start for start, stop in parts) == 6272
    assert query_parts(1, 8, 256, 256) == [(0, 256)]
    # Not even one query fits: still one at a time.
    assert query_parts(1, 8, 2, 1 << 30) == [(0, 1), (1, 2)]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    model = create_model("cgrseg_t", 7)
    set_golden_weights(model)
    return model.eval()


@pytest.mark.parametrize(("size", "kept"), [((96, 160), 0), ((544, 96), 0), ((96, 160), 1 << 20)])
def test_the_network_is_the_same_in_parts(
    size: tuple[int, int], kept: int, network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest: dict[type, int] = {}

    def watch(module: nn.Module, _: object, out: Tensor) -> None:
        name = type(module)
        largest[name] = max(largest.get(name, 0), out.numel())

    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    cells = (size[0] // 32) * (size[1] // 32)
    with torch.inference_mode():
        whole = network(image)
        monkeypatch.setitem(attention_parts.PART_BYTES, "cpu", 4 * 2 * 8 * cells * 8)
        monkeypatch.setattr(attention_bias, "_MAX_CACHED_BYTES", kept)
        hooks = [
            module.talking_head1.register_forward_hook(watch)
            for module in network.modules()
            if isinstance(module, Attention)
        ]
        parts = network(image)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4 * float(whole.abs().max()))
    # No map of weights is larger than asked for: 8 queries of the 15 and more.
    assert largest[nn.Conv2d] == 2 * 8 * 8 * cells


def test_gradients_go_the_usual_way(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention_parts.PART_BYTES, "cpu", 1)
    down = next(module for module in network.modules() if isinstance(module, AttentionDownsample))
    table = down.attention_biases_seg
    network(torch.randn(1, 3, 64, 64)).sum().backward()
    assert table.grad is not None and bool(table.grad.abs().sum() > 0)
    network.zero_grad()
