"""Attention over large maps in bounded memory: a few queries at a time, with the same result.

The softmax of a query is over all keys and does not depend on other queries, so attention can be
computed part by part.  The full attention matrix is then never in memory: at 3584x1792 pixels
(2048x1024 at ratio 1.75) it would take 5 GB, and its resized biases
(:mod:`cgrseg.models.attention_bias`) another 5 GB.

Legend: N images, A heads, Q queries, K keys, R rows of the biases before resizing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from cgrseg.models.layers import is_recorded

PART_BYTES = {"cpu": 1 << 23, "cuda": 1 << 28}
"""Maximum size of the float32 attention weights of one part in bytes, by device type.

Small parts stay in the caches of a CPU and in memory that the allocator reuses.  A GPU is faster
with few large launches.
"""

_SHARPNESS = -0.75  # the coefficient a of PyTorch's bicubic kernel


def query_parts(
    images: int, heads: int, queries: int, keys: int, device: str = "cpu"
) -> list[tuple[int, int]]:
    """Ranges of queries whose attention weights fit into `PART_BYTES`."""
    most = PART_BYTES.get(device, PART_BYTES["cpu"])
    step = max(1, most // (4 * images * heads * keys))
    return [(start, min(start + step, queries)) for start in range(0, queries, step)]


def in_parts(training: bool) -> bool:
    """Whether attention may be computed in parts.

    False where gradients need all weights, and in a compiled or exported graph, whose operations
    must not depend on a memory limit.
    """
    return not (training or torch.is_grad_enabled() or is_recorded())


def resized_bias_parts(
    bias: Tensor, queries: int, keys: int, parts: list[tuple[int, int]]
) -> Iterator[Tensor]:
    """Bicubic resize of a bias matrix, some rows at a time.

    Args:
        bias: (A, R, K0), before resizing.
        queries: Q, number of rows after resizing.
        keys: K, number of columns after resizing.
        parts: ranges of rows.

    Yields:
        (A, rows of the part, K), equal to these rows of `F.interpolate(mode="bicubic")` of the
        whole matrix, up to rounding.
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
        # Weighted sum of the four rows around each place; the border row repeats beyond the border.
        neighbors = first.long()[:, None] + torch.arange(-1, 3, device=bias.device)
        neighbors = neighbors.clamp_(0, rows - 1)
        shares = _cubic_shares(place - first)  # (rows, 4)
        part = wide.index_select(1, neighbors[:, 0]).mul_(shares[:, 0, None])
        for tap in range(1, 4):
            part.addcmul_(wide.index_select(1, neighbors[:, tap]), shares[:, tap, None])
        yield part.to(bias.dtype)


def _cubic_shares(offset: Tensor) -> Tensor:
    """Bicubic weights (n, 4) of the rows -1, 0, 1, 2 at positions `offset` in 0..1 after row 0."""
    a = _SHARPNESS

    def near(x: Tensor) -> Tensor:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: Tensor) -> Tensor:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    return torch.stack([far(offset + 1), near(offset), near(1 - offset), far(2 - offset)], dim=1)
