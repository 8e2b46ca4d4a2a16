"""The things that stand, lie and float in the scenes, each drawn as a sprite.

A sprite is a picture with its mask; its bottom row is where it touches the ground
(or, for the balloon, its lowest point).  Shape and texture name the class; colors
come from the scene's common pot.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from cgrseg.data.synthetic.texture import (
    Color,
    Light,
    Mask,
    Paints,
    Picture,
    fractal,
    polygon,
    strokes,
    tint,
    towards,
)


@dataclass(frozen=True)
class Sprite:
    """A painted object: picture (H, W, 3) and mask (H, W) of the same size."""

    picture: Picture
    mask: Mask


def _accent(rng: np.random.Generator, color: Color) -> Color:
    """A second tone that stands out from `color`: much lighter or much darker."""
    lighter = color.mean() < 0.55 + 0.1 * rng.standard_normal()
    return towards(color, 1.0, 0.72) if lighter else towards(color, 0.06, 0.62)


def ball(rng: np.random.Generator, diameter: float, paints: Paints, light: Light) -> Sprite:
    """A glossy sphere with wedge panels, like a beach ball, turned at random."""
    side = max(8, round(diameter))
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side * 2.0 - 1.0
    x = np.broadcast_to(axis[None, :], (side, side))
    y = np.broadcast_to(axis[:, None], (side, side))
    radius2 = x**2 + y**2
    mask = radius2 <= 1.0
    z = np.sqrt(np.clip(1.0 - radius2, 0.0, 1.0))
    tilt, roll = rng.uniform(0.4, 1.2), rng.uniform(0.0, 2.0 * np.pi)
    turned_x = x * np.cos(roll) + y * np.sin(roll)
    turned_y = -x * np.sin(roll) + y * np.cos(roll)
    pole = turned_y * np.cos(tilt) + z * np.sin(tilt)
    front = -turned_y * np.sin(tilt) + z * np.cos(tilt)
    panels = int(rng.integers(6, 9)) // 2 * 2
    wedge = np.floor((np.arctan2(turned_x, front) / (2.0 * np.pi) + 0.5) * panels) % 2 == 0
    main = paints.take()
    second = _accent(rng, main)
    albedo = np.where(wedge[..., None], main, second)
    albedo[np.abs(pole) > 0.95] = towards(main, 0.5, 0.5)
    shade = light.over(x, y, z.astype(np.float32)) * (0.72 + 0.28 * z)
    dx, dy, dz = light.direction
    length = np.sqrt(dx**2 + dy**2 + (dz + 1.0) ** 2)
    shine = np.clip((x * dx + y * dy + z * (dz + 1.0)) / length, 0.0, 1.0) ** 48
    picture = albedo * shade[..., None] + 0.55 * shine[..., None]
    return Sprite(picture.astype(np.float32), mask)


def balloon(rng: np.random.Generator, height: float, paints: Paints, light: Light) -> Sprite:
    """A hot-air balloon: a pear-shaped envelope of bulging gores, and a basket."""
    rows = max(16, round(height))
    columns = max(12, round(height * 0.72))
    t = (np.arange(rows, dtype=np.float32)[:, None] + 0.5) / rows
    x = (np.arange(columns, dtype=np.float32)[None, :] + 0.5) / columns * 2.0 - 1.0
    body = np.clip(t / 0.80, 0.0, 1.0)
    # Round on top, drawn in towards the mouth.
    profile = np.where(
        body < 0.44,
        np.sqrt(np.clip(1.0 - ((body - 0.44) / 0.44) ** 2, 0.0, 1.0)),
        1.0 - 0.80 * np.clip((body - 0.44) / 0.56, 0.0, 1.0) ** 1.7,
    )
    envelope = (np.abs(x) <= profile) & (t < 0.80)
    across = np.clip(x / np.maximum(profile, 1e-3), -1.0, 1.0)
    angle = np.arcsin(across)
    gores = int(rng.integers(5, 8))
    phase = angle / np.pi * gores * 2.0
    main = paints.take()
    second = _accent(rng, main)
    bulge = 0.84 + 0.16 * np.abs(np.cos(phase * np.pi / 2.0))
    striped = np.floor(phase + 0.5) % 2 == 0
    normal_y = np.clip((body - 0.44) * 1.6, -0.95, 0.8)
    flat = np.sqrt(1.0 - normal_y**2)
    shade = light.over(np.sin(angle) * flat, normal_y, np.cos(angle) * flat) * bulge
    albedo = np.where(striped[..., None], main, second)
    band = np.broadcast_to((np.abs(body - 0.52) < 0.055), (rows, columns))
    albedo[band] = towards(main, 0.25, 0.45)
    picture = albedo * shade[..., None]
    skirt = (np.abs(x) < 0.16) & (t >= 0.80) & (t < 0.87)
    basket = (np.abs(x) < 0.19) & (t >= 0.86)
    weave = (np.floor(t * rows / 3.0) + np.floor((x + 1.0) * columns / 6.0)) % 2
    picture[skirt] = towards(main, 0.1, 0.75)
    picture[basket] = (tint(towards(second, 0.3, 0.6), 0.7 + 0.25 * weave))[basket]
    return Sprite(picture.astype(np.float32), envelope | skirt | basket)


def tree(rng: np.random.Generator, height: float, paints: Paints, light: Light) -> Sprite:
    """A round, clumpy crown of leaves on a barked trunk."""
    rows = max(16, round(height))
    columns = max(12, round(height * rng.uniform(0.72, 0.92)))
    size = (rows, columns)
    color = paints.take()
    unit = float(rows)
    crown_y, crown_x = 0.38 * unit, columns / 2.0
    crown = np.zeros(size, np.uint8)
    relief = np.zeros(size, np.float32)
    lobes = [(crown_x, crown_y, 0.26 * unit)]
    for angle in np.linspace(0.0, 2.0 * np.pi, int(rng.integers(8, 12)), endpoint=False):
        radius = unit * rng.uniform(0.11, 0.16)
        reach_x = columns / 2.0 - radius - 1.0
        lobes.append(
            (
                crown_x + reach_x * float(np.cos(angle)) * rng.uniform(0.8, 1.0),
                crown_y + 0.24 * unit * float(np.sin(angle)) * rng.uniform(0.8, 1.0),
                radius,
            )
        )
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    for lobe_x, lobe_y, radius in lobes:
        inside = np.clip(1.0 - ((x - lobe_x) ** 2 + (y - lobe_y) ** 2) / radius**2, 0.0, 1.0)
        relief = np.maximum(relief, np.sqrt(inside) * radius)
        crown |= (inside > 0).astype(np.uint8)
    leaves = fractal(rng, size, (unit * 0.07, unit * 0.07), octaves=3, persistence=0.75)
    relief += leaves * unit * 0.009
    slope_y, slope_x = np.gradient(relief)
    length = np.sqrt(slope_x**2 + slope_y**2 + 1.0)
    shade = light.over(-slope_x / length, -slope_y / length, 1.0 / length)
    shade *= np.where(leaves < -1.0, 0.66, 1.0) * (1.04 - 0.30 * y / (0.76 * unit))
    picture = tint(color, np.clip(shade, 0.12, 1.4))
    foot, neck = 0.075 * unit, 0.045 * unit
    trunk = polygon(
        size,
        [
            (crown_x - neck, 0.5 * unit),
            (crown_x + neck, 0.5 * unit),
            (crown_x + foot, unit),
            (crown_x - foot, unit),
        ],
    )
    trunk &= crown == 0
    bark = fractal(rng, size, (unit * 0.12, unit * 0.018), octaves=2)
    round_x = np.clip((x - crown_x) / foot, -1.0, 1.0)
    bark_shade = light.over(round_x, np.zeros_like(x), np.sqrt(1.0 - round_x**2))
    stem = tint(towards(color, 0.22, 0.65), bark_shade * (0.85 + 0.14 * bark))
    picture[trunk] = stem[trunk]
    return Sprite(picture, trunk | (crown > 0))


def fence(
    rng: np.random.Generator, width: float, height: float, paints: Paints, light: Light
) -> Sprite:
    """Upright boards side by side with pointed tops, held by two rails."""
    rows, columns = max(10, round(height)), max(16, round(width))
    size = (rows, columns)
    color = paints.take()
    board = height * rng.uniform(0.20, 0.27)
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    within = np.mod(x, board) / board
    number = np.floor(x / board).astype(np.int32)
    point = np.abs(within - 0.5) * 2.0 * board * 0.55
    mask = (y >= point) & (number < int(columns / board))
    tones = rng.uniform(0.86, 1.08, int(columns / board) + 2).astype(np.float32)
    shade = light.on(0.0, 0.0, 1.0) * 0.80 * tones[number]
    grain = fractal(rng, size, (height * 0.5, board * 0.12), octaves=2)
    picture = tint(color, shade * (1.0 + 0.05 * grain))
    groove = (within < 0.10) | (within > 0.93)
    picture[groove] *= 0.38
    lit_edge = (within > 0.10) & (within < 0.20)
    picture[lit_edge] *= 1.14
    for level in (0.38, 0.78):
        rail = np.abs(y - level * rows) < max(1.0, 0.045 * rows)
        picture[rail] *= 1.22
        below = (y - level * rows > 0.045 * rows) & (y - level * rows < 0.085 * rows)
        picture[below] *= 0.66
    return Sprite(picture, mask)


def crate(rng: np.random.Generator, side: float, paints: Paints, light: Light) -> Sprite:
    """A planked wooden box seen a little from above, with a frame and a diagonal brace."""
    color = paints.take()
    front = side
    depth = side * rng.uniform(0.28, 0.42)
    lift = side * rng.uniform(0.16, 0.26)
    rows, columns = round(front + lift) + 1, round(front + depth) + 1
    to_right = rng.random() < 0.5
    left = 0.0 if to_right else depth
    shift = depth if to_right else -depth
    x0, x1, y0, y1 = left, left + front, lift, lift + front
    size = (rows, columns)
    edge = x1 if to_right else x0
    face = polygon(size, [(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    lid = polygon(size, [(x0, y0), (x1, y0), (x1 + shift, 0), (x0 + shift, 0)])
    flank = polygon(size, [(edge, y0), (edge + shift, 0), (edge + shift, y1 - lift), (edge, y1)])
    grain = 1.0 + 0.05 * fractal(rng, size, (side * 0.04, side * 0.4), octaves=2)
    picture = tint(color, light.on(0.0, 0.0, 1.0) * 0.92 * grain)
    picture[lid] = tint(color, light.on(0.0, -1.0, 0.0) * grain)[lid]
    sideways = 1.0 if to_right else -1.0
    picture[flank] = tint(color, light.on(sideways, 0.0, 0.0) * 0.86 * grain)[flank]

    thick = max(1.0, side * 0.022)
    planks = int(rng.integers(4, 6))
    seams = [(x0, y0 + front * k / planks, x1, y0 + front * k / planks) for k in range(1, planks)]
    seams += [
        (edge, y0 + front * k / planks, edge + shift, front * k / planks) for k in range(1, planks)
    ]
    seams += [
        (x0 + front * k / planks, y0, x0 + front * k / planks + shift, 0) for k in range(1, planks)
    ]
    picture[strokes(size, seams, thick)] *= 0.45
    brace = (x0, y0, x1, y1) if rng.random() < 0.5 else (x0, y1, x1, y0)
    frame = side * 0.11
    outer = strokes(size, [brace], frame * 1.35) & face
    inner = strokes(size, [brace], frame) & face
    picture[outer] *= 0.55
    picture[inner] = tint(towards(color, 1.0, 0.16), light.on(0.0, 0.0, 1.0) * grain)[inner]
    inset = frame * 0.5
    corners = [
        (x0 + inset, y0 + inset, x1 - inset, y0 + inset),
        (x0 + inset, y1 - inset, x1 - inset, y1 - inset),
        (x0 + inset, y0, x0 + inset, y1),
        (x1 - inset, y0, x1 - inset, y1),
    ]
    border = strokes(size, corners, frame) & face
    rim = cv2.dilate(border.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & face
    picture[rim] *= 0.6
    picture[border] = tint(towards(color, 1.0, 0.10), light.on(0.0, 0.0, 1.0) * grain)[border]
    return Sprite(picture, face | lid | flank)


def building(
    rng: np.random.Generator, width: float, height: float, paints: Paints, light: Light
) -> Sprite:
    """A block with a regular grid of windows, a side in another light, and a cornice."""
    color = paints.take()
    rows, columns = round(height), round(width)
    size = (rows, columns)
    flank_width = width * rng.uniform(0.18, 0.32)
    to_right = rng.random() < 0.5
    drop = flank_width * 0.22
    split = width - flank_width if to_right else flank_width
    x0, x1 = (0.0, split) if to_right else (split, width)
    face = polygon(size, [(x0, 0), (x1, 0), (x1, rows), (x0, rows)])
    far = width if to_right else 0.0
    flank = polygon(size, [(split, 0), (far, drop), (far, rows), (split, rows)])
    flank &= ~face
    rough = 1.0 + 0.035 * fractal(rng, size, (height * 0.1, height * 0.1), octaves=4)
    front_light = light.on(0.0, 0.0, 1.0)
    side_light = light.on(1.0 if to_right else -1.0, 0.0, 0.0)
    picture = tint(color, front_light * rough)
    picture[flank] = tint(color, side_light * 0.86 * rough)[flank]

    floor = height / float(rng.integers(4, 7))
    glass = towards(color, 0.10, 0.72)
    trim = towards(color, 1.0, 0.45)
    bays = max(2, round((x1 - x0) / (floor * rng.uniform(0.7, 0.95))))
    pitch = (x1 - x0) / bays
    top = floor * 0.42
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    level = (y - top) / floor
    bay = (x - x0) / pitch
    row_in, column_in = np.mod(level, 1.0), np.mod(bay, 1.0)
    storeys = level >= 0.0
    frame = face & storeys & (np.abs(column_in - 0.5) < 0.31) & (row_in < 0.66)
    pane = face & storeys & (np.abs(column_in - 0.5) < 0.25) & (np.abs(row_in - 0.32) < 0.26)
    pane &= (y - np.floor(level) * floor - top >= 0.06 * floor) & (y < rows - 0.12 * floor)
    frame &= y < rows - 0.06 * floor
    picture[frame] = tint(trim, front_light * rough)[frame]
    sheen = 0.85 + 0.5 * np.clip(1.0 - row_in * 1.6, 0.0, 1.0)
    picture[pane] = tint(glass, sheen)[pane]
    slant = (x - split) / max(abs(far - split), 1.0) * (1.0 if to_right else -1.0)
    flank_level = (y - top - drop * slant * 0.6) / floor
    flank_pane = flank & (flank_level >= 0.0) & (np.mod(flank_level, 1.0) < 0.55)
    flank_pane &= (np.abs(np.mod(slant * 2.0, 1.0) - 0.5) < 0.26) & (y < rows - 0.12 * floor)
    picture[flank_pane] = glass * side_light
    cornice = face & (y < floor * 0.16)
    picture[cornice] = trim * (front_light * 0.95)
    picture[face & (y >= floor * 0.16) & (y < floor * 0.22)] *= 0.6
    return Sprite(picture, face | flank)
