"""What the network is trained to make small.

Published: cross-entropy on logits upsampled (bilinear, corners not aligned) to the
label's size, ignored pixels giving zero, averaged over *all* pixels, the ignored
ones included.  Everything else here is an option of ours, off by default: the other
average, class weights, label smoothing, hard pixels only (OHEM, Shrivastava et al.
2016), Dice (Milletari et al. 2016), and the same loss on the head's first
prediction, from which the class centres are built.

Cross-entropy, of either prediction, never makes the upsampled logits: at 512x512 and 150
classes they take 157 MB per image, several times over (:mod:`cgrseg.ops.cross_entropy`,
same value and gradient).  OHEM ranks pixels and Dice sums over them before either has a
gradient, so these two options work on full-size logits.  So does float64, which is for
checks: there every operation is PyTorch's own, and comparable to the last bit.

    N batch   K classes   h, w size of the logits   H, W size of the label
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cgrseg.config.schema import LossConfig
from cgrseg.errors import ConfigError
from cgrseg.ops import upsample_accuracy, upsample_cross_entropy

_DICE_SMOOTHING = 1.0


def upsample_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize logits (N, K, h, w) to (N, K, H, W), at least in float32."""
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def pixel_accuracy(logits: Tensor, label: Tensor, ignore_index: int) -> Tensor:
    """Percent of the labelled pixels whose strongest class is the true one.

    Args:
        logits: (N, K, h, w), compared at the label's size, which is never made in full.
        label: (N, H, W) integers.
        ignore_index: label value that does not count.

    Returns:
        A scalar in [0, 100]; 0 when nothing is labelled.
    """
    return upsample_accuracy(logits, label, ignore_index=ignore_index)


class SegmentationLoss(nn.Module):
    """The training loss for logits at 1/8 of the label's size.

    Args:
        config: which terms, and how they are averaged.
        num_classes: K; class weights must have as many entries.
        ignore_index: label value without a loss.

    Raises:
        ConfigError: when the number of class weights is not K.
    """

    class_weights: Tensor | None

    def __init__(self, config: LossConfig, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        weights = config.class_weights
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
            Scalars by name: `loss` (their weighted sum, the one to differentiate),
            `loss_ce`, and `loss_dice` and `loss_initial` where they are used.
        """
        terms = self._terms(logits, label)
        total = terms["loss_ce"]
        if "loss_dice" in terms:
            total = total + self.config.dice_weight * terms["loss_dice"]
        if initial is not None and self.config.initial_weight > 0:
            first = self._terms(initial, label)
            terms["loss_initial"] = first["loss_ce"]
            if "loss_dice" in first:
                terms["loss_initial"] = (
                    first["loss_ce"] + self.config.dice_weight * first["loss_dice"]
                )
            total = total + self.config.initial_weight * terms["loss_initial"]
        return {"loss": total, **terms}

    @property
    def needs_full_size(self) -> bool:
        """Whether a term is chosen that works on upsampled logits."""
        return self.config.ohem_threshold is not None or self.config.dice_weight > 0

    def _terms(self, logits: Tensor, label: Tensor) -> dict[str, Tensor]:
        if not self.needs_full_size and logits.dtype != torch.float64:
            return {"loss_ce": self._fused_cross_entropy(logits, label)}
        logits = upsample_logits(logits, (label.shape[-2], label.shape[-1]))  # (N, K, H, W)
        terms = {"loss_ce": self._cross_entropy(logits, label)}
        if self.config.dice_weight > 0:
            terms["loss_dice"] = dice_loss(logits, label, self.ignore_index)
        return terms

    def _fused_cross_entropy(self, logits: Tensor, label: Tensor) -> Tensor:
        # With class weights the operation's own "valid" divides by weights, as PyTorch does;
        # this loss divides by pixels.
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
    """Which pixels are hard: their true class gets less than `threshold`.

    When fewer than `min_pixels` per image (over the whole batch together) are, the
    bar rises until that many are kept, or all labelled ones.

    Args:
        logits: (N, K, H, W), at the label's size.
        label: (N, H, W) integers.
        threshold: probability in [0, 1].
        min_pixels: pixels per image to keep at least.
        ignore_index: label value that is never kept.

    Returns:
        (N, H, W) booleans.
    """
    labelled = label != ignore_index
    target = label.masked_fill(~labelled, 0).unsqueeze(1)
    truth = logits.softmax(dim=1).gather(1, target).squeeze(1)  # (N, H, W)
    known = truth[labelled]
    if known.numel() == 0:
        return labelled
    wanted = min(min_pixels * label.shape[0], known.numel())
    bar = known.kthvalue(wanted).values
    return labelled & ((truth < threshold) | (truth <= bar))


def dice_loss(logits: Tensor, label: Tensor, ignore_index: int) -> Tensor:
    """One minus the soft Dice overlap, averaged over the classes of this batch's labels.

    Args:
        logits: (N, K, H, W), at the label's size.
        label: (N, H, W) integers.
        ignore_index: label value whose pixels count for no class.

    Returns:
        A scalar in [0, 1]; 0 when nothing is labelled.
    """
    labelled = label != ignore_index
    truth = functional.one_hot(label.masked_fill(~labelled, 0), logits.shape[1])
    truth = truth.permute(0, 3, 1, 2) * labelled.unsqueeze(1)  # (N, K, H, W)
    share = logits.softmax(dim=1) * labelled.unsqueeze(1)
    axes = (0, 2, 3)
    both = (share * truth).sum(dim=axes)
    either = share.sum(dim=axes) + truth.sum(dim=axes)
    overlap = (2.0 * both + _DICE_SMOOTHING) / (either + _DICE_SMOOTHING)
    occurs = truth.sum(dim=axes) > 0
    return ((1.0 - overlap) * occurs).sum() / occurs.sum().clamp(min=1)


def loss_columns(config: LossConfig) -> list[str]:
    """Names of the terms that :class:`SegmentationLoss` returns."""
    columns = ["loss", "loss_ce"]
    if config.dice_weight > 0:
        columns.append("loss_dice")
    if config.initial_weight > 0:
        columns.append("loss_initial")
    return columns
