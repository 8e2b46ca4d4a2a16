"""Added loss terms: one function and one entry of :data:`TERMS` each.

An entry gives the term its setting `loss.<name>_weight` (:mod:`cgrseg.config.schema`), its column
`loss_<name>` in `metrics.csv`, and its place in the sum (:mod:`cgrseg.training.losses`).  The
settings are read without PyTorch, so functions import it when they run.

    N batch   K classes   H, W size of the label
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_DICE_SMOOTHING = 1.0
_FOCAL_EXPONENT = 2.0


@dataclass(frozen=True)
class LossTerm:
    """A loss term, added to the cross-entropy with a weight.

    Attributes:
        compute: function of logits (N, K, H, W) at the label's size, label (N, H, W) and
            ignore index, to a scalar.
        description: description of the weight's setting.
    """

    compute: Callable[[Tensor, Tensor, int], Tensor]
    description: str


def dice_loss(logits: Tensor, label: Tensor, ignore_index: int) -> Tensor:
    """One minus the soft Dice overlap (Milletari et al. 2016), averaged over the present classes.

    Args:
        logits: (N, K, H, W), at the label's size.
        label: (N, H, W) integers.
        ignore_index: label value whose pixels count for no class.

    Returns:
        A scalar in [0, 1]; 0 without labeled pixels.
    """
    from torch.nn import functional

    labeled = label != ignore_index
    truth = functional.one_hot(label.masked_fill(~labeled, 0), logits.shape[1])
    truth = truth.permute(0, 3, 1, 2) * labeled.unsqueeze(1)  # (N, K, H, W)
    share = logits.softmax(dim=1) * labeled.unsqueeze(1)
    axes = (0, 2, 3)
    both = (share * truth).sum(dim=axes)
    either = share.sum(dim=axes) + truth.sum(dim=axes)
    overlap = (2.0 * both + _DICE_SMOOTHING) / (either + _DICE_SMOOTHING)
    occurs = truth.sum(dim=axes) > 0
    return ((1.0 - overlap) * occurs).sum() / occurs.sum().clamp(min=1)


def lovasz_loss(logits: Tensor, label: Tensor, ignore_index: int) -> Tensor:
    """Lovász-softmax (Berman et al. 2018), averaged over the present classes.

    A continuous form of one minus the intersection over union of the whole batch: the errors of a
    class in falling order, each weighted by how much the intersection over union falls when its
    pixel is wrong besides those before it.

    Args:
        logits: (N, K, H, W), at the label's size.
        label: (N, H, W) integers.
        ignore_index: label value whose pixels count for no class.

    Returns:
        A scalar in [0, 1]; 0 without labeled pixels.
    """
    import torch

    labeled = label != ignore_index
    truth = label[labeled]  # (P,)
    shares = logits.softmax(dim=1).movedim(1, -1)[labeled]  # (P, K)
    losses = [logits.sum() * 0.0]
    for number in truth.unique().tolist():
        inside = (truth == number).to(shares.dtype)
        errors, order = (inside - shares[:, number]).abs().sort(descending=True)
        inside = inside[order]
        missed = inside.cumsum(0)  # with all pixels up to here wrong
        union = inside.sum() + (1 - inside).cumsum(0)
        lost = 1 - (inside.sum() - missed) / union  # one minus intersection over union
        losses.append(errors @ torch.diff(lost, prepend=lost.new_zeros(1)))
    return torch.stack(losses).sum() / max(1, len(losses) - 1)


def focal_loss(logits: Tensor, label: Tensor, ignore_index: int) -> Tensor:
    """Cross-entropy times the squared probability that was missed (Lin et al. 2017, gamma 2).

    Args:
        logits: (N, K, H, W), at the label's size.
        label: (N, H, W) integers.
        ignore_index: label value of pixels without a loss.

    Returns:
        A scalar, at least 0, averaged over the labeled pixels; 0 without any.
    """
    from torch.nn import functional

    loss = functional.cross_entropy(logits, label, ignore_index=ignore_index, reduction="none")
    missed = -(-loss).expm1()  # one minus the probability of the true class; 0 where ignored
    count = (label != ignore_index).sum().clamp(min=1)
    return (missed**_FOCAL_EXPONENT * loss).sum() / count


TERMS: dict[str, LossTerm] = {
    "dice": LossTerm(
        dice_loss, "Weight of an added Dice loss over the classes that occur; 0: none."
    ),
    "lovasz": LossTerm(
        lovasz_loss,
        "Weight of an added Lovász-softmax loss over the classes that occur; 0: none.",
    ),
    "focal": LossTerm(
        focal_loss, "Weight of an added focal loss over the labeled pixels; 0: none."
    ),
}
