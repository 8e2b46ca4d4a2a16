"""The training loss: cross-entropy, and the added terms of :mod:`cgrseg.loss_terms`.

Published: cross-entropy on logits upsampled (bilinear, align_corners False) to the label's size;
ignored pixels give zero, and the average is over *all* pixels.  Our options, off by default: the
other average, class weights, label smoothing, online hard example mining (OHEM, Shrivastava et
al. 2016), added terms, and the same loss on the head's first prediction, from which the class
centers are built.

Cross-entropy never builds the upsampled logits, which take 157 MB per image at 512x512 and 150
classes (:mod:`cgrseg.ops.cross_entropy`, same value and gradient).  OHEM and the added terms need
full-size logits.  So does float64, which is for checks: there each operation is PyTorch's own.

    N batch   K classes   h, w size of the logits   H, W size of the label
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from cgrseg.config.schema import LossConfig
from cgrseg.errors import ConfigError
from cgrseg.loss_terms import TERMS
from cgrseg.ops import upsample_accuracy, upsample_cross_entropy


def upsample_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize logits (N, K, h, w) to (N, K, H, W), at least in float32."""
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def pixel_accuracy(logits: Tensor, label: Tensor, ignore_index: int) -> Tensor:
    """Percentage of the labeled pixels whose best class is the true one.

    Args:
        logits: (N, K, h, w), compared at the label's size without full-size logits.
        label: (N, H, W) integers.
        ignore_index: label value that does not count.

    Returns:
        A scalar in [0, 100]; 0 without labeled pixels.
    """
    return upsample_accuracy(logits, label, ignore_index=ignore_index)


