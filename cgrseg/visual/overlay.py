"""A label map over its image, and the legend beside it."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from cgrseg.visual.palette import Image, Labels, as_palette, check_labels, colorize
from cgrseg.visual.text import draw_text, shorten, text_mask

PAPER = (255, 255, 255)
INK = (24, 28, 36)
FAINT = (112, 118, 130)
OUTLINE = (16, 18, 24)


def overlay(
    image: Image,
    labels: Labels,
    palette: npt.ArrayLike,
    opacity: float = 0.5,
    outline: bool = True,
) -> Image:
    """Blend a label map's colours over the image.

    Args:
        image: RGB uint8 (H, W, 3).
        labels: class ids (H, W); pixels whose id the palette lacks (ignored ones) keep the
            image as it is.
        palette: RGB 0..255 per class (N, 3).
        opacity: share of the label's colour, 0..1.
        outline: draw a thin dark line between regions.

    Returns:
        RGB uint8 (H, W, 3), a new array.

    Raises:
        ValueError: when sizes differ, or an argument is out of range.
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
    colours = as_palette(palette)
    painted = colorize(labels, colours)
    blended = np.asarray(cv2.addWeighted(image, 1.0 - opacity, painted, opacity, 0.0), np.uint8)
    ignored = (labels < 0) | (labels >= len(colours))
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
    """Share of the labelled pixels (0..1) that each of `count` classes covers.

    Ids outside 0..count-1 are ignored; all zero when nothing is labelled.
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

    The letters grow with the picture, so that the legend stays readable when a large
    picture is shown small, and never get smaller than 13 pixels; the canvas grows where
    a small picture has a long legend.

    Args:
        picture: RGB uint8 (H, W, 3), an overlay for instance.
        labels: class ids (H', W') that the picture shows.
        classes: names in id order.
        palette: RGB 0..255 per class (N, 3), as many as classes or more.

    Returns:
        RGB uint8, at least as high and wider than `picture`; the picture is its top left
        part, unchanged. Without any class in `labels` the legend says so.

    Raises:
        ValueError: when the palette has fewer colours than there are classes.
    """
    colours = as_palette(palette)
    if len(colours) < len(classes):
        raise ValueError(f"palette of {len(colours)} colours for {len(classes)} classes")
    shares = class_shares(labels, len(classes))
    order = [int(k) for k in np.argsort(-shares, kind="stable") if shares[k] > 0]
    entries = [(classes[k], _percent(shares[k]), tuple(map(int, colours[k]))) for k in order]
    if not entries:
        entries = [("no class", "", PAPER)]
    height, width = picture.shape[:2]
    size = max(13, round(max(height, width) / 42))
    line = round(size * 1.75)
    margin = round(size * 0.9)
    rows = max(1, (height - 2 * margin) // line)
    # More columns rather than a strip far longer than the picture, up to three.
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
    for number, (name, share, colour) in enumerate(entries):
        left = width + margin + (number // rows) * (column + 2 * margin)
        top = margin + (number % rows) * line
        _draw_swatch(canvas, left, top + (line - swatch) // 2, swatch, colour)
        text_top = top + (line - round(size * 1.36)) // 2
        draw_text(canvas, shorten(name, size, name_width), left + swatch + gap, text_top, size, INK)
        right = left + column - text_mask(share, size).shape[1]
        draw_text(canvas, share, right, text_top, size, FAINT)
    return canvas


def _draw_swatch(canvas: Image, left: int, top: int, side: int, colour: tuple[int, ...]) -> None:
    edge = max(1, side // 14)
    canvas[top : top + side, left : left + side] = np.array(colour) * 0.7
    canvas[top + edge : top + side - edge, left + edge : left + side - edge] = colour


def _percent(share: float) -> str:
    percent = share * 100.0
    if percent >= 9.95:
        return f"{percent:.0f} %"
    return f"{percent:.1f} %" if percent >= 0.05 else "< 0.1 %"
