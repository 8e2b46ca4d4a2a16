"""What is timed: the amounts of work, and the pictures that they are done on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from cgrseg.inference.segmenting import one_torch_thread
from cgrseg.reporting.bench.subjects import Ours, Setting, Subject, as_input, predict
from cgrseg.reporting.bench.timing import CLOCKS, Clock, stopwatch

Work = Literal["network", "labels", "photo"]
WORKS: dict[Work, str] = {
    "network": "input tensor to logits",
    "labels": "input tensor to label map",
    "photo": "image file to label map",
}
"""Amounts of work that are timed."""


def sample_photos(count: int, size: tuple[int, int]) -> np.ndarray:
    """Smooth pictures with edges and a little noise, uint8 RGB (count, H, W, 3)."""
    height, width = size
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (count, 3, 9, 9)).astype(np.float32))
    smooth = nn.functional.interpolate(coarse, size=size, mode="bicubic")
    patches = torch.from_numpy(rng.uniform(-60, 60, (count, 3, 5, 5)).astype(np.float32))
    edges = nn.functional.interpolate(patches, size=size, mode="nearest")
    noise = torch.from_numpy(rng.normal(0, 4, (count, 3, height, width)).astype(np.float32))
    pictures = (smooth + edges + noise).clamp(0, 255).to(torch.uint8)
    return pictures.permute(0, 2, 3, 1).contiguous().numpy()


def way(subject: Subject, work: Work, photos: np.ndarray, tensors: Tensor) -> Callable[[], object]:
    """The work as a function without arguments, done as :class:`cgrseg.Predictor` does it."""
    pixels = len(photos) * photos.shape[1] * photos.shape[2]

    def run() -> object:
        with contextlib.ExitStack() as ends:
            if isinstance(subject, Ours):
                ends.enter_context(one_torch_thread(subject.backend, pixels))
            if work == "photo":
                return predict(subject, photos, tensors.device)
            with torch.inference_mode():
                logits = subject.logits(tensors)
                return logits if work == "network" else subject.decode(logits)

    return run


def stopwatches(
    subjects: Mapping[str, Subject], work: Work, batch: int, setting: Setting, clock: Clock
) -> dict[str, Callable[[], float]]:
    """Subjects in this process by their names, ready to be timed at the same pictures."""
    photos = sample_photos(batch, setting.size)
    tensors = as_input(photos).to(setting.device)
    return {
        name: stopwatch(way(subject, work, photos, tensors), setting.device, CLOCKS[clock])
        for name, subject in subjects.items()
    }
