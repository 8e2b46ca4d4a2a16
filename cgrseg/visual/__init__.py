"""Pictures for people: overlays with legends, error maps, charts."""

from __future__ import annotations

from cgrseg.visual.overlay import class_shares, colorize, error_map, overlay, with_legend

__all__ = ["class_shares", "colorize", "error_map", "overlay", "with_legend"]
