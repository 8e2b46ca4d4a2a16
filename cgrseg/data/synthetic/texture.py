"""Noise, materials and light: what every painter of the procedural scenes shares.

All pictures in this package are float32 RGB in linear-looking 0..1 (values above 1
are highlights, clipped by the camera at the end), all masks are boolean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.floating[Any]]
Mask = npt.NDArray[np.bool_]
Color = npt.NDArray[np.float32]

AMBIENT = 0.50
DIFFUSE = 0.72


@dataclass(frozen=True)
class Light:
    """The sun of one scene.

    Attributes:
        direction: unit vector towards the sun; x right, y down, z towards the viewer.
        lean: horizontal length of a shadow on the ground per height of its object;
            positive to the right.
        reach: how far a shadow runs along the ground per height, in picture rows;
            positive away from the viewer.
        strength: how much of the light a cast shadow takes away, 0..1.
    """

    direction: tuple[float, float, float]
    lean: float
    reach: float
    strength: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Light:
        """A sun at the left or the right, 25 to 60 degrees high, before or behind the viewer."""
        side = 1.0 if rng.random() < 0.5 else -1.0
        elevation = np.radians(rng.uniform(25.0, 60.0))
        azimuth = np.radians(rng.uniform(20.0, 70.0))
        x = side * np.cos(elevation) * np.sin(azimuth)
        z = np.cos(elevation) * np.cos(azimuth)
        y = -np.sin(elevation)
        length = min(1.1, 1.0 / np.tan(elevation))
        return cls(
            direction=(float(x), float(y), float(z)),
            lean=float(-side * length * 0.7),
            reach=float(rng.uniform(-0.30, 0.22)),
            strength=float(rng.uniform(0.35, 0.55)),
        )

    def on(self, x: float, y: float, z: float) -> float:
        """Brightness of a flat surface whose unit normal is (x, y, z)."""
        dx, dy, dz = self.direction
        return AMBIENT + DIFFUSE * max(0.0, x * dx + y * dy + z * dz)

    def over(self, x: Picture, y: Picture, z: Picture) -> Picture:
        """Brightness (H, W) of a curved surface from the components of its unit normals."""
        dx, dy, dz = self.direction
        lambert = np.maximum(x * dx + y * dy + z * dz, 0.0)
        return (AMBIENT + DIFFUSE * lambert).astype(np.float32)


class Paints:
    """Colors of one scene: well apart from each other, handed out in random order.

    Because every class draws from the same pot, a color says nothing about the class.
    """

    def __init__(self, rng: np.random.Generator, count: int = 20) -> None:
        candidates = np.empty((96, 3), np.float32)
        candidates[:, 0] = rng.uniform(0.0, 360.0, 96)
        candidates[:, 1] = 0.10 + 0.55 * rng.beta(2.0, 2.6, 96)
        candidates[:, 2] = rng.uniform(0.46, 0.98, 96)
        rgb = cv2.cvtColor(candidates[None], cv2.COLOR_HSV2RGB)[0]
        lab = cv2.cvtColor(rgb[None], cv2.COLOR_RGB2LAB)[0]
        chosen = [0]
        distance = np.linalg.norm(lab - lab[0], axis=1)
        while len(chosen) < count:
            farthest = int(distance.argmax())
            chosen.append(farthest)
            distance = np.minimum(distance, np.linalg.norm(lab - lab[farthest], axis=1))
        self._colors = rgb[rng.permutation(chosen)]
        self._next = 0

    def take(self) -> Color:
        """The next color, RGB 0..1 as float32 (3,)."""
        color = self._colors[self._next % len(self._colors)]
        self._next += 1
        return np.asarray(color, np.float32)


def fractal(
    rng: np.random.Generator,
    size: tuple[int, int],
    cell: tuple[float, float],
    *,
    octaves: int = 3,
    persistence: float = 0.5,
) -> Picture:
    """Smooth random relief (H, W) of zero mean and unit standard deviation.

    Args:
        rng: source of randomness.
        size: height and width in pixels.
        cell: height and width in pixels of the coarsest bumps.
        octaves: layers; each halves the size of the bumps.
        persistence: amplitude of a layer relative to the coarser one before it.
    """
    height, width = size
    total = np.zeros(size, np.float32)
    amplitude = 1.0
    for octave in range(octaves):
        rows = max(2, min(height, round(height / cell[0] * 2**octave) + 1))
        columns = max(2, min(width, round(width / cell[1] * 2**octave) + 1))
        grid = rng.standard_normal((rows, columns), dtype=np.float32)
        total += amplitude * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        amplitude *= persistence
    total -= total.mean()
    return total / max(float(total.std()), 1e-6)


def profile(rng: np.random.Generator, length: int, cell: float, octaves: int = 4) -> Picture:
    """Smooth random curve (length,) of zero mean and unit standard deviation."""
    return fractal(rng, (2, length), (2.0, cell), octaves=octaves)[0]


def polygon(size: tuple[int, int], points: npt.ArrayLike) -> Mask:
    """Boolean (H, W) mask of the polygon through float points (x, y)."""
    canvas = np.zeros(size, np.uint8)
    fixed = np.round(np.asarray(points, np.float64) * 16.0).astype(np.int32)
    cv2.fillPoly(canvas, [fixed.reshape(-1, 1, 2)], 1, lineType=cv2.LINE_8, shift=4)
    return canvas.astype(bool)


def strokes(
    size: tuple[int, int], lines: list[tuple[float, float, float, float]], width: float
) -> Mask:
    """Boolean (H, W) mask of straight strokes (x0, y0, x1, y1), `width` pixels thick."""
    canvas = np.zeros(size, np.uint8)
    for x0, y0, x1, y1 in lines:
        start, end = (round(x0 * 16), round(y0 * 16)), (round(x1 * 16), round(y1 * 16))
        cv2.line(canvas, start, end, 1, max(1, round(width)), cv2.LINE_8, 4)
    return canvas.astype(bool)


def tint(color: Color, brightness: Picture | float) -> Picture:
    """Color (3,) times brightness (H, W), as an RGB picture (H, W, 3)."""
    return (np.asarray(brightness, np.float32)[..., None] * color).astype(np.float32)


def towards(color: Color, target: float, share: float) -> Color:
    """Color mixed with the gray level `target` by `share` (0: unchanged, 1: the gray)."""
    return (color * (1.0 - share) + target * share).astype(np.float32)
