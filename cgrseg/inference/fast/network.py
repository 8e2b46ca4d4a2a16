"""CGRSeg for inference: the same function with less arithmetic.

Differences of the head from :mod:`cgrseg.models`, all exact up to rounding
(:mod:`cgrseg.inference.fast.backbone` has those of the backbone):

* Rectangular calibration: the horizontal strip convolution acts on `rows + columns`, where
  `rows` does not change along its axis.  So it is the convolution of the columns alone,
  plus the rows times the sum of the taps that meet the map: no convolution over the map.
* A 1x1 convolution after bilinear upsampling is done before it, on a quarter of the cells.
* The fusion before the classifier is one factor and one shift per channel.
* Class centers (K x M) are never formed.  Only their mean under a softmax over classes is
  needed, and that softmax needs their product with one vector: both are sums over positions
  with one weight per position.
* The final classification of `features * gate + features` multiplies the classifier's
  weights by `1 + gate` in place of the features.
* The SSA head's projections of what does not depend on the image are done once, and its last
  two linear layers are one.

Legend: N images, C_i channels of scale i, H_i x W_i its cells, M head width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cgrseg.inference.fast.backbone import FastBackbone
from cgrseg.inference.fast.folding import FoldedConv, norm_as_affine
from cgrseg.models import CGRSeg
from cgrseg.models.dpg_head import DPGHead, DynamicPrototypeGuide
from cgrseg.models.layers import ConvNormAct
from cgrseg.models.pyramid import ContextFusion, ReconstructionHead
from cgrseg.models.rcm import RectangularSelfCalibrationModule
from cgrseg.models.ssa_head import EPSILON, LOGIT_SCALE, SSAHead
from cgrseg.precision import Precision, dtype_of, resolve_precision


class FastCalibration(nn.Module):
    """RCM with its norms and its scale folded into its convolutions."""

    def __init__(self, source: RectangularSelfCalibrationModule) -> None:
        super().__init__()
        attention = source.token_mixer
        excite = attention.excite
        self.local = FoldedConv.of(attention.dwconv_hw).module()
        self.along_columns = FoldedConv.of_pair(excite[0:2]).module()
        self.along_rows = FoldedConv.of(cast(nn.Conv2d, excite[3])).module()
        self.expand = FoldedConv.of(source.mlp.fc1).after_norm(source.norm).module()
        self.reduce = FoldedConv.of(source.mlp.fc2).scaled(source.gamma).module()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        rows = x.mean(dim=3, keepdim=True)  # (N, C, H, 1)
        columns = x.mean(dim=2, keepdim=True)  # (N, C, 1, W)
        strip = self.along_columns
        taps = F.conv2d(
            torch.ones_like(columns[:1]), strip.weight, None, 1, strip.padding, 1, strip.groups
        )  # (1, C, 1, W), the sum of those that meet the map
        strips = F.relu(rows * taps + strip(columns))
        gate = torch.sigmoid(self.along_rows(strips))
        return x + self.reduce(F.gelu(self.expand(gate * self.local(x))))


class FastFusion(nn.Module):
    """Local features gated by the context of their scale."""

    def __init__(self, source: ContextFusion) -> None:
        super().__init__()
        self.local = FoldedConv.of(source.fuse1.conv, source.fuse1.bn).module()
        self.context = FoldedConv.of(source.fuse2.conv, source.fuse2.bn).module()

    def forward(self, local: Tensor, context: Tensor) -> Tensor:
        """Gate `local` (N, C_i, H, W) by `context` (N, C_i, h, w): (N, M, H, W)."""
        gate = F.hardsigmoid(self.context(context))
        gate = F.interpolate(gate, size=local.shape[2:], mode="bilinear", align_corners=False)
        return self.local(local) * gate


class FastClassifier(nn.Module):
    """Fusion before the classifier and initial prediction, which all heads share.

    The last products stay in float32 in any precision: they cost little and halve the number of
    labels that a reduced precision changes.
    """

    fuse_scale: Tensor
    fuse_shift: Tensor

    def __init__(self, fuse: ConvNormAct, classify: nn.Conv2d) -> None:
        super().__init__()
        scale, shift = norm_as_affine(fuse.bn)
        scale = fuse.conv.weight.detach().double().flatten() * scale
        self.register_buffer("fuse_scale", scale.float()[None, :, None, None])
        self.register_buffer("fuse_shift", shift.float()[None, :, None, None])
        self.classify = FoldedConv.of(classify).module()
        self._float32: list[str] = []

    def keep_float32(self, name: str, value: Tensor) -> None:
        """Register a buffer that follows moves to a device, but no casts."""
        self.register_buffer(name, value.detach().to(torch.float32, copy=True))
        self._float32.append(name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FastClassifier:
        kept = {name: self.get_buffer(name) for name in self._float32}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in kept.items():
            setattr(self, name, value.to(self.classify.weight.device))
        return self

    def fused(self, features: Tensor) -> Tensor:
        """(N, M, H, W) to the same shape."""
        return F.relu(features * self.fuse_scale + self.fuse_shift)


class FastGuide(FastClassifier):
    """Initial prediction, prototype guide and final prediction."""

    final_weight: Tensor
    final_bias: Tensor

    def __init__(
        self, fuse: ConvNormAct, classify: nn.Conv2d, guide: DynamicPrototypeGuide
    ) -> None:
        super().__init__(fuse, classify)
        self.keep_float32("final_weight", classify.weight.flatten(1))
        self.keep_float32("final_bias", cast(Tensor, classify.bias))
        self.mask = FoldedConv.of(guide.conv_mask).module()
        before, norm, _, after = guide.channel_mul_conv
        self.squeeze = FoldedConv.of(cast(nn.Conv2d, before)).module()
        self.norm_weight = nn.Parameter(cast(Tensor, norm.weight).detach().flatten().clone(), False)
        self.norm_bias = nn.Parameter(cast(Tensor, norm.bias).detach().flatten().clone(), False)
        self.norm_epsilon = float(cast(nn.LayerNorm, norm).eps)
        self.excite = FoldedConv.of(cast(nn.Conv2d, after)).module()

    def forward(self, features: Tensor) -> Tensor:
        """(N, M, H, W) to logits, float32 (N, K, H, W)."""
        initial = self.classify(self.fused(features))
        prototype = self.prototype(features, initial)  # (N, M)
        hidden = F.linear(prototype, self.squeeze.weight.flatten(1), self.squeeze.bias)
        hidden = F.layer_norm(
            hidden, (hidden.shape[1],), self.norm_weight, self.norm_bias, self.norm_epsilon
        )
        gate = F.linear(F.relu(hidden), self.excite.weight.flatten(1), self.excite.bias)
        factor = 1.0 + torch.sigmoid(gate.float())  # (N, M)
        weights = (self.final_weight * factor[:, None]).transpose(1, 2)  # (N, M, K)
        logits = _tokens(features).float() @ weights + self.final_bias  # (N, P, K)
        return logits.unflatten(1, features.shape[2:]).permute(0, 3, 1, 2)  # channels-last

    def prototype(self, features: Tensor, initial: Tensor) -> Tensor:
        """Mean of the class centers, weighted by the guide's mask over classes: (N, M).

        Centers are `sum over positions of share * features` with `share` the softmax over
        positions.  Their mask needs `share @ (mask of the features)`, and their weighted
        mean is the mean of the features under `class weights @ share`.
        """
        logits = initial.float()
        unscaled = (logits - logits.amax(dim=(2, 3), keepdim=True)).exp()  # (N, K, H, W)
        total = unscaled.sum(dim=(2, 3))[:, None]  # (N, 1, K)
        share = _tokens(unscaled)  # (N, P, K), times the total
        mask = F.conv2d(features, self.mask.weight).flatten(2).float()  # (N, 1, P)
        of_class = mask @ share / total  # (N, 1, K)
        of_position = share @ (of_class.softmax(dim=2) / total).transpose(1, 2)  # (N, P, 1)
        tokens = _tokens(features)
        return (of_position.transpose(1, 2).to(tokens.dtype) @ tokens).squeeze(1)


class FastAdaptation(FastClassifier):
    """Initial prediction, adapted prototypes and final prediction of the SSA head.

    A projection's first layer takes an adapted and a fixed half: the product with the fixed half
    is `content_shift` or `place_shift`.
    """

    content: Tensor
    content_shift: Tensor
    place: Tensor
    place_shift: Tensor
    project: Tensor
    project_shift: Tensor

    def __init__(self, source: SSAHead) -> None:
        super().__init__(source.linear_fuse, source.conv_seg)
        self.position = FoldedConv.of(source.get_feat_pos).module()
        content_in, _, content_out = cast("list[nn.Linear]", list(source.center_content_proj))
        place_in, _, place_out = cast("list[nn.Linear]", list(source.center_pos_proj))
        adapted, fixed = content_in.weight.double().chunk(2, dim=1)
        self.keep_float32("content", adapted)  # (M / 2, M)
        self.keep_float32("content_shift", source.conv_seg.weight.double().flatten(1) @ fixed.T)
        learned, adapted = place_in.weight.double().chunk(2, dim=1)
        self.keep_float32("place", adapted)
        self.keep_float32("place_shift", source.center_pos.weight.double() @ learned.T)
        project = source.center_proj.weight.double()
        both = torch.cat([content_out.weight, place_out.weight], dim=1).double()
        self.keep_float32("project", project @ both)  # (M, M)
        self.keep_float32("project_shift", project @ (content_out.bias + place_out.bias).double())

    def forward(self, features: Tensor) -> Tensor:
        """(N, M, H, W) to logits, float32 (N, K, H, W)."""
        x = self.fused(features)
        position = _tokens(self.position(x)).float()  # (N, P, M)
        initial = _tokens(self.classify(x)).float()  # (N, P, K)
        tokens = _tokens(x).float()
        probability = initial.softmax(dim=2).transpose(1, 2)  # (N, K, P)
        means = probability @ tokens / (probability.sum(dim=2, keepdim=True) + EPSILON)  # (N, K, M)
        where = initial.transpose(1, 2).softmax(dim=2) @ position
        hidden = torch.cat(
            [
                F.relu(F.linear(means, self.content) + self.content_shift),
                F.relu(F.linear(where, self.place) + self.place_shift),
            ],
            dim=2,
        )
        prototypes = LOGIT_SCALE * _unit(F.linear(hidden, self.project, self.project_shift))
        unit = _unit(tokens + position)
        logits = unit @ prototypes.transpose(1, 2)  # (N, P, K)
        return logits.unflatten(1, features.shape[2:]).permute(0, 3, 1, 2)  # channels-last


def _unit(vectors: Tensor) -> Tensor:
    """(..., M) of length 1, in operations that every runtime has."""
    return vectors / ((vectors * vectors).sum(dim=-1, keepdim=True).sqrt() + EPSILON)


def _tokens(features: Tensor) -> Tensor:
    """(N, C, H, W) to (N, H * W, C); no copy where channels are innermost in memory."""
    return features.permute(0, 2, 3, 1).flatten(1, 2)


class FastHead(nn.Module):
    """From three scales of features to logits.

    Args:
        source: the network's head in eval mode; it is read, never changed.
    """

    def __init__(self, source: ReconstructionHead) -> None:
        super().__init__()
        self.in_channels = list(source.in_channels)
        # An attribute, so that an export can put another form of it here.
        self.pool: Callable[[Sequence[Tensor]], Tensor] = pool_pyramid
        self.pyramid = nn.Sequential(
            *(
                FastCalibration(cast(RectangularSelfCalibrationModule, block))
                for block in source.trans.transformer_blocks
            )
        )
        self.calibrate = nn.ModuleList(
            FastCalibration(cast(RectangularSelfCalibrationModule, block)) for block in source.meta
        )
        self.fuse = nn.ModuleList(FastFusion(cast(ContextFusion, block)) for block in source.SIM)
        self.reduce = nn.ModuleList(
            FoldedConv.of(cast(nn.Conv2d, conv)).module() for conv in source.conv
        )
        self.guide: FastClassifier
        if isinstance(source, SSAHead):
            self.guide = FastAdaptation(source)
        else:
            lgc = cast(DPGHead, source).lgc
            self.guide = FastGuide(source.linear_fuse, source.conv_seg, lgc)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """(N, C_i, H / s, W / s) for strides s of 8, 16, 32 to logits (N, K, H / 8, W / 8)."""
        context = self.pyramid(self.pool(features)).split(self.in_channels, dim=1)
        fused: Tensor | None = None
        for scale in reversed(range(len(features))):
            local = features[scale]
            if fused is not None:
                local = local + F.interpolate(
                    self.reduce[scale](fused),
                    size=local.shape[2:],
                    mode="bilinear",
                    align_corners=False,
                )
            fused = self.fuse[scale](self.calibrate[scale](local), context[scale])
        assert fused is not None  # there are always three scales
        return self.guide(fused)


def pool_pyramid(features: Sequence[Tensor]) -> Tensor:
    """Average every scale down to half the size of the smallest (rounded up), and stack them.

    Where the sizes divide evenly the average is over blocks, which compilers handle well.
    """
    height, width = features[-1].shape[2:]
    rows, columns = (height + 1) // 2, (width + 1) // 2
    pooled = []
    for feature in features:
        if feature.shape[2] % rows or feature.shape[3] % columns:
            pooled.append(F.adaptive_avg_pool2d(feature, (rows, columns)))
        else:
            blocks = feature.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))
            pooled.append(blocks.mean(dim=(3, 5)))
    return torch.cat(pooled, dim=1)


class FastNetwork(nn.Module):
    """Inference form of :class:`cgrseg.models.CGRSeg`; build it with :func:`fast_form`.

    A snapshot of the source's weights, without gradients and training mode.

    Attributes:
        num_classes: K.
        precision: precision of weights and features.
    """

    def __init__(self, source: CGRSeg) -> None:
        super().__init__()
        self.num_classes = source.num_classes
        self.variant = source.variant
        self.precision: Precision = "fp32"
        self.backbone = FastBackbone(source.backbone)
        self.head = FastHead(source.decode_head)

    def prepare(self, height: int, width: int) -> None:
        """Store the attention biases that an input of this size needs (multiples of 32)."""
        self.backbone.prepare(height, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) float, H and W multiples of 32, to logits (N, K, H / 8, W / 8)."""
        if not torch.compiler.is_compiling():
            self.prepare(x.shape[2], x.shape[3])
        return self.head(self.backbone(x.to(dtype_of(self.precision))))


def fast_form(model: CGRSeg, *, precision: Precision = "fp32") -> FastNetwork:
    """Rewrite a network for inference.

    Args:
        model: trained network; it is read, never changed, and shares no tensor with the result.
        precision: precision of weights and features.  In float32 the logits equal the model's
            (eval mode) within 1e-5 relative.

    Returns:
        A module in eval mode, channels-last, on the model's device.

    Raises:
        ConfigError: unknown precision.
    """
    chosen = resolve_precision(precision, next(model.parameters()).device)
    network = FastNetwork(model).eval().requires_grad_(False)
    network.precision = chosen
    network.to(dtype=dtype_of(chosen))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network
