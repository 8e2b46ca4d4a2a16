"""A whole scene: composition, cast shadows, labels and the camera.

Drawn at twice the asked size and reduced, so that outlines are smooth; labels are
taken from the same drawing, with a band of ignored pixels along every outline.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from cgrseg.data.synthetic import backdrop, objects
from cgrseg.data.synthetic.classes import IGNORE_RAW, raw_id
from cgrseg.data.synthetic.objects import Sprite
from cgrseg.data.synthetic.texture import Light, Mask, Paints, Picture
from cgrseg.errors import DataError

OVERSAMPLING = 2
SMALLEST_SIDE = 64


@dataclass
class _Canvas:
    """The drawing so far: picture, raw label and region number of every pixel."""

    picture: Picture
    labels: npt.NDArray[np.uint8]
    regions: npt.NDArray[np.int32]
    horizon: float
    count: int = 0

    def cover(self, picture: Picture, mask: Mask, name: str) -> None:
        """Paint a full-size layer where its mask says."""
        np.copyto(self.picture, picture, where=mask[..., None])
        self.labels[mask] = raw_id(name)
        self.regions[mask] = self._next_region()

    def _next_region(self) -> int:
        self.count += 1
        return self.count

    def place(self, sprite: Sprite, name: str, left: float, bottom: float) -> None:
        """Paint a sprite with its bottom row at `bottom`, cut at the picture's edges."""
        height, width = self.labels.shape
        rows, columns = sprite.mask.shape
        x, y = round(left), round(bottom) - rows
        x0, x1, y0, y1 = max(x, 0), min(x + columns, width), max(y, 0), min(y + rows, height)
        if x0 >= x1 or y0 >= y1:
            return
        inside = (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))
        window = (slice(y0, y1), slice(x0, x1))
        mask = sprite.mask[inside]
        np.copyto(self.picture[window], sprite.picture[inside], where=mask[..., None])
        self.labels[window][mask] = raw_id(name)
        self.regions[window][mask] = self._next_region()

    def shade(self, sprite: Sprite, left: float, bottom: float, light: Light) -> None:
        """Darken the ground where a standing sprite keeps the sun away."""
        height, width = self.labels.shape
        rows, columns = sprite.mask.shape
        blur = 1.2 + height / 220.0
        margin = int(3 * blur) + 2
        reach, lean = light.reach * rows, light.lean * rows
        top = max(round(self.horizon), round(bottom - max(reach, 0.0)) - margin, 0)
        end = min(height, round(bottom + max(-reach, 0.0)) + margin)
        start = max(0, round(left + min(lean, 0.0)) - margin)
        stop = min(width, round(left + columns + max(lean, 0.0)) + margin)
        if top >= end or start >= stop:
            return
        # A point h above the foot falls at (x + lean h, foot - reach h).
        matrix = np.array(
            [
                [1.0, -light.lean, left + lean - start],
                [0.0, light.reach, bottom - reach - top],
            ],
            np.float64,
        )
        cast = cv2.warpAffine(sprite.mask.astype(np.float32), matrix, (stop - start, end - top))
        cast = cv2.GaussianBlur(cast, (0, 0), blur)
        self.picture[top:end, start:stop] *= 1.0 - light.strength * cast[..., None]


