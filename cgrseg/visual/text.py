"""Text on pictures, in the DejaVu Sans that comes with matplotlib.

OpenCV's own letters are strokes without accents; these are smooth at any size and
know most alphabets.  For letters that DejaVu lacks (Chinese, Japanese, Korean) an
installed font is looked for; where there is none they show as boxes.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

_BOX = "\u25a1"
_WIDE_FAMILIES = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Arial Unicode MS",
)

Image = npt.NDArray[np.uint8]


@lru_cache(maxsize=4096)
def text_mask(text: str, size: int, bold: bool = False) -> Image:
    """Coverage of one line of text.

    Args:
        text: the line; letters that no font has show as boxes.
        size: height of the letters' body in pixels (capitals are about 0.73 of it).
        bold: use the bold face.

    Returns:
        uint8 (H, W), 0 background to 255 ink. H is the same for every text of one size,
        with the baseline in the same row. Read-only: results are cached.
    """
    from matplotlib.ft2font import FT2Font

    line = "".join(letter if letter.isprintable() else " " for letter in text)
    file = _font_file(bold)
    font = FT2Font(file)
    if not _has_all(file, line):
        other = _wide_font(line)
        if other is not None:
            font = FT2Font(other)
        else:
            line = "".join(letter if ord(letter) in _letters(file) else _BOX for letter in line)
    # At 72 dots per inch a point is a pixel.
    font.set_size(size, 72)
    font.set_text(line, 0.0)
    font.draw_glyphs_to_bitmap(antialiased=True)
    ink = np.asarray(font.get_image())
    descent = round(font.get_descent() / 64.0)
    height = round(size * 1.36)
    baseline = round(size * 1.04)
    row = np.zeros((height, max(ink.shape[1], 1)), np.uint8)
    top = baseline - (ink.shape[0] - descent)
    first, last = max(top, 0), min(top + ink.shape[0], height)
    if last > first:
        row[first:last, : ink.shape[1]] = ink[first - top : last - top]
    row.setflags(write=False)
    return row


@lru_cache(maxsize=2)
def _font_file(bold: bool) -> str:
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name)


def _has_all(file: str, text: str) -> bool:
    return _letters(file).issuperset(map(ord, text))


@lru_cache(maxsize=32)
def _letters(file: str) -> frozenset[int]:
    """Code points that a font file can draw."""
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(file).get_charmap())


@lru_cache(maxsize=256)
def _wide_font(text: str) -> str | None:
    """File of an installed font that has all of the text's letters."""
    # Scans the installed fonts the first time, so it is left until a text needs it.
    from matplotlib.font_manager import fontManager

    for family in _WIDE_FAMILIES:
        for entry in fontManager.ttflist:
            if entry.name == family and _has_all(entry.fname, text):
                return str(entry.fname)
    return None


def draw_text(
    picture: Image,
    text: str,
    left: int,
    top: int,
    size: int,
    color: tuple[int, int, int] = (24, 28, 36),
    *,
    bold: bool = False,
) -> int:
    """Write one line onto a picture in place; what falls outside is cut.

    Args:
        picture: RGB uint8 (H, W, 3), changed.
        text: the line.
        left: column of its left end.
        top: row of its upper end.
        size: see :func:`text_mask`.
        color: RGB 0..255.
        bold: use the bold face.

    Returns:
        The column after its right end.
    """
    mask = text_mask(text, size, bold)
    height, width = mask.shape
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + width, picture.shape[1]), min(top + height, picture.shape[0])
    if x1 > x0 and y1 > y0:
        share = mask[y0 - top : y1 - top, x0 - left : x1 - left, None].astype(np.float32) / 255.0
        window = picture[y0:y1, x0:x1]
        window[:] = np.round(window * (1.0 - share) + np.array(color, np.float32) * share)
    return left + width


def shorten(text: str, size: int, width: int, bold: bool = False) -> str:
    """The text, cut with an ellipsis where it would be wider than `width` pixels."""
    if text_mask(text, size, bold).shape[1] <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if text_mask(text[:middle].rstrip() + "…", size, bold).shape[1] <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + "…"
