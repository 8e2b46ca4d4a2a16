"""Masks in color: tables of colors, and pixels as whole numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cgrseg.class_names import check_class_names, clean_name, is_comment, unescaped
from cgrseg.data.image_files import open_with_pillow, read_image
from cgrseg.data.label_files import read_label
from cgrseg.errors import DataError
from cgrseg.input_files import read_input_text

Color = tuple[int, int, int]

COLOR_TABLE = "labelmap.txt"
"""Name of the color table that CVAT writes beside its masks."""

COLORED = 1 << 24
"""Added to the code of a color, where a code may also be a number."""

_LOSSY = (".jpg", ".jpeg", ".webp")
# Commas and runs of blanks inside a name are kept; those around it separate.
_GAP, _RGB = r"[\s,]+", r"(?P<r>\d+)[\s,]+(?P<g>\d+)[\s,]+(?P<b>\d+)"
_NAME_FIRST = re.compile(rf"[\s,]*(?P<name>[^\s,].*?){_GAP}{_RGB}[\s,]*")
_NAME_LAST = re.compile(rf"[\s,]*{_RGB}{_GAP}(?P<name>[^\s,].*?)[\s,]*")
# CVAT's labelmap.txt: name:R,G,B:parts:actions
_CVAT = re.compile(rf"\s*(?P<name>\S.*?)\s*:\s*{_RGB}\s*(:.*)?")


def read_color_table(path: Path) -> dict[Color, str]:
    """Class name of each color, in the order of the file.

    Text files have one class per line, `name R G B` or `R G B name`, separated by spaces, tabs or
    commas; a header line `name,r,g,b` is skipped.  CVAT's `labelmap.txt` has lines
    `name:R,G,B:parts:actions`.  JSON files hold {"name": [R, G, B]}.  A class may have several
    colors, a color one class.

    Raises:
        DataError: unreadable, a line that is neither, or a color of two classes.
    """
    try:
        text = read_input_text(path, "utf-8-sig")
        pairs = _from_json(text) if path.suffix.lower() == ".json" else _from_lines(text)
        table: dict[Color, str] = {}
        for name, color in pairs:
            if any(not 0 <= channel <= 255 for channel in color):
                raise ValueError(f"the color of {name!r} is {color}, outside 0..255")
            if table.setdefault(color, name) != name:
                raise ValueError(f"{table[color]!r} and {name!r} share the color {color}")
        if not table:
            raise ValueError("it names no class")
        check_class_names(dict.fromkeys(table.values()), path, remedy="correct the file")
    except (OSError, UnicodeDecodeError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            path,
            found=f"it cannot be used ({getattr(error, 'strerror', None) or error})",
            expected="one class a line, as in 'road 128 64 128', or JSON "
            '{"road": [128, 64, 128]}',
            remedy="correct the file",
        ) from error
    return table


def color_codes(path: Path) -> np.ndarray:
    """Colors of a mask (H, W) int32, as R * 65536 + G * 256 + B; transparent pixels are black.

    Raises:
        DataError: unreadable, or in a lossy format.
    """
    if path.suffix.lower() in _LOSSY:
        raise DataError(
            path,
            found=f"a mask in the lossy format {path.suffix}",
            expected="a lossless file (PNG): lossy ones change the colors along every border",
            remedy="export the masks again as PNG",
        )
    wide = read_image(path).astype(np.int32)
    codes = (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]
    with open_with_pillow(path) as picture:
        if picture.mode in ("RGBA", "LA"):
            codes[np.asarray(picture.getchannel("A")) == 0] = 0
    return codes


def read_colored_codes(mask: Path) -> np.ndarray:
    """Numbers of a mask in gray; of another the colors, with bit 24 set: (H, W) whole numbers.

    Raises:
        DataError: unreadable.
    """
    with open_with_pillow(mask) as picture:
        is_gray = picture.mode in ("1", "L", "I", "I;16")
    return read_label(mask) if is_gray else color_codes(mask) | COLORED


def coded_by_color(named: Mapping[Color, str]) -> dict[int, str | None]:
    """Class name of each code of :func:`read_colored_codes`: by number in the table, by color."""
    numbered = enumerate(dict.fromkeys(named.values()))
    return {**dict(numbered), **{code_of(color): name for color, name in named.items()}}


def code_of(color: Color) -> int:
    """Code of a color in :func:`read_colored_codes`."""
    return color[0] << 16 | color[1] << 8 | color[2] | COLORED


def code_name(code: int) -> str:
    """A code of :func:`read_colored_codes` in words: a color as R,G,B, a number as it is."""
    if code < COLORED:
        return str(code)
    return ",".join(str(code >> shift & 255) for shift in (16, 8, 0))


def _from_json(text: str) -> list[tuple[str, Color]]:
    pairs = []
    # Pairs: a name with several colors stands there several times, and a dictionary keeps one.
    for name, color in json.loads(text, object_pairs_hook=list):
        red, green, blue = (int(channel) for channel in color)
        pairs.append((clean_name(name), (red, green, blue)))
    return pairs


def _from_lines(text: str) -> list[tuple[str, Color]]:
    pairs: list[tuple[str, Color]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.replace(",", " ").split()
        header = [word.lower() for word in words[-3:]] == ["r", "g", "b"]
        if not words or is_comment(line) or header:
            continue
        found = _CVAT.fullmatch(line) or _NAME_FIRST.fullmatch(line) or _NAME_LAST.fullmatch(line)
        if found is None:
            raise ValueError(f"line {number} reads {line.strip()!r}")
        red, green, blue = (int(found[channel]) for channel in "rgb")
        pairs.append((clean_name(unescaped(clean_name(found["name"]))), (red, green, blue)))
    return pairs
