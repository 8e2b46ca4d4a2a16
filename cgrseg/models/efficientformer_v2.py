"""EfficientFormerV2 as a feature backbone for dense prediction.

Paper: "Rethinking Vision Transformers for MobileNet Size and Speed", Li et al.,
ICCV 2023, arXiv 2212.08059.  Arithmetic and parameter names are those of the
backbone that CGRSeg was published with
(`mmseg/models/backbones/efficientformer_v2.py`), so its checkpoints load as they
are.  Differences: attention biases are resized once per size in eval mode or, as an option,
by true offsets from ImageNet's table (:mod:`cgrseg.models.attention_bias`); the classifier is
left out; variant and stochastic depth are arguments; batch norms train unless frozen.

Legend: N images, C channels, H x W cells of the stage, A heads, D channels per
head of the values, E channels per head of queries and keys, Q queries, K keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cgrseg.models.attention_bias import AttentionBias, GeometricBias, offset_index
from cgrseg.models.attention_parts import in_parts, query_parts, resized_bias_parts
from cgrseg.models.layers import (
    conv_norm,
    drop_path,
    norm_gelu_conv,
    recomputes,
    scaled_norm,
)
from cgrseg.variants import BACKBONES

STRIDES = (4, 8, 16, 32)
"""Pixels of input per cell, for each of the four stages."""

BiasForm = Literal["published", "geometric"]
"""How attention biases are resized to the input; see `EfficientFormerV2`."""

_TABLE_INPUT = 512  # pixels per side of the input that the learned bias tables belong to
_CHEAP = 64  # channels up to which a training step computes a 1x1 convolution a second time
_IMAGENET_CELLS = 7  # cells per side of ImageNet's tables at stride 32 (224-pixel input)


class ConvMlp(nn.Module):
    """Two 1x1 convolutions around a depthwise 3x3, each followed by batch norm."""

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.mid = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.mid_norm = nn.BatchNorm2d(hidden)
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.norm2 = nn.BatchNorm2d(channels)
        for layer in (self.fc1, self.fc2):  # the depthwise layer keeps PyTorch's initialization
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """(N, C, H, W) and a scale (C, 1, 1) of the result to the shape of `x`."""
        first: nn.Conv2d | None = self.fc1
        if self.fc1.in_channels > _CHEAP:
            x, first = self.fc1(x), None
        x = norm_gelu_conv(x, self.norm1, self.mid, first)  # (N, C * expansion, H, W)
        return scaled_norm(norm_gelu_conv(x, self.mid_norm, self.fc2), self.norm2, scale)


class Attention(nn.Module):
    """Attention over the cells of a map with talking heads and a local value branch.

    With `stride` 2 (stage 3), attention runs on a map of half the size and its result is upsampled.
    """

    heads, key_channels, value_channels = 8, 32, 128  # A, E, D
    attention_biases_seg: nn.Parameter

    def __init__(
        self, channels: int, cells: int, stride: int = 1, form: BiasForm = "published"
    ) -> None:
        super().__init__()
        keys = self.heads * self.key_channels
        values = self.heads * self.value_channels
        self.stride = stride
        self.stride_conv = (
            conv_norm(channels, channels, 3, stride, groups=channels) if stride > 1 else None
        )
        self.q = conv_norm(channels, keys)
        self.k = conv_norm(channels, keys)
        self.v = conv_norm(channels, values)
        self.v_local = conv_norm(values, values, 3, groups=values)
        self.talking_head1 = nn.Conv2d(self.heads, self.heads, 1)
        self.talking_head2 = nn.Conv2d(self.heads, self.heads, 1)
        self.proj = nn.Sequential(nn.GELU(), *conv_norm(values, channels))
        _add_bias_tables(self, form, cells // stride, _IMAGENET_CELLS)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        if self.stride_conv is not None:
            x = self.stride_conv(x)
        height, width = x.shape[-2:]
        query = self.q(x).unflatten(1, (self.heads, -1)).flatten(3).transpose(2, 3)  # (N, A, Q, E)
        key = self.k(x).unflatten(1, (self.heads, -1)).flatten(3)  # (N, A, E, K)
        value_map = self.v(x)  # (N, A * D, H, W)
        value = value_map.unflatten(1, (self.heads, -1)).flatten(3).transpose(2, 3)  # (N, A, K, D)

        def attend(queries: Tensor, bias: Tensor) -> Tensor:
            weights = queries @ key * self.key_channels**-0.5  # (N, A, Q, K)
            weights = weights + bias
            weights = self.talking_head2(self.talking_head1(weights).softmax(dim=-1))
            return weights @ value

        out = _attention(self, attend, query, key, (height, width))  # (N, A, Q, D)
        out = out.transpose(2, 3).flatten(1, 2).unflatten(2, (height, width))
        out = out + self.v_local(value_map)  # (N, A * D, H, W)
        gelu, conv, norm = self.proj

        def project(values: Tensor) -> Tensor:
            if self.stride > 1:
                values = F.interpolate(
                    values, scale_factor=float(self.stride), mode="bilinear", align_corners=False
                )
            return cast(Tensor, conv(gelu(values)))

        if recomputes(out):  # large maps of all values are not kept
            return norm(checkpoint(project, out, use_reentrant=False, preserve_rng_state=False))
        return norm(project(out))


class LocalGlobalQuery(nn.Module):
    """Queries at half the resolution: subsampled cells plus a strided depthwise convolution."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.local = nn.Sequential(nn.Conv2d(channels, channels, 3, 2, padding=1, groups=channels))
        self.proj = conv_norm(channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, out_channels, H/2, W/2)."""
        return self.proj(self.local(x) + x[:, :, ::2, ::2])


class AttentionDownsample(nn.Module):
    """Attention whose queries have half the resolution of its keys (stage 3 to 4)."""

    heads, key_channels, value_channels = 8, 16, 64  # A, E, D

    def __init__(
        self, channels: int, out_channels: int, cells: int, form: BiasForm = "published"
    ) -> None:
        super().__init__()
        keys = self.heads * self.key_channels
        values = self.heads * self.value_channels
        self.q = LocalGlobalQuery(channels, keys)
        self.k = conv_norm(channels, keys)
        self.v = conv_norm(channels, values)
        self.v_local = conv_norm(values, values, 3, 2, groups=values)
        self.proj = nn.Sequential(nn.GELU(), *conv_norm(values, out_channels))
        _add_bias_tables(self, form, cells, 2 * _IMAGENET_CELLS, query_stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, out_channels, H/2, W/2)."""
        query_map = self.q(x)
        query = query_map.unflatten(1, (self.heads, -1)).flatten(3).transpose(2, 3)  # (N, A, Q, E)
        key = self.k(x).unflatten(1, (self.heads, -1)).flatten(3)  # (N, A, E, K)
        value_map = self.v(x)
        value = value_map.unflatten(1, (self.heads, -1)).flatten(3).transpose(2, 3)  # (N, A, K, D)

        def attend(queries: Tensor, bias: Tensor) -> Tensor:
            weights = queries @ key * self.key_channels**-0.5  # (N, A, Q, K)
            return (weights + bias).softmax(dim=-1) @ value

        grid = x.shape[2], x.shape[3]
        out = _attention(self, attend, query, key, grid)  # (N, A, Q, D)
        out = out.transpose(2, 3).flatten(1, 2)  # (N, A * D, Q)
        return self.proj(out.unflatten(2, query_map.shape[-2:]) + self.v_local(value_map))


