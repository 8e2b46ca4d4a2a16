"""Text on images, drawn by Pillow in the DejaVu Sans that comes with matplotlib.

OpenCV's own letters have no accents; these are smooth at any size and cover most alphabets.  For
letters that DejaVu lacks (Chinese, Japanese, Korean) an installed font is used; without one they
show as boxes.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

# File names of fonts with Chinese, Japanese and Korean letters, as systems install them.
_WIDE_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "SourceHanSansSC-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "PingFang.ttc",
    "msyh.ttc",
    "YuGothR.ttc",
    "malgun.ttf",
    "Arial Unicode.ttf",
)
_NO_LETTER = "\uffff"  # never assigned: every font shows its box for unknown letters

Image = npt.NDArray[np.uint8]


@lru_cache(maxsize=4096)
def text_mask(text: str, size: int) -> Image:
    """Coverage mask of one line of text.

    Args:
        text: the line; letters that no font has show as boxes.
        size: font size in pixels (capitals are about 0.73 of it).

    Returns:
        uint8 (H, W), 0 background to 255 ink. H and the row of the baseline depend on the size
        only. Read-only, since results are cached.
    """
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    font = _font_for(line, size)
    width = max(round(font.getlength(line)), 1)
    canvas = PillowImage.new("L", (width, round(size * 1.36)))
    ImageDraw.Draw(canvas).text((0, round(size * 1.04)), line, fill=255, font=font, anchor="ls")
    row = np.array(canvas)
    row.setflags(write=False)
    return row


def _font_for(line: str, size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, or an installed font where only that one has all letters of the line."""
    usual = _open_font(_dejavu(), size)
    if _has_all(usual, line):
        return usual
    wide = (_open_font(name, size) for name in _WIDE_FONTS if _is_installed(name))
    return next((font for font in wide if _has_all(font, line)), usual)


def _has_all(font: ImageFont.FreeTypeFont, line: str) -> bool:
    box = bytes(font.getmask(_NO_LETTER))
    return all(letter.isspace() or bytes(font.getmask(letter)) != box for letter in set(line))


@lru_cache(maxsize=32)
def _open_font(file: str, size: int) -> ImageFont.FreeTypeFont:
    # The same layout on every machine, whether or not libraqm is installed.
    return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=1)
def _dejavu() -> str:
    # Found without importing matplotlib, which takes a while and checks its own settings.
    package = importlib.util.find_spec("matplotlib")
    assert package is not None and package.origin is not None  # a dependency of ours
    return str(Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf")


@lru_cache(maxsize=len(_WIDE_FONTS))
def _is_installed(name: str) -> bool:
    try:
        ImageFont.truetype(name, 10)
    except OSError:
        return False
    return True


def draw_text(
    picture: Image,
    text: str,
    left: int,
    top: int,
    size: int,
    color: tuple[int, int, int] = (24, 28, 36),
) -> int:
    """Draw one line onto a picture in place, cropped at its borders.

    Args:
        picture: RGB uint8 (H, W, 3), changed.
        text: the line.
        left: column of its left end.
        top: row of its upper end.
        size: font size in pixels, as in :func:`text_mask`.
        color: RGB 0..255.

    Returns:
        The column after its right end.
    """
    mask = text_mask(text, size)
    height, width = mask.shape
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + width, picture.shape[1]), min(top + height, picture.shape[0])
    if x1 > x0 and y1 > y0:
        share = mask[y0 - top : y1 - top, x0 - left : x1 - left, None].astype(np.float32) / 255.0
        window = picture[y0:y1, x0:x1]
        window[:] = np.round(window * (1.0 - share) + np.array(color, np.float32) * share)
    return left + width


def shorten(text: str, size: int, width: int) -> str:
    """The text, cut with an ellipsis where it would be wider than `width` pixels."""
    if text_mask(text, size).shape[1] <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if text_mask(text[:middle].rstrip() + "…", size).shape[1] <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + "…"
