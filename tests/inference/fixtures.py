"""Small stand-ins that compute real logits without the cost of the network."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cgrseg.data.color import MEAN, STD
from cgrseg.formats.description import Description
from cgrseg.inference.backends import Backend


class BlockBackend(Backend):
    """Logits that are a fixed mixture of the colours of each 8x8 block and its neighbour.

    Deterministic, cheap, and different for every image, so that windows, flips and scales
    put in the wrong place change the labels.
    """

    def __init__(self, num_classes: int = 7) -> None:
        generator = torch.Generator().manual_seed(5)
        self.num_classes = num_classes
        self.device = torch.device("cpu")
        self.mixture = torch.randn(num_classes, 3, generator=generator)
        self.seen: list[tuple[int, ...]] = []

    def logits(self, batch: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, K, H / 8, W / 8)."""
        assert batch.shape[2] % 32 == 0 and batch.shape[3] % 32 == 0
        self.seen.append(tuple(batch.shape))
        cells = F.avg_pool2d(batch, 8)
        # The neighbour at the left counts too, so that a window sees its own border.
        shifted = F.pad(cells, (1, 0))[..., :-1]
        mixed = torch.einsum("kc,nchw->nkhw", self.mixture, cells)
        return mixed + torch.einsum("kc,nchw->nkhw", self.mixture.flip(0), shifted)


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth random picture, uint8 RGB."""
    generator = np.random.default_rng(seed)
    coarse = torch.from_numpy(generator.uniform(0, 255, (1, 3, height // 24 + 2, width // 24 + 2)))
    fine = F.interpolate(coarse, size=(height, width), mode="bicubic")
    return fine[0].clamp(0, 255).permute(1, 2, 0).numpy().astype(np.uint8)


def description(**changes: Any) -> Description:
    """What an exported file of seven classes says about itself."""
    values: dict[str, Any] = {
        "kind": "onnx",
        "variant": "cgrseg_t",
        "num_classes": 7,
        "classes": list("abcdefg"),
        "palette": [(k, k, k) for k in range(7)],
        "mean": MEAN,
        "std": STD,
        "test": None,
        "sizes": [(64, 96)],
        "batch": None,
        "takes": "normalised",
        "gives": "logits",
        "precision": "fp32",
        "source": "x.pth",
        "source_digest": "",
        "version": "0",
    }
    return Description(**{**values, **changes})
