"""Training loss of the SSA head (:mod:`cgrseg.models.ssa_head`).

Paper: SSA-Seg, arXiv 2405.06525; weights and details: `models/decode_heads/cgr_head_ssa.py` and
`models/losses/ssa_loss.py` of its published repository.  The terms beside the loss of the
prediction:

* `initial`, `guided`: the same loss on the initial and the guided prediction, averaged over the
  labeled pixels whatever `loss.average` says (published: their own cross-entropy);
* `dice`: Dice of both predictions, per image and class that occurs in it;
* `response`: cross-entropy between the prediction and a target of half guided prediction, half
  label; cells count by the entropy of the guided prediction; cells at boundaries and inside are
  averaged apart, then the classes that occur;
* `semantic`: the excess of a prototype's similarity to other classes over the guided prototypes';
* `spatial`: cross-entropy over the channels of the spatial prototypes.

Ours, where the published code has a detail of its framework or none: logits are upsampled without
aligned corners, and class weights and added terms of `loss` hold for all three predictions; the
Dice leaves ignored pixels out, and averages over the masks of one process; a cell is at a boundary
where a neighbor among eight has another label (published: OpenCV's Canny filter, without the six
outermost cells, widened by one cell).

    N batch   K classes   M head width   h, w size of the logits   H, W size of the label
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cgrseg.config.schema import LossConfig
from cgrseg.models.ssa_head import EPSILON, LOGIT_SCALE, SSAOutput, labels_at
from cgrseg.training.losses import SegmentationLoss, ssa_weights, upsample_logits

_MASKS_AT_ONCE = 16
_DICE_SMOOTHING = 1.0


class SSALoss(nn.Module):
    """Loss of all outputs of the SSA head.

    Args:
        config: terms and weights.
        num_classes: K.
        ignore_index: label value without a loss.

    Raises:
        ConfigError: the number of class weights is not K.
    """

    def __init__(self, config: LossConfig, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__()
        self.of_prediction = SegmentationLoss(config, num_classes, ignore_index)
        labeled = config.model_copy(update={"average": "valid"})
        self.of_others = SegmentationLoss(labeled, num_classes, ignore_index)
        self.weights = ssa_weights(config)
        self.ignore_index = ignore_index

    def forward(self, output: SSAOutput, label: Tensor) -> dict[str, Tensor]:
        """Compute every term.

        Args:
            output: of :meth:`cgrseg.models.CGRSeg.forward_with_truth`.
            label: (N, H, W) integers, 0..K-1 or the ignore index.

        Returns:
            Scalars by name; `loss` is the weighted sum, the one to differentiate.
        """
        output = SSAOutput(*(v if v.dtype == torch.float64 else v.float() for v in output))
        terms: dict[str, Tensor] = self.of_prediction(output.logits, label)
        total = terms["loss"]
        for name, weight in self.weights.items():
            terms[f"loss_ssa_{name}"] = self._term(name, output, label)
            total = total + weight * terms[f"loss_ssa_{name}"]
        return {**terms, "loss": total}

    def _term(self, name: str, output: SSAOutput, label: Tensor) -> Tensor:
        if name == "initial":
            return self.of_others(output.initial, label)["loss"]
        if name == "guided":
            return self.of_others(output.guided_logits, label)["loss"]
        if name == "dice":
            own = mask_dice_loss(output.logits, label, self.ignore_index)
            return own + mask_dice_loss(output.guided_logits, label, self.ignore_index)
        if name == "response":
            return response_loss(output.logits, output.guided_logits, label, self.ignore_index)
        if name == "semantic":
            return semantic_loss(output.semantic, output.guided_semantic)
        return spatial_loss(output.spatial, output.guided_spatial)


def mask_dice_loss(logits: Tensor, label: Tensor, ignore_index: int) -> Tensor:
    """One minus the Dice overlap of the sigmoid, averaged over the masks: image and class in it.

    Only the logits of classes that occur in the image are upsampled, some masks at a time, and
    once more in the backward pass.

    Args:
        logits: (N, K, h, w).
        label: (N, H, W) integers.
        ignore_index: label value of pixels that do not count.

    Returns:
        A scalar in [0, 1]; 0 without labeled pixels.
    """
    count = logits.shape[1]
    ids = label.masked_fill(label == ignore_index, count).flatten(1)
    occurs = torch.zeros(len(ids), count + 1, dtype=torch.bool, device=ids.device)
    images, classes = occurs.scatter(1, ids, True)[:, :count].nonzero(as_tuple=True)
    total = logits.sum() * 0.0

    def losses(planes: Tensor, image: Tensor, number: Tensor) -> Tensor:
        labels = label[image]  # (m, H, W)
        size = (label.shape[-2], label.shape[-1])
        share = upsample_logits(planes.unsqueeze(1), size).squeeze(1).sigmoid()
        share = share.masked_fill(labels == ignore_index, 0.0)
        truth = labels == number[:, None, None]
        both = (share * truth).sum(dim=(1, 2))
        either = share.sum(dim=(1, 2)) + truth.sum(dim=(1, 2))
        overlap = (2.0 * both + _DICE_SMOOTHING) / (either + _DICE_SMOOTHING)
        return (1.0 - overlap).sum()

    for image, number in zip(
        images.split(_MASKS_AT_ONCE), classes.split(_MASKS_AT_ONCE), strict=True
    ):
        planes = logits[image, number]
        total = total + checkpoint(
            losses, planes, image, number, use_reentrant=False, preserve_rng_state=False
        )
    return total / max(1, len(images))


def response_loss(logits: Tensor, guided: Tensor, label: Tensor, ignore_index: int) -> Tensor:
    """Distillation of the guided prediction, cell by cell.

    Args:
        logits: (N, K, h, w).
        guided: (N, K, h, w); gets no gradient.
        label: (N, H, W) integers.
        ignore_index: label value of cells that do not count.

    Returns:
        A scalar, at least 0; 0 without labeled cells.
    """
    count = logits.shape[1]
    label = labels_at(label, logits.shape[2:])
    labeled = label != ignore_index
    boundary = is_boundary(label)
    label = label.masked_fill(~labeled, 0)
    probability = guided.detach().softmax(dim=1)
    logarithm = logits.log_softmax(dim=1)
    of_label = logarithm.gather(1, label.unsqueeze(1)).squeeze(1)
    loss = -0.5 * ((probability * logarithm).sum(dim=1) + of_label)  # (N, h, w)
    weight = -(probability * (probability + EPSILON).log()).sum(dim=1) * labeled
    group = (2 * label + boundary).flatten()  # a class inside, or at its boundaries
    zeros = logits.new_zeros(2 * count)
    sums = zeros.index_add(0, group, (weight * loss).flatten())
    means = sums / (zeros.index_add(0, group, weight.flatten()) + EPSILON)
    occurs = zeros.index_add(0, group, labeled.flatten().to(zeros.dtype)).view(count, 2).sum(1) > 0
    return (means.view(count, 2).mean(dim=1) * occurs).sum() / occurs.sum().clamp(min=1)


def is_boundary(label: Tensor) -> Tensor:
    """Whether one of the eight neighbors has another label: (N, h, w) to booleans."""
    values = label.unsqueeze(1).float()
    largest = F.max_pool2d(values, 3, stride=1, padding=1)
    smallest = -F.max_pool2d(-values, 3, stride=1, padding=1)
    return (largest != smallest).squeeze(1)


def semantic_loss(prototypes: Tensor, guided: Tensor) -> Tensor:
    """Similarities to other classes above those of the guided prototypes, summed per class.

    Args:
        prototypes: (N, K, M).
        guided: (1, K, M); gets no gradient.

    Returns:
        A scalar in [0, 1].
    """
    excess = (_relations(prototypes) - _relations(guided.detach())).relu()  # (N, K, K)
    itself = torch.eye(excess.shape[1], dtype=torch.bool, device=excess.device)
    return excess.masked_fill(itself, 0.0).sum(dim=2).mean()


def _relations(prototypes: Tensor) -> Tensor:
    """Softmax over the scaled cosines of each class with all, which get no gradient."""
    unit = F.normalize(prototypes, dim=2, eps=EPSILON)
    return (LOGIT_SCALE * unit @ unit.detach().transpose(1, 2)).softmax(dim=2)


def spatial_loss(prototypes: Tensor, guided: Tensor) -> Tensor:
    """Cross-entropy over channels between prototypes (N, K, M); guided ones get no gradient."""
    return -(guided.detach().softmax(dim=2) * prototypes.log_softmax(dim=2)).sum(dim=2).mean()
