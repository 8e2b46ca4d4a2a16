"""Attention over large maps, a few queries at a time: the same result in bounded memory.

Each query's softmax is over all keys and knows nothing of other queries, so that
attention can be computed for some queries after the others.  The map of weights then never
exists as a whole: at 3584x1792 pixels (2048x1024 at ratio 1.75) it would take 5 GB, and
its resized biases (:mod:`cgrseg.models.attention_bias`) as much again.

Legend: N images, A heads, Q queries, K keys, R rows of the biases before resizing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from cgrseg.models.layers import is_recorded

PART_BYTES = {"cpu": 1 << 23, "cuda": 1 << 28}
"""Most that the weights of the queries of one part take, in float32, by type of device.

Small parts stay in a CPU's caches, and in memory that the allocator keeps; on a GPU few
large launches are better.
"""

_SHARPNESS = -0.75  # of PyTorch's bicubic kernel


def query_parts(
    images: int, heads: int, queries: int, keys: int, device: str = "cpu"
) -> list[tuple[int, int]]:
    """Ranges of queries whose weights are small enough; one range where all of them are."""
    most = PART_BYTES.get(device, PART_BYTES["cpu"])
    step = max(1, most // (4 * images * heads * keys))
    return [(start, min(start + step, queries)) for start in range(0, queries, step)]


def in_parts(training: bool) -> bool:
    """Whether attention may be computed in parts here.

    Not where gradients need the weights anyway, nor in a graph (compiled or exported),
    whose operations should not depend on a limit of memory.
    """
    return not (training or torch.is_grad_enabled() or is_recorded())


def resized_bias_parts(
    bias: Tensor, queries: int, keys: int, parts: list[tuple[int, int]]
) -> Iterator[Tensor]:
    """Bicubic resize of a matrix of biases, some rows at a time.

    Args:
        bias: (A, R, K0), before resizing.
        queries: rows wanted in all, Q.
        keys: columns wanted, K.
        parts: ranges of rows.

    Yields:
        (A, rows of the part, K), what `F.interpolate(mode="bicubic")` of the whole has in
        these rows, up to rounding.
    """
    rows = bias.shape[1]
    wide = bias.float()
    if bias.shape[2] != keys:
        wide = F.interpolate(wide[None], size=(rows, keys), mode="bicubic")[0]  # (A, R, K)
    for start, stop in parts:
        if rows == queries:
            yield wide[:, start:stop].to(bias.dtype)
            continue
        place = torch.arange(start, stop, dtype=torch.float32, device=bias.device)
        place = (place + 0.5) * (rows / queries) - 0.5
        first = place.floor()
        # Out of the four rows around each place; beyond the border its row counts again.
        neighbours = first.long()[:, None] + torch.arange(-1, 3, device=bias.device)
        neighbours = neighbours.clamp_(0, rows - 1)
        shares = _cubic_shares(place - first)  # (rows, 4)
        part = wide.index_select(1, neighbours[:, 0]).mul_(shares[:, 0, None])
        for tap in range(1, 4):
            part.addcmul_(wide.index_select(1, neighbours[:, tap]), shares[:, tap, None])
        yield part.to(bias.dtype)


def _cubic_shares(offset: Tensor) -> Tensor:
    """Shares (n, 4) of the rows at -1, 0, 1, 2 for places `offset` in 0..1 after row 0."""
    a = _SHARPNESS

    def near(x: Tensor) -> Tensor:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: Tensor) -> Tensor:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    return torch.stack([far(offset + 1), near(offset), near(1 - offset), far(2 - offset)], dim=1)
