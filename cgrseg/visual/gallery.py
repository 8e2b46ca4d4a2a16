"""Pictures side by side: where a prediction is wrong, and grids of examples."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from cgrseg.visual.overlay import FAINT, INK, PAPER
from cgrseg.visual.palette import Image, Labels, check_labels
from cgrseg.visual.text import draw_text, shorten, text_mask

RIGHT_COLOUR = (196, 216, 235)
WRONG_COLOUR = (208, 62, 44)
IGNORED_COLOUR = (72, 76, 84)


def error_map(
    label: Labels,
    prediction: Labels,
    *,
    ignore_index: int = 255,
    image: Image | None = None,
    opacity: float = 0.65,
) -> Image:
    """Show where a prediction is right (pale blue), wrong (red) and not judged (dark grey).

    The three differ in lightness as well as in hue, so they can be told apart without
    seeing colours.

    Args:
        label: class ids (H, W).
        prediction: class ids (H, W).
        ignore_index: label of pixels that are not judged.
        image: RGB uint8 (H, W, 3) to show through in grey; none: plain colours.
        opacity: share of the plain colours over the image, 0..1.

    Returns:
        RGB uint8 (H, W, 3).

    Raises:
        ValueError: when sizes differ.
    """
    check_labels(label)
    check_labels(prediction)
    if label.shape != prediction.shape:
        raise ValueError(f"label of size {label.shape}, prediction of size {prediction.shape}")
    picture = np.where((label == prediction)[..., None], RIGHT_COLOUR, WRONG_COLOUR)
    picture[label == ignore_index] = IGNORED_COLOUR
    plain = picture.astype(np.uint8)
    if image is None:
        return plain
    if image.shape[:2] != label.shape:
        raise ValueError(f"image of size {image.shape[:2]}, label of size {label.shape}")
    grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    backdrop = np.repeat(grey[..., None], 3, axis=2)
    return np.asarray(cv2.addWeighted(backdrop, 1.0 - opacity, plain, opacity, 0.0), np.uint8)


def fit(picture: Image, width: int, height: int) -> Image:
    """Resize a picture to lie in the middle of `width` x `height` pixels of white paper.

    The aspect ratio is kept. Shrinking averages pixels; enlarging repeats them, so that
    label maps keep their colours.
    """
    rows, columns = picture.shape[:2]
    scale = min(width / columns, height / rows)
    size = (max(1, min(width, round(columns * scale))), max(1, min(height, round(rows * scale))))
    method = cv2.INTER_AREA if scale < 1.0 else cv2.INTER_NEAREST
    resized = cv2.resize(picture, size, interpolation=method)
    canvas = np.full((height, width, 3), PAPER, np.uint8)
    top, left = (height - size[1]) // 2, (width - size[0]) // 2
    canvas[top : top + size[1], left : left + size[0]] = resized
    return canvas


def picture_grid(
    rows: Sequence[Sequence[Image]],
    *,
    titles: Sequence[str] = (),
    captions: Sequence[str] = (),
    cell_width: int = 320,
) -> Image:
    """Lay pictures out in a table, for instance image | label | prediction.

    Args:
        rows: for each row its pictures, RGB uint8 (H, W, 3) of any size; all rows have the
            same number.
        titles: over each column; none: no head line.
        captions: under each row; none: no captions.
        cell_width: width of a cell in pixels, 32 or more. A row is as high as its tallest
            picture at that width, at most twice the width.

    Returns:
        RGB uint8.

    Raises:
        ValueError: without pictures, or when counts do not match.
    """
    columns = len(rows[0]) if rows else 0
    if columns == 0 or any(len(row) != columns for row in rows):
        found = [len(row) for row in rows]
        raise ValueError(f"rows of {found} pictures: expected the same number, 1 or more")
    if titles and len(titles) != columns:
        raise ValueError(f"{len(titles)} titles for {columns} columns")
    if captions and len(captions) != len(rows):
        raise ValueError(f"{len(captions)} captions for {len(rows)} rows")
    if cell_width < 32:
        raise ValueError(f"cells {cell_width} pixels wide: expected 32 or more")
    gap = max(4, cell_width // 32)
    size = max(13, round(cell_width / 20))
    line = round(size * 1.9)
    heights = [
        min(2 * cell_width, max(round(p.shape[0] * cell_width / p.shape[1]) for p in row))
        for row in rows
    ]
    heights = [max(1, height) for height in heights]
    total_width = gap + columns * (cell_width + gap)
    total_height = gap + sum(heights) + gap * len(rows)
    total_height += (line if titles else 0) + (line * len(rows) if captions else 0)
    canvas = np.full((total_height, total_width, 3), PAPER, np.uint8)
    top = gap
    if titles:
        for number, title in enumerate(titles):
            text = shorten(title, size, cell_width, bold=True)
            middle = gap + number * (cell_width + gap) + cell_width // 2
            left = middle - text_mask(text, size, bold=True).shape[1] // 2
            draw_text(canvas, text, left, top, size, INK, bold=True)
        top += line
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        for column, picture in enumerate(row):
            left = gap + column * (cell_width + gap)
            canvas[top : top + height, left : left + cell_width] = fit(picture, cell_width, height)
        top += height
        if captions:
            text = shorten(captions[number], size, total_width - 2 * gap)
            draw_text(canvas, text, gap, top + gap // 2, size, FAINT)
            top += line
        top += gap
    return canvas
