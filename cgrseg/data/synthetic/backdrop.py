"""The land behind the objects: sky, mountains, field, water and road.

Each painter returns a full-size picture and the mask of where it belongs; the scene
stacks them from back to front.
"""

from __future__ import annotations

import cv2
import numpy as np

from cgrseg.data.synthetic.texture import (
    Color,
    Light,
    Mask,
    Picture,
    fractal,
    profile,
    tint,
    towards,
)


def sky(
    rng: np.random.Generator, size: tuple[int, int], horizon: float, color: Color, light: Light
) -> Picture:
    """Smooth vertical gradient, paler at the horizon, with soft clouds and a glow of the sun."""
    # Nothing in it is fine: drawn at half the size and enlarged.
    height, width = size[0] // 2, size[1] // 2
    small, horizon = (height, width), horizon / 2.0
    down = np.linspace(0.0, 1.0, height, dtype=np.float32)[:, None] * (height / max(horizon, 1.0))
    haze = np.clip(down, 0.0, 1.0) ** 1.5
    base = tint(color, np.broadcast_to(0.92 + 0.12 * haze, small))
    base += (0.30 * haze)[..., None] * (towards(color, 1.0, 0.6) - base)
    relief = fractal(rng, small, (height * 0.13, width * 0.45), octaves=4, persistence=0.55)
    cover = np.clip((relief - rng.uniform(0.1, 1.2)) * 0.5, 0.0, 1.0) * (1.0 - 0.5 * haze)
    base += (0.75 * cover)[..., None] * (towards(color, 1.0, 0.55) * 1.02 - base)
    x = np.linspace(-1.0, 1.0, width, dtype=np.float32)[None, :]
    glow = np.exp(-(((x - 0.9 * np.sign(light.direction[0])) / 0.7) ** 2) - (down / 0.9) ** 2)
    base *= (1.0 + 0.12 * glow)[..., None]
    return np.asarray(cv2.resize(base, size[::-1], interpolation=cv2.INTER_LINEAR), np.float32)


def mountain(
    rng: np.random.Generator,
    size: tuple[int, int],
    horizon: float,
    rise: float,
    color: Color,
    light: Light,
    haze: float,
) -> tuple[Picture, Mask]:
    """A jagged ridge over the horizon whose rock is lit as a relief.

    Args:
        rng: source of randomness.
        size: height and width in pixels.
        horizon: row where the ground begins.
        rise: height in pixels of a typical summit over the horizon.
        color: RGB 0..1 of the rock.
        light: the sun.
        haze: how much of the rock's contrast the air takes away, 0..1.
    """
    height, width = size
    ridge = profile(rng, width, width * rng.uniform(0.22, 0.4), octaves=6)
    crest = horizon - rise * np.clip(1.0 + 0.42 * ridge, 0.18, 1.9)
    rows = np.arange(height, dtype=np.float32)[:, None]
    mask = (rows >= crest[None, :]) & (rows < horizon + 2)
    cell = height * 0.11
    relief = -np.abs(fractal(rng, size, (cell, cell * 0.8), octaves=5, persistence=0.6))
    # Ridges that fall away from the crest, as gullies do.
    slope_y, slope_x = np.gradient(relief * cell * 0.55)
    length = np.sqrt(slope_x**2 + slope_y**2 + 1.0)
    shade = light.over(-slope_x / length, (-slope_y - 0.25) / length, 1.0 / length)
    depth = np.clip((rows - crest[None, :]) / max(rise, 1.0), 0.0, 1.5)
    picture = tint(color, shade * (0.78 + 0.10 * depth))
    picture += haze * (towards(color, 0.85, 0.35) - picture)
    return picture, mask


def ground_coordinates(size: tuple[int, int], horizon: float) -> tuple[Picture, Picture]:
    """Perspective of a flat ground: (sideways, distance) of every pixel below the horizon.

    Both (H, W); distance is 1 at the bottom row and grows towards the horizon,
    sideways is in widths of the bottom row from the center.
    """
    height, width = size
    rows = np.arange(height, dtype=np.float32)[:, None]
    depth = np.maximum(rows - horizon, 0.5) / max(height - horizon, 1.0)
    distance = np.broadcast_to(1.0 / depth, size).astype(np.float32)
    x = (np.arange(width, dtype=np.float32)[None, :] - width / 2.0) / width
    return (x * distance).astype(np.float32), distance


