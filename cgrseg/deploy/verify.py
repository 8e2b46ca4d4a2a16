"""Comparison of an export, in its own runtime, with the network that it was made from.

The reference is the float32 network as trained, not the graph that was exported, so that a
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

from cgrseg.config.schema import TestConfig
from cgrseg.errors import WeightsError
from cgrseg.formats.description import Size
from cgrseg.inference.exported_backend import ExportedBackend
from cgrseg.inference.views import NetworkInput
from cgrseg.models import CGRSeg
from cgrseg.ops import upsample_argmax

# Different images for each size and batch size.
_LEAST_IMAGES = 3


@dataclass(frozen=True)
class Tolerance:
    """Largest accepted difference between an export and the float32 network.

    Attributes:
        logits: largest difference over the largest logit.
        labels: smallest share 0..1 of pixels with the same label.
    """

    logits: float = 1e-3
    labels: float = 0.999


HALF_PRECISION = Tolerance(logits=1e-2, labels=0.99)
"""For float16 weights and float16 arithmetic."""


@dataclass(frozen=True)
class Check:
    """Comparison of export and network at one size and batch size.

    Attributes:
        size: height and width in pixels.
        batch: batch size.
        images: number of compared images.
        logits: largest difference over the largest logit; None where the file gives labels.
        labels: share 0..1 of pixels with the same label, in the worst batch.
    """

    size: Size
    batch: int
    images: int
    logits: float | None
    labels: float

    def within(self, tolerance: Tolerance) -> bool:
        """Whether logits and labels are within tolerance; NaN never is."""
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
    """Compare at all sizes and batch sizes.

    Args:
        backend: the exported file.
        model: the float32 network, in eval mode.
        sizes: heights and widths.
        batches: batch sizes.
        tolerance: for every comparison.
        tell: called with a line per comparison.

    Raises:
        WeightsError: out of tolerance.
    """
    checks: list[Check] = []
    for size in sizes:
        for batch in batches:
            rounds = -(-_LEAST_IMAGES // batch)
            images = sample_inputs(rounds * batch, size, model.in_channels, seed=len(checks))
            parts = [compare(backend, model, one) for one in images.split(batch)]
            apart = [part.logits for part in parts if part.logits is not None]
            check = Check(
                size,
                batch,
                len(images),
                float(np.max(apart)) if apart else None,  # NaN stays NaN
                float(np.min([part.labels for part in parts])),
            )
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


def sample_images(count: int, size: Size, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth images with edges and noise, uint8 RGB (count, H, W, 3)."""
    draws = np.random.default_rng(seed)
    coarse = torch.from_numpy(draws.uniform(0, 255, (count, 3, 9, 9)).astype(np.float32))
    blocks = torch.from_numpy(draws.uniform(-60, 60, (count, 3, 5, 5)).astype(np.float32))
    images = F.interpolate(coarse, size=size, mode="bicubic") + F.interpolate(blocks, size=size)
    images += torch.from_numpy(draws.normal(0, 4, images.shape).astype(np.float32))
    return images.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def sample_inputs(count: int, size: Size, channels: int, seed: int = 0) -> Tensor:
    """Network input (count, channels, H, W) of :func:`sample_images`, drawn for 3 at a time."""
    parts = [
        as_input(sample_images(count, size, seed + 1000 * part))
        for part in range(-(-channels // 3))
    ]
    return torch.cat(parts, dim=1)[:, :channels]


def as_input(images: NDArray[np.uint8]) -> Tensor:
    """Images at their own size as network input: uint8 RGB (N, H, W, 3) to (N, 3, H, W)."""
    config = TestConfig(resize="none")
    return torch.cat([NetworkInput.of(image, config).tensor for image in images])
