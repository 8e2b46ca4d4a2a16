"""One way to write a size, for every option and every setting.

`512x704` is height x width in pixels; `512,704`, `[512, 704]` and `(512, 704)` say the same,
and `512` is a square.
"""

from __future__ import annotations

import re
from typing import Any

_PAIR = re.compile(r"\s*[\[(]?\s*(\d+)\s*(?:[x×*,]\s*|\s)\s*(\d+)\s*[\])]?\s*", re.IGNORECASE)
_SIDE = re.compile(r"\s*(\d+)\s*")


def read_size(value: Any) -> Any:
    """Height and width of a size in any of its forms; another value comes back as it is.

    Args:
        value: text such as `512x704`, `512,704` or `512`, an integer (the side of a square), or
            a sequence, which is not changed.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, value)
    if not isinstance(value, str):
        return value
    pair, side = _PAIR.fullmatch(value), _SIDE.fullmatch(value)
    if pair is not None:
        return (int(pair[1]), int(pair[2]))
    return (int(side[1]), int(side[1])) if side is not None else value


def size_text(height: int, width: int) -> str:
    """A size as options and settings take it, e.g. `512x704`."""
    return f"{height}x{width}"
