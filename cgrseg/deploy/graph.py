"""The network as a graph for export: every table resolved for one size, or resizable.

It starts from :func:`cgrseg.inference.fast.fast_form`, whose norms and scales are folded.
Two parts depend on the input size and are replaced here by what runtimes have:

* Attention biases.  For one size they are stored numbers.  For any size they are one bicubic
  resize of a stored table, which runtimes that fix the size at load time compute once.
* Adaptive pooling, which few runtimes have: plain average pooling where sizes divide
  evenly, else a product with a small matrix on either side.

Optional parts around it: normalization of 8-bit pixels before, label maps after.

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
from cgrseg.formats.description import InputKind, OutputKind, Size
from cgrseg.inference.fast.backbone import FastAttention, FastDualPathDownsample, StoredBias
from cgrseg.inference.fast.network import FastNetwork, fast_form
from cgrseg.models import CGRSeg


class ResizedBias(nn.Module):
    """Attention biases for any size, as one bicubic resize.

    The mix of a talking head is linear over heads, so it is applied to the table beforehand.

    Args:
        source: the biases of one attention; not geometric ones.
    """

    table: Tensor

    def __init__(self, source: StoredBias) -> None:
        super().__init__()
        cells = round(source.table.shape[1] ** 0.5)
        queries = (-(-cells // source.query_stride)) ** 2
        table = source.compute(queries, cells**2, source.table)
        self.register_buffer("table", table.float()[None])  # (1, A, Q0, K0)

    def prepare(self, queries: int, keys: int, like: Tensor, width: int | None = None) -> None:
        """Nothing is cached per size; the network calls this before it runs eagerly."""

    def forward(self, queries: int, keys: int, like: Tensor, width: int | None = None) -> Tensor:
        """Biases (A, Q, K)."""
        resized = F.interpolate(self.table, size=(queries, keys), mode="bicubic")[0]
        return resized.to(like.dtype)


class PyramidPool(nn.Module):
    """Pyramid pooling without adaptive pooling, as a matrix product per scale and axis.

    Where the input size is known and an axis divides evenly, it is plain average pooling.

    Args:
        is_fixed: whether the input size is known.
    """

    def __init__(self, is_fixed: bool) -> None:
        super().__init__()
        self.is_fixed = is_fixed

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """(N, C_i, H / s, W / s) to (N, sum of C_i, rows, columns)."""
        # Half of the smallest feature map's sides, rounded up.
        rows, columns = ((side + 1) // 2 for side in features[-1].shape[2:])
        pooled = []
        for feature in features:
            height, width = feature.shape[2:]
            block = [1, 1]
            # Products first: some runtimes fail on a product with a single row.
            if self.is_fixed and height % rows == 0:
                block[0] = height // rows
            else:
                feature = averaging_matrix(height, rows, feature) @ feature
            if self.is_fixed and width % columns == 0:
                block[1] = width // columns
            else:
                feature = feature @ averaging_matrix(width, columns, feature).T
            if block != [1, 1]:
                feature = F.avg_pool2d(feature, block)
            pooled.append(feature)
        return torch.cat(pooled, dim=1)


def averaging_matrix(cells: int, target: int, like: Tensor) -> Tensor:
    """Adaptive average pooling along one axis, as a matrix (target, cells)."""
    wanted = torch.arange(target, device=like.device)[:, None]
    first = wanted * cells // target
    behind = ((wanted + 1) * cells + target - 1) // target
    cell = torch.arange(cells, device=like.device)[None]
    inside = torch.logical_and(cell >= first, cell < behind).to(like.dtype)  # Core ML lacks `&`
    return inside / inside.sum(dim=1, keepdim=True)


class ExportGraph(nn.Module):
    """The exported module: optional normalization, the network, optional label map.

    Args:
        model: trained; read, never changed.
        size: height and width of the input; None: any multiples of 32.
        takes: "pixels" uint8 RGB (N, H, W, 3), else normalized float32 (N, 3, H, W).
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
        for module in network.modules():
            if isinstance(module, (FastAttention, FastDualPathDownsample)):
                module.channels_last = False
        if size is None:
            _refuse_geometric(network)
            _make_resizable(network)
        else:
            network.prepare(*size)
            network.head.pool = PyramidPool(is_fixed=True)
        self.network = network
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("factor", 1.0 / torch.tensor(STD).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        """See the class."""
        if self.takes == "pixels":
            # In this order: TensorRT converts 8-bit inputs and does nothing else with them.
            image = (image.float().permute(0, 3, 1, 2) - self.mean) * self.factor
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
    network.head.pool = PyramidPool(is_fixed=False)


def _refuse_geometric(network: FastNetwork) -> None:
    """Geometric biases depend on the shape of the feature map: only known sizes resolve them."""
    biases = [module for module in network.modules() if isinstance(module, StoredBias)]
    if any(bias.geometric for bias in biases):
        raise ConfigError(
            "--size",
            found="any, with a network of geometric attention biases",
            expected="one size, for which they are resolved",
            remedy="for example --size 512x512",
        )