class ConvBlock(nn.Module):
    """Residual MLP, scaled per channel."""

    def __init__(self, channels: int, expansion: int, drop_rate: float) -> None:
        super().__init__()
        self.mlp = ConvMlp(channels, expansion)
        self.drop_path = drop_path(drop_rate)
        self.layer_scale_2 = nn.Parameter(torch.full((channels, 1, 1), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        return x + self.drop_path(self.mlp(x, self.layer_scale_2))


class AttentionBlock(ConvBlock):
    """Residual attention, then residual MLP, each scaled per channel."""

    def __init__(
        self,
        channels: int,
        expansion: int,
        drop_rate: float,
        cells: int,
        stride: int,
        form: BiasForm = "published",
    ) -> None:
        super().__init__(channels, expansion, drop_rate)
        self.token_mixer = Attention(channels, cells, stride, form)
        self.layer_scale_1 = nn.Parameter(torch.full((channels, 1, 1), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        x = x + self.drop_path(self.layer_scale_1 * self.token_mixer(x))
        return super().forward(x)


class ConvDownsample(nn.Module):
    """Strided 3x3 convolution and batch norm between the first stages."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, out_channels, 3, 2, padding=1)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, out_channels, H/2, W/2)."""
        return self.norm(self.proj(x))


class DualPathDownsample(nn.Module):
    """Strided convolution plus strided attention between stages 3 and 4."""

    def __init__(
        self, channels: int, out_channels: int, cells: int, form: BiasForm = "published"
    ) -> None:
        super().__init__()
        self.attn = AttentionDownsample(channels, out_channels, cells, form)
        self.conv = nn.Conv2d(channels, out_channels, 3, 2, padding=1)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, out_channels, H/2, W/2)."""
        return self.attn(x) + self.bn(self.conv(x))


class EfficientFormerV2(nn.Module):
    """Four feature maps, at strides 4, 8, 16 and 32.

    Args:
        variant: name in :data:`cgrseg.variants.BACKBONES`.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0 at
            the first (0 for S0 and S1, 0.02 for S2, 0.1 for L as published).
        freeze_norm: batch norms use their stored statistics in training mode too.
        attention_bias: "published": a table for 512-pixel inputs, expanded to all pairs and
            resized as an image; "geometric": ImageNet's table, resized by true offsets.
        frozen: no gradients, and in training mode too batch norms with stored statistics and no
            stochastic depth.

    Raises:
        KeyError: there is no such variant.
    """

    strides = STRIDES

    def __init__(
        self,
        variant: str,
        drop_path_rate: float = 0.0,
        freeze_norm: bool = False,
        attention_bias: BiasForm = "published",
        frozen: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        table = BACKBONES[variant]
        self.frozen = frozen
        self.attention_bias = attention_bias
        self.variant = variant
        self.channels = table.channels
        self.freeze_norm = freeze_norm
        first = table.channels[0]
        self.patch_embed = nn.Sequential(
            *conv_norm(in_channels, first // 2, 3, 2),
            nn.GELU(),
            *conv_norm(first // 2, first, 3, 2),
            nn.GELU(),
        )
        blocks_in_all = sum(table.depths)
        built = 0
        layers: list[nn.Module] = []  # stage, downsampling, stage, ... as published
        for stage, (channels, expansions) in enumerate(
            zip(table.channels, table.expansions, strict=True)
        ):
            cells = _TABLE_INPUT // STRIDES[stage]
            if stage == 3:
                layers.append(
                    DualPathDownsample(table.channels[2], channels, 2 * cells, attention_bias)
                )
            elif stage > 0:
                layers.append(ConvDownsample(table.channels[stage - 1], channels))
            first_attention = len(expansions) - (table.attention_blocks if stage >= 2 else 0)
            blocks: list[nn.Module] = []
            for block, expansion in enumerate(expansions):
                rate = drop_path_rate * built / (blocks_in_all - 1)
                built += 1
                if block >= first_attention:
                    stride = 2 if stage == 2 else 1
                    blocks.append(
                        AttentionBlock(channels, expansion, rate, cells, stride, attention_bias)
                    )
                else:
                    blocks.append(ConvBlock(channels, expansion, rate))
            layers.append(nn.Sequential(*blocks))
        self.network = nn.ModuleList(layers)
        if frozen:
            self.requires_grad_(False)
            self.eval()

    def train(self, mode: bool = True) -> EfficientFormerV2:
        """Switch mode; a frozen backbone and frozen batch norms stay in eval mode."""
        super().train(mode and not self.frozen)
        if self.freeze_norm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features of the four stages.

        Args:
            x: (N, C, H, W) float, H and W multiples of 32.

        Returns:
            (N, channels[i], H / strides[i], W / strides[i]) for i in 0..3.
        """
        first, norm, _, second, *rest = cast(Any, self.patch_embed)
        x = norm_gelu_conv(x, norm, second, first)  # (N, channels[0], H/4, W/4)
        for layer in rest:
            x = layer(x)
        features = []
        for position, layer in enumerate(self.network):
            x = layer(x)
            if position % 2 == 0:
                features.append(x)
        return features


def _add_bias_tables(
    module: Any, form: BiasForm, cells: int, imagenet_cells: int, query_stride: int = 1
) -> None:
    """Register the learned bias tables.

    Published: a table for 512-pixel inputs; ImageNet's table and index are buffers that only keep
    published checkpoints loadable.  Geometric: ImageNet's table, which keeps training.
    """
    zeros = torch.zeros(module.heads, imagenet_cells**2)
    imagenet_index = (imagenet_cells // query_stride) ** 2, imagenet_cells**2
    if form == "geometric":
        module.attention_biases = nn.Parameter(zeros)
    else:
        module.register_buffer("attention_biases", zeros)
    module.register_buffer("attention_bias_idxs", torch.ones(imagenet_index, dtype=torch.long))
    if form == "geometric":
        module.bias = GeometricBias(query_stride)
        return
    module.attention_biases_seg = nn.Parameter(torch.zeros(module.heads, cells**2))
    module.register_buffer("attention_bias_idxs_seg", offset_index(cells, query_stride))
    module.bias = AttentionBias()


def _attention(
    module: Any,
    attend: Callable[[Tensor, Tensor], Tensor],
    query: Tensor,
    key: Tensor,
    grid: tuple[int, int],
) -> Tensor:
    """Attention of all queries, part by part where the attention weights would be large.

    Args:
        module: holds the biases.
        attend: from queries (N, A, q, E) and their biases (A, q, K) to (N, A, q, D).
        query: (N, A, Q, E).
        key: (N, A, E, K).
        grid: rows and columns of the keys.
    """
    queries, keys = query.shape[2], key.shape[3]
    geometric = isinstance(module.bias, GeometricBias)
    table = module.attention_biases if geometric else module.attention_biases_seg

    def all_biases() -> Tensor:
        if geometric:
            return cast(Tensor, module.bias(table, *grid, module.training))
        index = module.attention_bias_idxs_seg
        return cast(Tensor, module.bias(table, index, queries, keys, module.training))

    parts = [(0, queries)]
    if in_parts(module.training):
        parts = query_parts(query.shape[0], query.shape[1], queries, keys, query.device.type)
    if len(parts) == 1:
        if recomputes(query):  # several matrices of attention weights are not kept
            found = checkpoint(attend, query, all_biases(), use_reentrant=False)
            return cast(Tensor, found)
        return attend(query, all_biases())
    biases: Iterable[Tensor]
    if AttentionBias.keeps(table, queries, keys):
        whole = all_biases()
        biases = (whole[:, start:stop] for start, stop in parts)
    elif geometric:
        biases = (module.bias.some(table, *grid, part) for part in parts)
    else:
        matrix = table[:, module.attention_bias_idxs_seg]
        biases = resized_bias_parts(matrix, queries, keys, parts)
    done = [
        attend(query[:, :, start:stop], bias)
        for (start, stop), bias in zip(parts, biases, strict=True)
    ]
    return torch.cat(done, dim=2)
