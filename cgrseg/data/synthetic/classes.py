"""The classes of the procedural scenes, and their colors in label pictures.

Every class is told from the others by its shape, its texture and its place in the
picture.  Its color in an image says nothing: all materials of a scene draw theirs
from one distribution.  The palette below is for label maps only.
"""

from __future__ import annotations

from cgrseg.datasets.synthetic import SPEC

IGNORE_RAW = 0
"""Raw label value of pixels that count neither in the loss nor in metrics (as in ADE20K)."""

SYNTHETIC_CLASSES: tuple[str, ...] = SPEC.classes
"""Names in training-id order: name k is stored as raw value k + 1."""

SYNTHETIC_PALETTE: tuple[tuple[int, int, int], ...] = SPEC.palette
"""RGB 0..255 per class, in the order of :data:`SYNTHETIC_CLASSES`."""

STUFF: frozenset[str] = frozenset({"sky", "mountain", "field", "water", "road"})
"""Classes without countable instances (the `Stuff` column of the class list)."""


def raw_id(name: str) -> int:
    """Raw label value of a class: its training id plus one (0 is kept for ignored pixels)."""
    return SYNTHETIC_CLASSES.index(name) + 1
