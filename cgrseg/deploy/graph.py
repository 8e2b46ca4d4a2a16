"""The network in the form that export formats hold: every table resolved, or resizable.

The start is :func:`cgrseg.inference.fast.fast_form`, whose norms and scales are folded.
Two things in it depend on the input's size and are written here for runtimes:

* Attention biases.  For one fixed size they are stored numbers.  For any size they are one
  bicubic resize of a stored table, which runtimes that fix the size at load time compute once.
* Adaptive pooling, which few runtimes have: plain average pooling where sizes divide
  evenly, else a product with a small matrix on either side.

Around it, what people want inside the file: normalisation of 8-bit pixels, and label maps.

Legend: N images, K classes, A heads, Q queries, K0 x Q0 cells of the stored table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cgrseg.data.color import MEAN, STD
from cgrseg.errors import ConfigError
from cgrseg.inference.exported import InputKind, OutputKind, Size
from cgrseg.inference.fast.backbone import FastAttention, FastDualPathDownsample, StoredBias
from cgrseg.inference.fast.network import FastNetwork, fast_form
from cgrseg.models import CGRSeg


class ResizedBias(nn.Module):
    """Attention biases for whatever size comes, as one bicubic resize.

    The mix of a talking head is linear over heads, so it is applied to the table beforehand.

    Args:
        source: the biases of one attention, not resized by true offsets.
    """

    table: Tensor

    def __init__(self, source: StoredBias) -> None:
        super().__init__()
        cells = round(source.table.shape[1] ** 0.5)
        queries = (-(-cells // source.query_stride)) ** 2
        table = source.compute(queries, cells**2, source.table)
        self.register_buffer("table", table.float()[None])  # (1, A, Q0, K0)

    def prepare(self, queries: int, keys: int, like: Tensor, width: int | None = None) -> None:
        """Nothing is kept per size: the network asks for this before it runs eagerly."""

    def forward(self, queries: int, keys: int, like: Tensor, width: int | None = None) -> Tensor:
        """Biases (A, Q, K)."""
        resized = F.interpolate(self.table, size=(queries, keys), mode="bicubic")[0]
        return resized.to(like.dtype)


class FixedPool(nn.Module):
    """Pyramid pooling of features whose sizes are known.

    Args:
        size: of the network's input, height and width in pixels.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.target = _pooled(size[0] // 32), _pooled(size[1] // 32)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """(N, C_i, H / s, W / s) to (N, sum of C_i, rows, columns)."""
        return torch.cat([self._one(feature) for feature in features], dim=1)

    def _one(self, feature: Tensor) -> Tensor:
        rows, columns = self.target
        height, width = feature.shape[2:]
        if height % rows == 0 and width % columns == 0:
            return F.avg_pool2d(feature, (height // rows, width // columns))
        down = averaging_matrix(height, rows, feature)
        across = averaging_matrix(width, columns, feature)
        return down @ feature @ across.T


class AnyPool(nn.Module):
    """Pyramid pooling of features of any size, as two matrix products per scale."""

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """(N, C_i, H / s, W / s) to (N, sum of C_i, rows, columns)."""
        height, width = features[-1].shape[2:]
        pooled = []
        for feature in features:
            down = averaging_matrix(feature.shape[2], _pooled(height), feature)
            across = averaging_matrix(feature.shape[3], _pooled(width), feature)
            pooled.append(down @ feature @ across.T)
        return torch.cat(pooled, dim=1)


def averaging_matrix(cells: int, target: int, like: Tensor) -> Tensor:
    """What adaptive average pooling does along one axis, as a matrix (target, cells)."""
    wanted = torch.arange(target, device=like.device)[:, None]
    first = wanted * cells // target
    behind = ((wanted + 1) * cells + target - 1) // target
    cell = torch.arange(cells, device=like.device)[None]
    inside = ((cell >= first) & (cell < behind)).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)


class ExportForm(nn.Module):
    """What is exported: optional normalisation, the network, optional label map.

    Args:
        model: trained; read, never changed.
        size: height and width of the input; None: any multiples of 32.
        takes: "normalised" float32 (N, 3, H, W), or "pixels" uint8 RGB (N, H, W, 3).
        gives: "logits" float32 (N, K, H / 8, W / 8), or "labels" (N, H, W), uint8 up to 256
            classes, else int32.
    """

    mean: Tensor
    factor: Tensor

    def __init__(
        self,
        model: CGRSeg,
        size: Size | None,
        takes: InputKind = "normalised",
        gives: OutputKind = "logits",
    ) -> None:
        super().__init__()
        self.takes = takes
        self.gives = gives
        self.num_classes = model.num_classes
        network = fast_form(model.cpu())
        # Runtimes choose their own memory layout; files hold the plain one.
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        if size is None:
            _refuse_geometric(network)
            _make_resizable(network)
        else:
            network.prepare(*size)
            network.head.pool = FixedPool(size)
        self.network = network
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("factor", 1.0 / torch.tensor(STD).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        if self.takes == "pixels":
            image = (image.permute(0, 3, 1, 2).float() - self.mean) * self.factor
        logits = self.network(image)
        if self.gives == "logits":
            return cast(Tensor, logits)
        size = image.shape[2:]
        labels = F.interpolate(logits, size=size, mode="bilinear", align_corners=False).argmax(1)
        return labels.to(torch.uint8 if self.num_classes <= 256 else torch.int32)


def _make_resizable(network: FastNetwork) -> None:
    for module in list(network.modules()):
        if isinstance(module, (FastAttention, FastDualPathDownsample)):
            module.bias = ResizedBias(module.bias)  # type: ignore[assignment]
    network.head.pool = AnyPool()


def _refuse_geometric(network: FastNetwork) -> None:
    """Biases by true offsets depend on the map's shape: resolved for known sizes only."""
    biases = [module for module in network.modules() if isinstance(module, StoredBias)]
    if any(bias.geometric for bias in biases):
        raise ConfigError(
            "--size",
            found="any, with a network whose attention biases are resized by true offsets",
            expected="one size, for which they are resolved",
            remedy="for example --size 512x512",
        )


def _pooled(cells: int) -> int:
    """Cells of the pooled pyramid for the smallest scale's."""
    return (cells + 1) // 2