def make_scene(
    seed: int, index: int, size: tuple[int, int] = (256, 256)
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Draw one scene; the same arguments give the same scene.

    Args:
        seed: seed of the data set, 0 or more.
        index: number of the scene in it, 0 or more.
        size: height and width in pixels, each at least 64.

    Returns:
        The image, RGB uint8 (H, W, 3), and its label, uint8 (H, W) in ADE20K's
        encoding: 0 for ignored pixels, k for class k - 1 of `SYNTHETIC_CLASSES`.

    Raises:
        DataError: for a size below 64 pixels or a negative seed or index.
    """
    if min(size) < SMALLEST_SIDE:
        raise DataError(
            "size of the procedural scenes",
            found=f"{size[0]} x {size[1]} pixels (height x width)",
            expected=f"at least {SMALLEST_SIDE} on each side",
            remedy="ask for larger scenes",
        )
    if seed < 0 or index < 0:
        raise DataError(
            "procedural scenes",
            found=f"seed {seed}, index {index}",
            expected="numbers of 0 or more",
            remedy="choose another seed",
        )
    rng = np.random.Generator(np.random.PCG64([seed, index]))
    drawn = (size[0] * OVERSAMPLING, size[1] * OVERSAMPLING)
    light = Light.draw(rng)
    paints = Paints(rng)
    canvas = _backdrop(rng, drawn, paints, light)
    _add_objects(rng, canvas, paints, light)
    image = _camera(rng, canvas.picture, size)
    return image, _labels(canvas, size)


def _backdrop(
    rng: np.random.Generator, size: tuple[int, int], paints: Paints, light: Light
) -> _Canvas:
    """Sky, balloons, mountains, field, and a lake or a road or both."""
    height, width = size
    horizon = height * rng.uniform(0.36, 0.52)
    canvas = _Canvas(
        np.zeros((*size, 3), np.float32),
        np.zeros(size, np.uint8),
        np.zeros(size, np.int32),
        horizon,
    )
    everywhere = np.ones(size, bool)
    canvas.cover(backdrop.sky(rng, size, horizon, paints.take(), light), everywhere, "sky")
    if rng.random() < 0.8:
        rise = horizon * rng.uniform(0.28, 0.50)
        color = paints.take()
        picture, mask = backdrop.mountain(
            rng, size, horizon, rise, color, light, rng.uniform(0.0, 0.25)
        )
        canvas.cover(picture, mask, "mountain")
    canvas.cover(*backdrop.field(rng, size, horizon, paints.take()), "field")
    side = 1.0 if rng.random() < 0.5 else -1.0
    if rng.random() < 0.55:
        canvas.cover(*backdrop.water(rng, size, horizon, paints.take(), side), "water")
    if rng.random() < 0.6:
        canvas.cover(*backdrop.road(rng, size, horizon, paints.take()), "road")
    if rng.random() < 0.62:
        for _ in range(int(rng.integers(1, 3))):
            tall = horizon * rng.uniform(0.48, 0.80)
            sprite = objects.balloon(rng, tall, paints, light)
            bottom = tall + (horizon * 0.86 - tall) * rng.random()
            canvas.place(sprite, "balloon", rng.uniform(0.0, 1.0) * width - tall * 0.35, bottom)
    return canvas


def _add_objects(rng: np.random.Generator, canvas: _Canvas, paints: Paints, light: Light) -> None:
    """Stand buildings, trees, fences, crates and balls on the ground, far ones first."""
    height, width = canvas.labels.shape
    chances = {"building": 0.7, "tree": 0.75, "fence": 0.55, "crate": 0.65, "ball": 0.65}
    most = {"building": 2, "tree": 3, "fence": 1, "crate": 2, "ball": 2}
    nearest = {"building": 0.16, "tree": 0.55, "fence": 0.75, "crate": 0.98, "ball": 0.98}
    farthest = {"building": 0.01, "tree": 0.08, "fence": 0.22, "crate": 0.40, "ball": 0.40}
    standing: list[tuple[float, str]] = []
    for name, chance in chances.items():
        if rng.random() < chance:
            for _ in range(int(rng.integers(1, most[name] + 1))):
                standing.append((float(rng.uniform(farthest[name], nearest[name])), name))
    for near, name in sorted(standing):
        bottom = canvas.horizon + (height - canvas.horizon) * near
        sprite = _make(rng, name, near, height, width, paints, light)
        left = rng.uniform(-0.08, 1.08) * width - sprite.mask.shape[1] / 2.0
        canvas.shade(sprite, left, bottom, light)
        canvas.place(sprite, name, left, bottom)


def _make(
    rng: np.random.Generator,
    name: str,
    near: float,
    height: int,
    width: int,
    paints: Paints,
    light: Light,
) -> Sprite:
    """One object, larger the nearer it stands (`near`: 0 at the horizon, 1 at the bottom row)."""
    if name == "building":
        tall = height * rng.uniform(0.26, 0.42)
        return objects.building(rng, tall * rng.uniform(0.75, 1.25), tall, paints, light)
    if name == "tree":
        return objects.tree(rng, height * (0.24 + 0.36 * near), paints, light)
    if name == "fence":
        tall = height * (0.11 + 0.13 * near)
        return objects.fence(rng, width * rng.uniform(0.4, 0.75), tall, paints, light)
    if name == "crate":
        return objects.crate(rng, height * (0.10 + 0.14 * near), paints, light)
    return objects.ball(rng, height * (0.10 + 0.18 * near), paints, light)


def _camera(
    rng: np.random.Generator, picture: Picture, size: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """Exposure, white balance, a color cast, vignetting, sensor noise, 8 bits."""
    image = cv2.resize(picture, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    balance = np.exp(rng.normal(0.0, 0.07, 3)).astype(np.float32)
    exposure = float(np.exp(rng.normal(0.06, 0.16)))
    cast = rng.uniform(0.0, 1.0, 3).astype(np.float32)
    share = rng.uniform(0.0, 0.10)
    image = image * (balance * exposure)
    image = image * (1.0 - share) + cast * share * image.mean()
    y = np.linspace(-1.0, 1.0, size[0], dtype=np.float32)[:, None]
    x = np.linspace(-1.0, 1.0, size[1], dtype=np.float32)[None, :]
    image *= (1.0 - rng.uniform(0.0, 0.16) * (x**2 + y**2) / 2.0)[..., None]
    image = np.clip(image, 0.0, None) ** rng.uniform(0.85, 1.2)
    # A soft shoulder keeps highlights from clipping to flat white.
    image = np.where(image > 0.8, 0.8 + 0.2 * np.tanh((image - 0.8) / 0.2), image)
    image += rng.uniform(0.003, 0.018) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.asarray(np.clip(image * 255.0 + 0.5, 0.0, 255.0), np.uint8)


def _labels(canvas: _Canvas, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Labels at the image's size; pixels that touch two regions are ignored."""
    rows, columns = size
    # Every image pixel covers a block of drawn pixels: clear only when all are of one region.
    blocks = canvas.regions.reshape(rows, OVERSAMPLING, columns, OVERSAMPLING)
    lowest = blocks.min(axis=(1, 3)).astype(np.float32)
    highest = blocks.max(axis=(1, 3)).astype(np.float32)
    kernel = np.ones((3, 3), np.uint8)
    border = cv2.erode(lowest, kernel) != cv2.dilate(highest, kernel)
    labels = canvas.labels[::OVERSAMPLING, ::OVERSAMPLING].copy()
    labels[border] = IGNORE_RAW
    return labels
