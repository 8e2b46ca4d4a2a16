"""Procedural scenes: a data set that needs no download, for the demo and for tests.

Ours.  Textured, lit and occluding objects on a landscape, in eleven classes told apart
by shape, texture and place; color is drawn from one distribution for all of them, so
that a classifier of colors fails (:func:`color_baseline` measures it) where a
network that sees context succeeds.
"""

from __future__ import annotations

from cgrseg.data.synthetic.baseline import ColorClassifier, color_baseline
from cgrseg.data.synthetic.classes import SYNTHETIC_CLASSES, SYNTHETIC_PALETTE
from cgrseg.data.synthetic.scene import make_scene
from cgrseg.data.synthetic.writer import write_dataset

__all__ = [
    "SYNTHETIC_CLASSES",
    "SYNTHETIC_PALETTE",
    "ColorClassifier",
    "color_baseline",
    "make_scene",
    "write_dataset",
]
