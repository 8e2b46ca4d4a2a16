"""Label maps in color: over their image, with a legend, and compared with the ground truth.

Pillow draws the letters, in the DejaVu Sans that comes with matplotlib: OpenCV's own letters have
no accents.  For letters that DejaVu lacks (Chinese, Japanese, Korean) an installed font is used;
without one they show as boxes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

Image = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.integer]

PAPER = (255, 255, 255)
INK = (24, 28, 36)
FAINT = (112, 118, 130)
OUTLINE = (16, 18, 24)
RIGHT_COLOR = (196, 216, 235)
WRONG_COLOR = (208, 62, 44)
IGNORED_COLOR = (72, 76, 84)

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


def as_palette(palette: npt.ArrayLike) -> Image:
    """A palette as uint8 (N, 3).

    Raises:
        ValueError: not a list of RGB triples 0..255.
    """
    colors = np.asarray(palette)
    if colors.ndim != 2 or colors.shape[1] != 3 or len(colors) == 0:
        raise ValueError(f"palette of shape {colors.shape}: expected (classes, 3), RGB 0..255")
    if colors.min() < 0 or colors.max() > 255:
        raise ValueError(f"palette with values {colors.min()} to {colors.max()}: expected 0 to 255")
    return colors.astype(np.uint8)


def colorize(
    labels: Labels, palette: npt.ArrayLike, ignore_color: tuple[int, int, int] = (0, 0, 0)
) -> Image:
    """Paint a label map.

    Args:
        labels: class ids (H, W) of any integer type.
        palette: RGB 0..255 per class (N, 3).
        ignore_color: RGB 0..255 for ids without a color, such as the ignore index.

    Returns:
        RGB uint8 (H, W, 3).

    Raises:
        ValueError: labels that are not integers (H, W), or a malformed palette.
    """
    colors = as_palette(palette)
    check_labels(labels)
    table = np.concatenate([colors, np.array([ignore_color], np.uint8)])
    known = len(colors)
    if labels.dtype == np.uint8:
        index = np.minimum(np.arange(256), known)
        return np.asarray(table[index][labels], np.uint8)
    outside = (labels < 0) | (labels >= known)
    return np.asarray(table[np.where(outside, known, labels)], np.uint8)


def check_labels(labels: Labels) -> None:
    """Raise ValueError unless `labels` is an integer array (H, W)."""
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels of shape {labels.shape} and type {labels.dtype}: expected integers (H, W)"
        )


def overlay(
    image: Image,
    labels: Labels,
    palette: npt.ArrayLike,
    opacity: float = 0.5,
    outline: bool = True,
) -> Image:
    """Blend the colors of a label map over its image.

    Args:
        image: RGB uint8 (H, W, 3).
        labels: class ids (H, W); ids without a color (ignored pixels) leave the image as it is.
        palette: RGB 0..255 per class (N, 3).
        opacity: opacity of the labels, 0..1.
        outline: draw a thin dark line between regions.

    Returns:
        RGB uint8 (H, W, 3), a new array.

    Raises:
        ValueError: sizes that differ, or an argument out of range.
    """
    if not 0.0 <= opacity <= 1.0:
        raise ValueError(f"opacity {opacity}: expected 0 to 1")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            f"image of shape {image.shape} and type {image.dtype}: expected RGB uint8 (H, W, 3)"
        )
    check_labels(labels)
    if labels.shape != image.shape[:2]:
        raise ValueError(f"labels of shape {labels.shape} for an image of {image.shape[:2]}")
    colors = as_palette(palette)
    painted = colorize(labels, colors)
    blended = np.asarray(cv2.addWeighted(image, 1.0 - opacity, painted, opacity, 0.0), np.uint8)
    ignored = (labels < 0) | (labels >= len(colors))
    np.copyto(blended, image, where=ignored[..., None])
    if outline:
        _draw_outlines(blended, labels, ~ignored)
    return blended


def _draw_outlines(picture: Image, labels: Labels, known: npt.NDArray[np.bool_]) -> None:
    """Darken the borders between two known regions, in place; lines grow with the picture."""
    height, width = labels.shape
    border = np.zeros((height, width), np.uint8)
    border[1:] |= (labels[1:] != labels[:-1]) & known[1:] & known[:-1]
    border[:, 1:] |= (labels[:, 1:] != labels[:, :-1]) & known[:, 1:] & known[:, :-1]
    thickness = max(1, round(min(height, width) / 360))
    if thickness > 1:
        border = np.asarray(cv2.dilate(border, np.ones((thickness, thickness), np.uint8)), np.uint8)
    lines = border.astype(bool)
    picture[lines] = np.round(0.3 * picture[lines] + 0.7 * np.array(OUTLINE)).astype(np.uint8)


def class_shares(labels: Labels, count: int) -> npt.NDArray[np.float64]:
    """Share of the labeled pixels (0..1) of each of `count` classes.

    Ids outside 0..count-1 are ignored; without labeled pixels all shares are 0.
    """
    check_labels(labels)
    values = labels.ravel()
    known = values[(values >= 0) & (values < count)]
    counts = np.bincount(known.astype(np.int64), minlength=count)
    return np.asarray(counts / max(int(counts.sum()), 1), np.float64)


def with_legend(
    picture: Image, labels: Labels, classes: Sequence[str], palette: npt.ArrayLike
) -> Image:
    """Put a legend beside a picture: the classes that occur, largest first, with shares.

    The letters grow with the picture, from 13 pixels on, so that the legend stays readable when a
    large picture is shown small; the canvas grows where a small picture has a long legend.

    Args:
        picture: RGB uint8 (H, W, 3), such as an overlay.
        labels: class ids (H', W') that the picture shows.
        classes: names in id order.
        palette: RGB 0..255 per class (N, 3), at least as many as classes.

    Returns:
        RGB uint8, wider than `picture` and at least as high; its top left part is the picture.
        Without any class in `labels` the legend says so.

    Raises:
        ValueError: a palette with fewer colors than classes.
    """
    colors = as_palette(palette)
    if len(colors) < len(classes):
        raise ValueError(f"palette of {len(colors)} colors for {len(classes)} classes")
    shares = class_shares(labels, len(classes))
    order = [int(k) for k in np.argsort(-shares, kind="stable") if shares[k] > 0]
    entries = [(classes[k], _percent(shares[k]), tuple(map(int, colors[k]))) for k in order]
    if not entries:
        entries = [("no class", "", PAPER)]
    height, width = picture.shape[:2]
    size = max(13, round(max(height, width) / 42))
    line = round(size * 1.75)
    margin = round(size * 0.9)
    rows = max(1, (height - 2 * margin) // line)
    # Up to three columns, to avoid a strip far longer than the picture.
    columns = min(3, -(-len(entries) // rows))
    rows = -(-len(entries) // columns)
    swatch, gap = round(size * 1.15), round(size * 0.5)
    name_width = min(
        max(text_mask(name, size).shape[1] for name, _, _ in entries), round(size * 12)
    )
    share_width = max(text_mask(share, size).shape[1] for _, share, _ in entries)
    column = swatch + gap + name_width + 2 * gap + share_width
    panel = 2 * margin + columns * column + (columns - 1) * 2 * margin
    total = max(height, rows * line + 2 * margin)
    canvas = np.full((total, width + panel, 3), PAPER, np.uint8)
    canvas[:height, :width] = picture
    for number, (name, share, color) in enumerate(entries):
        left = width + margin + (number // rows) * (column + 2 * margin)
        top = margin + (number % rows) * line
        _draw_swatch(canvas, left, top + (line - swatch) // 2, swatch, color)
        text_top = top + (line - round(size * 1.36)) // 2
        draw_text(canvas, shorten(name, size, name_width), left + swatch + gap, text_top, size, INK)
        right = left + column - text_mask(share, size).shape[1]
        draw_text(canvas, share, right, text_top, size, FAINT)
    return canvas


def _draw_swatch(canvas: Image, left: int, top: int, side: int, color: tuple[int, ...]) -> None:
    edge = max(1, side // 14)
    canvas[top : top + side, left : left + side] = np.array(color) * 0.7
    canvas[top + edge : top + side - edge, left + edge : left + side - edge] = color


def _percent(share: float) -> str:
    percent = share * 100.0
    if percent >= 9.95:
        return f"{percent:.0f} %"
    return f"{percent:.1f} %" if percent >= 0.05 else "< 0.1 %"


def error_map(
    label: Labels,
    prediction: Labels,
    *,
    ignore_index: int = 255,
    image: Image | None = None,
    opacity: float = 0.65,
) -> Image:
    """Show where a prediction is right (pale blue), wrong (red) and ignored (dark gray).

    The three differ in lightness too, so that they can be told apart without seeing colors.

    Args:
        label: class ids (H, W) of the ground truth.
        prediction: class ids (H, W).
        ignore_index: id of ignored pixels of the ground truth.
        image: RGB uint8 (H, W, 3) that shows through in gray; None: plain colors.
        opacity: opacity of the plain colors over the image, 0..1.

    Returns:
        RGB uint8 (H, W, 3).

    Raises:
        ValueError: sizes that differ.
    """
    check_labels(label)
    check_labels(prediction)
    if label.shape != prediction.shape:
        raise ValueError(f"label of size {label.shape}, prediction of size {prediction.shape}")
    picture = np.where((label == prediction)[..., None], RIGHT_COLOR, WRONG_COLOR)
    picture[label == ignore_index] = IGNORED_COLOR
    plain = picture.astype(np.uint8)
    if image is None:
        return plain
    if image.shape[:2] != label.shape:
        raise ValueError(f"image of size {image.shape[:2]}, label of size {label.shape}")
    gray = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    backdrop = np.repeat(gray[..., None], 3, axis=2)
    return np.asarray(cv2.addWeighted(backdrop, 1.0 - opacity, plain, opacity, 0.0), np.uint8)


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
    color: tuple[int, int, int] = INK,
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