class SegmentationLoss(nn.Module):
    """The training loss for logits at 1/8 of the label's size.

    Args:
        config: terms, weights and average.
        num_classes: K.
        ignore_index: label value without a loss.

    Raises:
        ConfigError: the number of class weights is not K.
    """

    class_weights: Tensor | None

    def __init__(self, config: LossConfig, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        weights = config.class_weights
        if isinstance(weights, str):
            raise ConfigError(
                "loss.class_weights",
                found=f"{weights!r}, without a count of the training labels",
                expected="weights as numbers: there is no folder of labels to count",
                remedy="give one weight per class in id order, or leave the setting out",
            )
        if weights is not None and len(weights) != num_classes:
            raise ConfigError(
                "loss.class_weights",
                found=f"{len(weights)} numbers",
                expected=f"{num_classes}, one per class of the dataset",
                remedy="give one weight per class in id order, or leave the setting out",
            )
        self.register_buffer(
            "class_weights", None if weights is None else torch.tensor(weights), persistent=False
        )

    def forward(
        self, logits: Tensor, label: Tensor, initial: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Compute every term.

        Args:
            logits: (N, K, h, w), the network's prediction.
            label: (N, H, W) integers, 0..K-1 or the ignore index.
            initial: (N, K, h, w), the head's first prediction, when it is trained too.

        Returns:
            Scalars by the names of :func:`loss_columns`; `loss` is the weighted sum, the one to
            differentiate.
        """
        terms, total = self._terms(logits, label)
        if initial is not None and self.config.initial_weight > 0:
            _, terms["loss_initial"] = self._terms(initial, label)
            total = total + self.config.initial_weight * terms["loss_initial"]
        return {"loss": total, **terms}

    @property
    def needs_full_size(self) -> bool:
        """Whether a term is chosen that works on upsampled logits."""
        return self.config.ohem_threshold is not None or bool(added_weights(self.config))

    def _terms(self, logits: Tensor, label: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Terms of one prediction by name, and their weighted sum."""
        if not self.needs_full_size and logits.dtype != torch.float64:
            total = self._fused_cross_entropy(logits, label)
            return {"loss_ce": total}, total
        logits = upsample_logits(logits, (label.shape[-2], label.shape[-1]))  # (N, K, H, W)
        total = self._cross_entropy(logits, label)
        terms = {"loss_ce": total}
        for name, weight in added_weights(self.config).items():
            terms[f"loss_{name}"] = TERMS[name].compute(logits, label, self.ignore_index)
            total = total + weight * terms[f"loss_{name}"]
        return terms, total

    def _fused_cross_entropy(self, logits: Tensor, label: Tensor) -> Tensor:
        # With class weights, "valid" of the operation divides by weights, as PyTorch does; this
        # loss divides by pixels.
        summed = upsample_cross_entropy(
            logits,
            label,
            ignore_index=self.ignore_index,
            weight=self.class_weights,
            label_smoothing=self.config.label_smoothing,
            average="sum",
        )
        if self.config.average == "valid":
            return summed / (label != self.ignore_index).sum().clamp(min=1)
        return summed / label.numel()

    def _cross_entropy(self, logits: Tensor, label: Tensor) -> Tensor:
        weights = self.class_weights
        per_pixel = functional.cross_entropy(
            logits,
            label,
            weight=None if weights is None else weights.to(logits.dtype),
            ignore_index=self.ignore_index,
            label_smoothing=self.config.label_smoothing,
            reduction="none",
        )  # (N, H, W), zero where ignored
        if self.config.ohem_threshold is not None:
            hard = hard_pixels(
                logits.detach(),
                label,
                threshold=self.config.ohem_threshold,
                min_pixels=self.config.ohem_min_pixels,
                ignore_index=self.ignore_index,
            )
            return (per_pixel * hard).sum() / hard.sum().clamp(min=1)
        if self.config.average == "valid":
            return per_pixel.sum() / (label != self.ignore_index).sum().clamp(min=1)
        return per_pixel.mean()


def hard_pixels(
    logits: Tensor, label: Tensor, *, threshold: float, min_pixels: int, ignore_index: int
) -> Tensor:
    """Hard pixels: the probability of their true class is below `threshold`.

    With fewer than `min_pixels` per image (over the whole batch), the threshold rises until
    that many are kept, or all labeled pixels.

    Args:
        logits: (N, K, H, W), at the label's size.
        label: (N, H, W) integers.
        threshold: probability in [0, 1].
        min_pixels: minimum number of pixels per image.
        ignore_index: label value of pixels that are never kept.

    Returns:
        (N, H, W) booleans.
    """
    labeled = label != ignore_index
    target = label.masked_fill(~labeled, 0).unsqueeze(1)
    truth = logits.softmax(dim=1).gather(1, target).squeeze(1)  # (N, H, W)
    known = truth[labeled]
    if known.numel() == 0:
        return labeled
    wanted = min(min_pixels * label.shape[0], known.numel())
    bar = known.kthvalue(wanted).values
    return labeled & ((truth < threshold) | (truth <= bar))


def distillation_loss(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of a teacher's class probabilities, averaged over the pixels.

    Hinton et al. 2015: both logits are divided by the temperature, and the divergence is multiplied
    by its square, so that the size of the gradient hardly depends on it.

    Args:
        logits: (N, K, h, w) of the network under training.
        targets: (N, K, h, w) of the teacher, without gradient.
        temperature: above 0; larger ones compare small probabilities too.

    Returns:
        A scalar, at least 0; 0, with gradient 0, where both are equal.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    found = (logits / temperature).log_softmax(dim=1)
    wanted = (targets.to(logits.dtype) / temperature).log_softmax(dim=1)
    summed = functional.kl_div(found, wanted, reduction="sum", log_target=True)
    return summed * temperature**2 * logits.shape[1] / logits.numel()


def attention_loss(features: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Squared distance of two networks' attention maps (Zagoruyko and Komodakis 2017).

    The map of an image is the mean square over the channels of each place, scaled to a Euclidean
    norm of 1: networks with different numbers of channels can be compared.

    Args:
        features: (N, C_i, h_i, w_i) of each scale, of the network under training.
        targets: (N, D_i, h_i, w_i) of the teacher, without gradient.

    Returns:
        A scalar in [0, 2], averaged over scales and images; 0, with gradient 0, where the maps are
        equal.
    """

    def maps(values: Tensor, dtype: torch.dtype) -> Tensor:
        return functional.normalize(values.to(dtype).square().mean(dim=1).flatten(1), dim=1)

    distances = []
    for found, wanted in zip(features, targets, strict=True):
        dtype = torch.promote_types(found.dtype, torch.float32)
        distance = (maps(found, dtype) - maps(wanted, dtype)).square()  # (N, h * w)
        distances.append(distance.sum(dim=1).mean())
    return torch.stack(distances).mean()


def loss_columns(config: LossConfig, head: str = "dpg", *, teacher: bool = False) -> list[str]:
    """Names of the terms of a run, with those of its head, and of a teacher where it has one."""
    columns = ["loss", "loss_ce", *(f"loss_{name}" for name in added_weights(config))]
    further = {"loss_initial": config.initial_weight}
    if head == "ssa":
        further = {f"loss_ssa_{name}": weight for name, weight in ssa_weights(config).items()}
    if teacher:
        further |= {"loss_distill": config.distill_weight, "loss_features": config.distill_features}
    return [*columns, *(name for name, weight in further.items() if weight > 0)]


def added_weights(config: LossConfig) -> dict[str, float]:
    """Weights of the added loss terms that are used, by name."""
    weights = {name: float(getattr(config, f"{name}_weight")) for name in TERMS}
    return {name: weight for name, weight in weights.items() if weight > 0}


def ssa_weights(config: LossConfig) -> dict[str, float]:
    """Weights of the SSA head's loss terms that are used, by name."""
    return {
        name.removesuffix("_weight"): float(weight) for name, weight in config.ssa if weight > 0
    }
