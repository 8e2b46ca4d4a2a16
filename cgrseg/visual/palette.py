"""Colours for label maps: making a palette, and painting labels with one.

Ours.  Datasets bring their own palettes (:mod:`cgrseg.datasets`); this is for
class lists without one.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.integer]

MOST_COLOURS = 256

_FIRST = (
    (57, 119, 192),
    (226, 119, 48),
    (73, 160, 86),
    (205, 62, 78),
    (132, 98, 184),
    (232, 192, 66),
    (77, 184, 196),
    (214, 119, 174),
    (140, 98, 72),
    (160, 196, 78),
    (88, 98, 120),
    (240, 166, 146),
)
"""The first colours by hand, so that small class lists look calm; the rest is computed."""


def make_palette(count: int) -> Image:
    """Distinct, readable colours; a longer palette starts with the shorter one.

    Each new colour is the one that lies farthest, in the perceptual space Oklab, from
    those before it and from black (used for ignored pixels).

    Args:
        count: number of colours, 1 to 256.

    Returns:
        RGB uint8 (count, 3).

    Raises:
        ValueError: when `count` is out of range.
    """
    if not 1 <= count <= MOST_COLOURS:
        raise ValueError(f"palette of {count} colours: 1 to {MOST_COLOURS} can be made")
    return _all_colours()[:count].copy()


@lru_cache(maxsize=1)
def _all_colours() -> Image:
    levels = np.linspace(0, 255, 18).round().astype(np.uint8)
    red, green, blue = (axis.ravel() for axis in np.meshgrid(levels, levels, levels))
    candidates = np.stack([red, green, blue], axis=1)
    lab = _oklab(candidates)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    # Too dark is taken for ignored, too light for paper, and neon hurts.
    readable = (lab[:, 0] > 0.34) & (lab[:, 0] < 0.93) & (chroma < 0.21)
    candidates, lab = candidates[readable], lab[readable]
    chosen = [np.array(colour, np.uint8) for colour in _FIRST]
    known = _oklab(np.array([*_FIRST, (0, 0, 0)], np.uint8))
    distance = np.linalg.norm(lab[:, None] - known[None], axis=2).min(axis=1)
    while len(chosen) < MOST_COLOURS:
        farthest = int(distance.argmax())
        chosen.append(candidates[farthest])
        distance = np.minimum(distance, np.linalg.norm(lab - lab[farthest], axis=1))
    return np.stack(chosen)


def _oklab(rgb: Image) -> npt.NDArray[np.float64]:
    """From sRGB uint8 (N, 3) to Oklab (N, 3) (B. Ottosson, "A perceptual color space", 2020)."""
    value = rgb.astype(np.float64) / 255.0
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    cone = linear @ np.array(
        [
            [0.4122214708, 0.2119034982, 0.0883024619],
            [0.5363325363, 0.6806995451, 0.2817188376],
            [0.0514459929, 0.1073969566, 0.6299787005],
        ]
    )
    return np.asarray(
        np.cbrt(cone)
        @ np.array(
            [
                [0.2104542553, 1.9779984951, 0.0259040371],
                [0.7936177850, -2.4285922050, 0.7827717662],
                [-0.0040720468, 0.4505937099, -0.8086757660],
            ]
        )
    )


def as_palette(palette: npt.ArrayLike) -> Image:
    """Check a palette and return it as uint8 (N, 3).

    Raises:
        ValueError: when it is not a list of RGB triples 0..255.
    """
    colours = np.asarray(palette)
    if colours.ndim != 2 or colours.shape[1] != 3 or len(colours) == 0:
        raise ValueError(f"palette of shape {colours.shape}: expected (classes, 3), RGB 0..255")
    if colours.min() < 0 or colours.max() > 255:
        raise ValueError(
            f"palette with values {colours.min()} to {colours.max()}: expected 0 to 255"
        )
    return colours.astype(np.uint8)


def colorize(
    labels: Labels, palette: npt.ArrayLike, ignore_color: tuple[int, int, int] = (0, 0, 0)
) -> Image:
    """Paint a label map.

    Args:
        labels: class ids (H, W), any integer type; ids that the palette does not have
            (255 for ignored pixels, for instance) get `ignore_color`.
        palette: RGB 0..255 per class (N, 3).
        ignore_color: RGB 0..255.

    Returns:
        RGB uint8 (H, W, 3).

    Raises:
        ValueError: when labels are no integers of two dimensions, or the palette is malformed.
    """
    colours = as_palette(palette)
    check_labels(labels)
    table = np.concatenate([colours, np.array([ignore_color], np.uint8)])
    known = len(colours)
    if labels.dtype == np.uint8:
        index = np.minimum(np.arange(256), known)
        return np.asarray(table[index][labels], np.uint8)
    outside = (labels < 0) | (labels >= known)
    return np.asarray(table[np.where(outside, known, labels)], np.uint8)


def check_labels(labels: Labels) -> None:
    """Raise ValueError unless `labels` is an integer array (H, W)."""
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels of shape {labels.shape} and type {labels.dtype}: expected integers (H, W)"
        )
