"""EfficientFormerV2 for inference: the arithmetic that is left after folding.

Differences from :mod:`cgrseg.models.efficientformer_v2`, all exact up to rounding:

* Batch norms and layer scales are folded into the convolutions.
* One convolution computes queries, keys and values of an attention.
* The query's subsampling is part of its depthwise kernel, and the scale of the attention part
  of the query.
* The first talking head mixes the attention biases beforehand; its own bias is dropped, because
  a softmax does not see it.
* The second talking head's bias adds the same to the weight of every key.  It is added to the
  result as a multiple of the sum of the values, not to each of A x Q x K weights.
* The attention biases of an input size are stored.

Legend: N images, C channels, H x W cells of the stage, A heads, D channels per head of
the values, E channels per head of queries and keys, Q queries, K keys.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cgrseg.inference.fast.folding import FoldedConv
from cgrseg.models import efficientformer_v2 as published
from cgrseg.models.attention_bias import AttentionBias, GeometricBias, offset_index

# Limits of the stored biases of one attention: number of sizes, and bytes of one size.
_MAX_KEPT_SIZES = 8
_MAX_KEPT_BYTES = 64 * 1024 * 1024


class StoredBias(nn.Module):
    """Attention biases of the prepared input sizes.

    Args:
        table: learned values, (A, R * R).
        query_stride: distance between queries, in cells.
        mix: weights (A, A) of a talking head to apply beforehand; None: no talking head.
        geometric: resize the table by true offsets.
    """

    def __init__(
        self, table: Tensor, query_stride: int, mix: Tensor | None, geometric: bool = False
    ) -> None:
        super().__init__()
        self.geometric = geometric
        # Plain attributes: they stay in float32 whatever the network is cast to.
        self.table = table.detach().float().cpu().clone()
        self.query_stride = query_stride
        self.mix = None if mix is None else mix.detach().double().cpu().clone()

    @classmethod
    def of(cls, attention: nn.Module, query_stride: int, mix: Tensor | None = None) -> StoredBias:
        """The stored form of the biases of an attention."""
        geometric = isinstance(attention.bias, GeometricBias)
        table = attention.attention_biases if geometric else attention.attention_biases_seg
        return cls(cast(Tensor, table), query_stride, mix, geometric)

    def prepare(self, queries: int, keys: int, like: Tensor, width: int | None = None) -> None:
        """Store the biases of a size, unless they exceed the limit.

        Args:
            queries: Q.
            keys: K.
            like: tensor with the dtype and device of the biases.
            width: width of the keys' map, for geometric biases.
        """
        name = self._name(queries, keys, width)
        if name in self._buffers or len(self.table) * queries * keys * 4 > _MAX_KEPT_BYTES:
            return
        if len(self._buffers) >= _MAX_KEPT_SIZES:
            del self._buffers[next(iter(self._buffers))]
        with torch.inference_mode(False), torch.no_grad():
            bias = self.compute(queries, keys, like, width)
            self.register_buffer(name, bias, persistent=False)

    def _name(self, queries: int, keys: int, width: int | None) -> str:
        return f"bias_{queries}x{keys}" + (f"_{width}" if self.geometric else "")

    def compute(self, queries: int, keys: int, like: Tensor, width: int | None = None) -> Tensor:
        """Biases (A, Q, K) from the table."""
        table = nn.Parameter(self.table, requires_grad=False)
        if self.geometric:
            assert width is not None  # every attention knows its map
            bias = GeometricBias(self.query_stride)(table, keys // width, width, False)
        else:
            index = offset_index(round(self.table.shape[1] ** 0.5), self.query_stride)
            bias = AttentionBias()(table, index, queries, keys, False)
        if self.mix is not None:
            bias = torch.einsum("ba,aqk->bqk", self.mix, bias.double())
        return bias.to(device=like.device, dtype=like.dtype)

    def forward(self, queries: int, keys: int, like: Tensor, width: int | None = None) -> Tensor:
        """Biases (A, Q, K), stored or computed."""
        kept = self._buffers.get(self._name(queries, keys, width))
        return kept if kept is not None else self.compute(queries, keys, like, width)


class FastConvMlp(nn.Module):
    """Residual MLP; norms and layer scale are folded into its three convolutions."""

    def __init__(self, block: published.ConvBlock) -> None:
        super().__init__()
        mlp = block.mlp
        self.expand = FoldedConv.of(mlp.fc1, mlp.norm1).module()
        self.mix = FoldedConv.of(mlp.mid, mlp.mid_norm).module()
        self.reduce = FoldedConv.of(mlp.fc2, mlp.norm2).scaled(block.layer_scale_2).module()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        return x + self.reduce(F.gelu(self.mix(F.gelu(self.expand(x)))))


class FastAttention(nn.Module):
    """Residual attention with talking heads; the layer scale is in the last convolution.

    Attributes:
        channels_last: memory layout of the result; an export sets the plain one.
    """

    channels_last = True

    def __init__(self, block: published.AttentionBlock) -> None:
        super().__init__()
        source = block.token_mixer
        self.heads = source.heads
        self.query_width = source.heads * source.key_channels
        self.value_width = source.heads * source.value_channels
        self.stride = source.stride
        self.shrink = (
            FoldedConv.of_pair(source.stride_conv).module()
            if source.stride_conv is not None
            else None
        )
        query = FoldedConv.of_pair(source.q).scaled(source.key_channels**-0.5)
        self.project_in = query.beside(
            FoldedConv.of_pair(source.k), FoldedConv.of_pair(source.v)
        ).module()
        self.local = FoldedConv.of_pair(source.v_local).module()
        self.project_out = FoldedConv.of_pair(source.proj[1:]).scaled(block.layer_scale_1).module()
        first, second = source.talking_head1, source.talking_head2
        self.register_buffer("mix_before", first.weight.detach().flatten(1).clone())
        self.register_buffer("mix_after", second.weight.detach().flatten(1).clone())
        shift = cast(Tensor, second.bias).detach().repeat_interleave(source.value_channels)
        self.register_buffer("mix_after_bias", shift[:, None, None])  # (A * D, 1, 1)
        self.bias = StoredBias.of(source, 1, first.weight.detach().flatten(1))

    def prepare(self, height: int, width: int) -> None:
        """Store the biases for a map of H x W cells."""
        columns = -(-width // self.stride)
        cells = -(-height // self.stride) * columns
        self.bias.prepare(cells, cells, self.project_in.weight, columns)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        small = x if self.shrink is None else self.shrink(x)
        images, height, width = x.shape[0], small.shape[2], small.shape[3]
        cells = height * width
        joint = self.project_in(small)
        query, key, value_map = joint.split(
            [self.query_width, self.query_width, self.value_width], dim=1
        )
        query = query.reshape(images, self.heads, -1, cells).transpose(2, 3)  # (N, A, Q, E)
        key = key.reshape(images, self.heads, -1, cells)  # (N, A, E, K)
        value = value_map.reshape(images, self.heads, -1, cells).transpose(2, 3)  # (N, A, K, D)

        weights = (query @ key).reshape(images, self.heads, cells * cells)
        weights = (self.mix_before @ weights).view(images, self.heads, cells, cells)
        weights = (weights + self.bias(cells, cells, weights, width)).softmax(dim=3)
        weights = self.mix_after @ weights.view(images, self.heads, cells * cells)
        weights = weights.view(images, self.heads, cells, cells)

        out = _heads_to_map(weights @ value, height, width, self.channels_last)
        # The mean, because in half precision the sum of many cells could overflow.
        mean = value_map.mean(dim=(2, 3), keepdim=True)  # (N, A * D, 1, 1)
        out = out + self.local(value_map) + mean * self.mix_after_bias * cells
        if self.stride > 1:
            out = F.interpolate(
                out, scale_factor=float(self.stride), mode="bilinear", align_corners=False
            )
        return x + self.project_out(F.gelu(out))


class FastDualPathDownsample(nn.Module):
    """Strided convolution plus attention with fewer queries (stage 3 to 4).

    Attributes:
        channels_last: memory layout of the result; an export sets the plain one.
    """

    channels_last = True

    def __init__(self, source: published.DualPathDownsample) -> None:
        super().__init__()
        attention = source.attn
        self.heads = attention.heads
        self.key_width = attention.heads * attention.key_channels
        self.value_width = attention.heads * attention.value_channels
        local = cast(nn.Conv2d, attention.q.local[0])
        self.query_local = FoldedConv.of(local).plus_subsample().module()
        self.project_query = (
            FoldedConv.of_pair(attention.q.proj).scaled(attention.key_channels**-0.5).module()
        )
        self.project_in = (
            FoldedConv.of_pair(attention.k).beside(FoldedConv.of_pair(attention.v)).module()
        )
        self.local = FoldedConv.of_pair(attention.v_local).module()
        self.project_out = FoldedConv.of_pair(attention.proj[1:]).module()
        self.conv = FoldedConv.of(source.conv, source.bn).module()
        self.bias = StoredBias.of(attention, 2)

    def prepare(self, height: int, width: int) -> None:
        """Store the biases for a map of H x W cells before downsampling."""
        queries = -(-height // 2) * -(-width // 2)
        self.bias.prepare(queries, height * width, self.project_in.weight, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H/2, W/2)."""
        images = x.shape[0]
        query = self.project_query(self.query_local(x))
        height, width = query.shape[2:]
        queries, keys = height * width, x.shape[2] * x.shape[3]
        key, value_map = self.project_in(x).split([self.key_width, self.value_width], dim=1)
        query = query.reshape(images, self.heads, -1, queries).transpose(2, 3)  # (N, A, Q, E)
        key = key.reshape(images, self.heads, -1, keys)  # (N, A, E, K)
        value = value_map.reshape(images, self.heads, -1, keys).transpose(2, 3)  # (N, A, K, D)

        weights = query @ key
        bias = self.bias(queries, keys, weights, x.shape[3])
        weights = (weights + bias).softmax(dim=3)
        out = _heads_to_map(weights @ value, height, width, self.channels_last)
        return self.project_out(F.gelu(out + self.local(value_map))) + self.conv(x)


