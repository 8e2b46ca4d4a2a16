"""A network with one or two blocks per stage, for tests that convert or compile what they test.

Every kind of block and of attention is in it.  It exists while the block runs, in this process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from cgrseg.variants import BACKBONES, VARIANTS, BackboneVariant

SMALL = "cgrseg_small"


@contextlib.contextmanager
def small_variant() -> Iterator[str]:
    """Name of the variant."""
    BACKBONES[SMALL] = BackboneVariant(
        channels=(32, 48, 112, 208),  # as no other has, since checkpoints are told by them
        expansions=((4,), (4,), (4, 3), (3, 4)),
        attention_blocks=1,
    )
    VARIANTS[SMALL] = replace(VARIANTS["cgrseg_t"], backbone=SMALL, context_blocks=1)
    try:
        yield SMALL
    finally:
        del BACKBONES[SMALL], VARIANTS[SMALL]
