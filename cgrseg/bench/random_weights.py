"""Random weights that behave like trained ones, for measuring networks without a checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor

from cgrseg.deploy.verify import sample_inputs
from cgrseg.models import CGRSeg
from cgrseg.models.ssa_head import SSAHead


def draw_weights(model: CGRSeg, seed: int = 0) -> CGRSeg:
    """Give a new network weights as varied as trained ones, in place.

    New layer scales are so small that most of the network adds nothing, which would make every
    comparison of results look too good.  Equal seeds give equal weights, so that the compiled
    network is found in the cache again.
    """
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            leaf = name.rpartition(".")[2]
            if leaf in ("running_mean", "bias"):
                value.normal_(0, 0.1, generator=draws)
            elif leaf == "running_var" or (leaf == "weight" and value.ndim not in (2, 4)):
                value.uniform_(0.5, 1.5, generator=draws)  # of norms
            elif leaf == "gamma" or leaf.startswith("layer_scale_"):
                value.uniform_(0.05, 0.2, generator=draws)
            elif leaf == "attention_biases_seg":
                value.normal_(0, 1, generator=draws)
            elif leaf == "weight":
                value.normal_(0, 0.7 / value[0].numel() ** 0.5, generator=draws)
    _balance_classes(model.eval())
    return model


def _balance_classes(model: CGRSeg) -> None:
    """Move the classes closer together until label maps are as varied as real ones.

    One class could win everywhere, and nothing would be left to decode.  So the classifier's
    bias takes away half, then three quarters and so on of the mean difference between the classes
    over an image, until at least a tenth of the cells lie between two classes.  The logits of the
    SSA head are cosines, without a bias: there the mean of the compared features becomes 0.
    """
    image = sample_inputs(1, (512, 512), model.in_channels)
    image = image.to(next(model.parameters()).device)
    head = model.decode_head
    if isinstance(head, SSAHead):
        with torch.no_grad():
            x = head.linear_fuse(head.reconstruct(model.backbone(image)[1:]))
            mean = (x + head.get_feat_pos(x)).mean(dim=(0, 2, 3))
            head.get_parameter("get_feat_pos.bias").sub_((mean * 256).round() / 256)
        return
    bias = model.get_parameter("decode_head.conv_seg.bias")
    with torch.inference_mode():
        logits = model(image)
        offset = logits.mean(dim=(2, 3), keepdim=True)
        taken = next(
            (t for t in (0.0, 0.5, 0.75, 0.875) if boundary_share(logits - t * offset) >= 0.1), 1.0
        )
    with torch.no_grad():
        # Rounded, so that the sum does not depend on the order of its terms.
        bias.sub_((taken * offset.flatten() * 256).round() / 256)


def boundary_share(logits: Tensor) -> float:
    """Share of the cells between four logits whose best classes are not the same."""
    winners = logits.argmax(dim=1)
    corners = torch.stack(
        [winners[:, i : i - 1 or None, j : j - 1 or None] for i in (0, 1) for j in (0, 1)]
    )
    return float((corners != corners[0]).any(0).float().mean())
