"""An export is compared with the network it came from, in its own runtime.

The reference is the float32 network as trained, not the form that was exported, so that a
mistake in any step between them shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cgrseg.data.color import MEAN, STD
from cgrseg.errors import WeightsError
from cgrseg.inference.exported import Size
from cgrseg.inference.exported_backend import ExportedBackend
from cgrseg.models import CGRSeg
from cgrseg.ops import upsample_argmax

# Pictures that differ, for each size and batch.
_LEAST_PICTURES = 3


@dataclass(frozen=True)
class Tolerance:
    """How far an export may be from the float32 network.

    Attributes:
        logits: largest difference over the largest logit.
        labels: smallest share 0..1 of pixels with the same label.
    """

    logits: float = 1e-3
    labels: float = 0.999


@dataclass(frozen=True)
class Check:
    """One size and batch on which export and network were compared.

    Attributes:
        size: height and width in pixels.
        batch: images at once.
        pictures: that were compared in all.
        logits: largest difference over the largest logit; None where the file gives labels.
        labels: share 0..1 of pixels with the same label; the worst of the batches.
    """

    size: Size
    batch: int
    pictures: int
    logits: float | None
    labels: float

    def within(self, tolerance: Tolerance) -> bool:
        """Whether both are; NaN never is."""
        near = self.logits is None or self.logits <= tolerance.logits
        return near and self.labels >= tolerance.labels

    def __str__(self) -> str:
        """One line."""
        shape = f"{self.batch} x {self.size[0]}x{self.size[1]}"
        apart = "" if self.logits is None else f"logits differ by {self.logits:.1e} at most, "
        return f"{shape}: {apart}labels equal on {100 * self.labels:.3f} %"


def verify(
    backend: ExportedBackend,
    model: CGRSeg,
    sizes: Sequence[Size],
    batches: Sequence[int],
    tolerance: Tolerance,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Check]:
    """Compare on pictures of all sizes and numbers at once.

    Args:
        backend: over the exported file.
        model: the float32 network, in eval mode.
        sizes: heights and widths.
        batches: images at once.
        tolerance: that every comparison must keep.
        tell: gets a line per comparison.

    Raises:
        WeightsError: out of tolerance.
    """
    checks: list[Check] = []
    for size in sizes:
        for batch in batches:
            rounds = -(-_LEAST_PICTURES // batch)
            pictures = sample_pictures(rounds * batch, size, seed=len(checks))
            inputs = normalised(pictures).split(batch)
            check = _worst([compare(backend, model, one) for one in inputs])
            tell(f"  {check}")
            checks.append(check)
    failed = [check for check in checks if not check.within(tolerance)]
    if failed:
        raise WeightsError(
            f"export of {backend.description.source} as {backend.description.kind}",
            found=f"{failed[0]}",
            expected=f"logits within {tolerance.logits:g} of the float32 network and labels "
            f"equal on at least {100 * tolerance.labels:g} %; no file was left",
            remedy="this is a fault of the export or of the runtime: update both, or choose "
            "another format",
        )
    return checks


def _worst(checks: Sequence[Check]) -> Check:
    """Comparisons of one size and batch as one; NaN stays NaN."""
    apart = [check.logits for check in checks if check.logits is not None]
    return Check(
        checks[0].size,
        checks[0].batch,
        sum(check.pictures for check in checks),
        float(np.max(apart)) if apart else None,
        float(np.min([check.labels for check in checks])),
    )


def compare(backend: ExportedBackend, model: CGRSeg, inputs: Tensor) -> Check:
    """Compare on one batch (N, 3, H, W)."""
    size: Size = (inputs.shape[2], inputs.shape[3])
    with torch.inference_mode():
        # One after another: no more memory for four images than for one.
        seen = backend.seen(inputs)
        whole = torch.cat([model(one) for one in seen.split(1)])
        if backend.description.gives == "labels":
            # Made inside the file, before padding is cut off.
            wanted = upsample_argmax(whole, (seen.shape[2], seen.shape[3]))
            wanted = wanted[:, : size[0], : size[1]]
            labels, apart = backend.labels(inputs), None
        else:
            expected = whole[:, :, : size[0] // 8, : size[1] // 8]
            wanted = upsample_argmax(expected, size)
            logits = backend.logits(inputs)
            labels = upsample_argmax(logits, size)
            apart = float((logits - expected).abs().max() / expected.abs().max())
    equal = float((labels.long() == wanted.long()).double().mean())
    return Check(size, len(inputs), len(inputs), apart, equal)


def sample_pictures(count: int, size: Size, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth pictures with edges and noise, uint8 RGB (count, H, W, 3)."""
    draws = np.random.default_rng(seed)
    coarse = torch.from_numpy(draws.uniform(0, 255, (count, 3, 7, 7)).astype(np.float32))
    blocks = torch.from_numpy(draws.uniform(-80, 80, (count, 3, 6, 6)).astype(np.float32))
    picture = F.interpolate(coarse, size=size, mode="bicubic") + F.interpolate(blocks, size=size)
    picture += torch.from_numpy(draws.normal(0, 6, picture.shape).astype(np.float32))
    return picture.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def normalised(pictures: NDArray[np.uint8]) -> Tensor:
    """Pictures (N, H, W, 3) as the network takes them, float32 (N, 3, H, W)."""
    tensor = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    return (tensor - mean) / std