class FastBackbone(nn.Module):
    """The backbone, with the three feature maps that the head reads.

    Args:
        source: the network's backbone in eval mode; it is read, never changed.
    """

    def __init__(self, source: published.EfficientFormerV2) -> None:
        super().__init__()
        self.stem1 = FoldedConv.of_pair(source.patch_embed[0:2]).module()
        self.stem2 = FoldedConv.of_pair(source.patch_embed[3:5]).module()
        self.layers = nn.ModuleList(_fast_layer(layer) for layer in source.network)

    def prepare(self, height: int, width: int) -> None:
        """Store the biases for an input of H x W pixels."""
        for position, layer in enumerate(self.layers):
            stride = 4 << (position // 2)  # of the layer's input
            for module in layer.modules():
                if isinstance(module, (FastAttention, FastDualPathDownsample)):
                    module.prepare(height // stride, width // stride)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) to three (N, C_i, H / s, W / s) for strides s of 8, 16, 32."""
        x = F.gelu(self.stem2(F.gelu(self.stem1(x))))
        features = []
        for position, layer in enumerate(self.layers):
            x = layer(x)
            if position % 2 == 0:
                features.append(x)
        return features[1:]


def _heads_to_map(values: Tensor, height: int, width: int, channels_last: bool) -> Tensor:
    """(N, A, Q, D) to (N, A * D, H, W) in the memory layout of the convolutions that follow."""
    images, heads, _, depth = values.shape
    if channels_last:
        values = values.transpose(1, 2).reshape(images, height, width, heads * depth)
        return values.permute(0, 3, 1, 2)
    return values.transpose(2, 3).reshape(images, heads * depth, height, width)


def _fast_layer(layer: nn.Module) -> nn.Module:
    """A stage or a downsampling between two."""
    if isinstance(layer, published.ConvDownsample):
        return FoldedConv.of(layer.proj, layer.norm).module()
    if isinstance(layer, published.DualPathDownsample):
        return FastDualPathDownsample(layer)
    steps: list[nn.Module] = []
    for block in cast(nn.Sequential, layer):
        if isinstance(block, published.AttentionBlock):
            steps.append(FastAttention(block))
        steps.append(FastConvMlp(cast(published.ConvBlock, block)))
    return nn.Sequential(*steps)