def field(
    rng: np.random.Generator, size: tuple[int, int], horizon: float, color: Color
) -> tuple[Picture, Mask]:
    """Ploughed, tufted ground: rows that meet at the horizon, tufts that grow nearer."""
    height, width = size
    rows = np.arange(height, dtype=np.float32)[:, None]
    mask = np.broadcast_to(rows >= horizon, size)
    sideways, distance = ground_coordinates(size, horizon)
    nearness = np.clip(1.0 / distance, 0.0, 1.0)
    furrows = np.sin(2.0 * np.pi * (sideways + rng.uniform(-0.4, 0.4)) * rng.uniform(9.0, 13.0))
    coarse = fractal(rng, size, (height * 0.035, width * 0.05), octaves=3, persistence=0.8)
    fine = fractal(rng, size, (3.0, 2.4), octaves=2, persistence=0.8)
    visible = np.clip(nearness * 4.0, 0.0, 1.0)
    brightness = 0.86 + visible * (0.12 * furrows + 0.06 * coarse)
    brightness += (0.05 + 0.06 * nearness) * fine
    picture = tint(color, np.clip(brightness, 0.35, 1.25))
    haze = 0.35 * np.exp(-nearness / 0.10)
    picture += haze[..., None] * (towards(color, 0.9, 0.5) - picture)
    return picture, mask


def water(
    rng: np.random.Generator, size: tuple[int, int], horizon: float, color: Color, side: float
) -> tuple[Picture, Mask]:
    """A lake at one side of the ground, with level ripples that shorten with distance.

    Args:
        rng: source of randomness.
        size: height and width in pixels.
        horizon: row where the ground begins.
        color: RGB 0..1 of the water.
        side: -1 for the left, 1 for the right.
    """
    height, width = size
    rows = np.arange(height, dtype=np.float32)[:, None]
    columns = np.arange(width, dtype=np.float32)[None, :]
    top = horizon + (height - horizon) * rng.uniform(0.04, 0.18)
    bottom = horizon + (height - horizon) * rng.uniform(0.72, 1.25)
    reach = width * rng.uniform(0.36, 0.52)
    middle, half = (top + bottom) / 2.0, (bottom - top) / 2.0
    across = np.clip(1.0 - ((rows - middle) / half) ** 2, 0.0, 1.0) ** 0.5
    wobble = profile(rng, height, height * 0.2, octaves=3)[:, None] * width * 0.018
    shore = reach * across + wobble
    from_side = columns if side < 0 else width - 1 - columns
    mask = (from_side < shore) & (rows > top) & (rows < bottom)
    _, distance = ground_coordinates(size, horizon)
    warp = fractal(rng, size, (height * 0.06, width * 0.3), octaves=2)
    ripple = np.sin(distance * rng.uniform(26.0, 34.0) + warp * 1.6)
    ripple = ripple * np.clip(3.0 / distance, 0.2, 1.0)
    glint = np.clip(ripple - 0.72, 0.0, 1.0) * np.clip(warp, 0.0, 1.0)
    picture = tint(color, 0.82 + 0.17 * ripple) + glint[..., None] * 1.1
    return np.asarray(picture, np.float32), mask


def road(
    rng: np.random.Generator, size: tuple[int, int], horizon: float, color: Color
) -> tuple[Picture, Mask]:
    """A smooth road that bends towards the horizon, with edge lines and a dashed middle."""
    height, width = size
    rows = np.arange(height, dtype=np.float32)[:, None]
    columns = np.arange(width, dtype=np.float32)[None, :]
    near = np.clip((rows - horizon) / (height - horizon), 0.0, 1.0)
    vanishing = width * rng.uniform(0.38, 0.62)
    foot = width * rng.uniform(0.25, 0.75)
    bend = width * rng.uniform(-0.22, 0.22)
    center = vanishing + (foot - vanishing) * near + bend * near * (1.0 - near) * 2.0
    half = width * rng.uniform(0.17, 0.25) * near + 0.6
    offset = (columns - center) / half
    mask = (np.abs(offset) < 1.0) & (rows >= horizon)
    grain = fractal(rng, size, (2.5, 2.5), octaves=1)
    wheel = np.exp(-(((np.abs(offset) - 0.5) / 0.16) ** 2))
    brightness = np.clip(0.80 + 0.018 * grain - 0.07 * wheel, 0.3, 1.1)
    picture = tint(color, brightness)
    distance = 1.0 / np.maximum(near, 1e-3)
    dashed = np.mod(distance * 1.6 + rng.random(), 1.0) < 0.55
    paint = (np.abs(np.abs(offset) - 0.90) < 0.045) | ((np.abs(offset) < 0.05) & dashed)
    marking = towards(color, 1.0, 0.75) if color.mean() < 0.62 else towards(color, 0.15, 0.75)
    picture[paint & mask] = marking
    return picture, mask
