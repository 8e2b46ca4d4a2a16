"""Pictures for people: palettes, overlays with legends, error maps, grids, charts."""

from __future__ import annotations

from cgrseg.visual.gallery import error_map, picture_grid
from cgrseg.visual.overlay import class_shares, overlay, with_legend
from cgrseg.visual.palette import colorize, make_palette

__all__ = [
    "class_shares",
    "colorize",
    "error_map",
    "make_palette",
    "overlay",
    "picture_grid",
    "with_legend",
]
