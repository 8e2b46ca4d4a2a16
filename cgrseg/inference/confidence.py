"""Confidences in 8 bits: a gray PNG beside each label map.

Level k stands for the confidences from `STEPS[k]` up to `STEPS[k + 1]`.  Steps are 0.01 wide up to
0.9, 0.0025 up to 0.99, 0.00025 up to 0.999 and so on to 0.99999: most pixels of a trained network
lie close to 1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cgrseg.data.label_files import write_label_png

STEPS: NDArray[np.float64] = np.concatenate(
    [np.arange(90) / 100] + [(40 * (10**n - 1) + np.arange(36)) / (40 * 10**n) for n in range(1, 5)]
)
"""Lower bound of the confidences of each level, ascending from 0."""

_STEPS = STEPS.astype(np.float32)


def lowest_level(confidence: float) -> int:
    """The first level whose confidences are all at least this one; `len(STEPS)`: there is none."""
    return int(np.searchsorted(_STEPS, np.float32(confidence), side="left"))


def save_confidence(path: Path | str, confidence: NDArray[np.float32]) -> None:
    """Write the levels of confidences 0..1 (H, W) as a gray PNG, for `read_label`.

    Raises:
        EnvironmentProblem: it cannot be written.
    """
    levels = np.searchsorted(_STEPS, confidence, side="right") - 1
    gray = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    write_label_png(path, levels.astype(np.uint8), gray)
