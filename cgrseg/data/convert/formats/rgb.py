"""RGB masks, where each class has a color."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from cgrseg.class_names import check_class_names, clean_name, is_comment, unescaped
from cgrseg.data.convert.custom_format import CustomFormat, ImageFolder, OutFolder
from cgrseg.data.convert.format import Annotations, Argument, Option, Task
from cgrseg.data.convert.image_names import index_images
from cgrseg.data.image_files import read_image
from cgrseg.data.parallel import run_parallel
from cgrseg.errors import DataError, option
from cgrseg.input_files import read_input_text

Color = tuple[int, int, int]

_LOSSY = (".jpg", ".jpeg", ".webp")
_SHOWN_COLORS = 40
# Commas and runs of blanks inside a name are kept; those around it separate.
_GAP, _RGB = r"[\s,]+", r"(?P<r>\d+)[\s,]+(?P<g>\d+)[\s,]+(?P<b>\d+)"
_NAME_FIRST = re.compile(rf"[\s,]*(?P<name>[^\s,].*?){_GAP}{_RGB}[\s,]*")
_NAME_LAST = re.compile(rf"[\s,]*{_RGB}{_GAP}(?P<name>[^\s,].*?)[\s,]*")
# CVAT's labelmap.txt: name:R,G,B:parts:actions
_CVAT = re.compile(rf"\s*(?P<name>\S.*?)\s*:\s*{_RGB}\s*(:.*)?")


@dataclass
class RgbMasks(CustomFormat):
    """Color masks, where each class has a color.

    Example:
      cgrseg data convert rgb images masks data/mine --colors colors.txt --ignore void
    """

    name = "rgb"
    images: ImageFolder
    masks: Annotated[Path, Argument("Folder of the masks.")]
    out: OutFolder
    _: KW_ONLY
    colors: Annotated[
        Path | Mapping[Color, str] | None,
        Option(
            "Text file of lines such as 'road 128 64 128', or JSON. Without it, the colors "
            "found are listed and nothing is written."
        ),
    ] = None
    mask_suffix: Annotated[str, Option("Ending of mask names after the image name, e.g. _L.")] = ""

    def read(self) -> Annotations:
        """Class ids follow the order of the color table."""
        if self.colors is None:
            raise _no_color_table(self.masks, list_colors(self.masks, workers=self.workers))
        where: object = self.colors
        if isinstance(self.colors, Path):
            named = read_color_table(self.colors)
        else:
            named, where = dict(self.colors), "the color table"
        named = {color: clean_name(name) for color, name in named.items()}
        table = self.settle_classes(self.kept_names(where, named.values()))
        codes = sorted(((r << 16 | g << 8 | b), table.value(n)) for (r, g, b), n in named.items())
        masks = index_images(self.masks).items()
        return Annotations(
            classes=table.classes,
            images=self.pairs(
                self.images,
                self.masks,
                masks,
                tuple(zip(*codes, strict=True)),
                what="mask",
                suffix=self.mask_suffix,
                hint="; names that differ at their end: --mask-suffix",
            ),
            settings={
                "classes": table.classes,
                "colours": {str(code): value for code, value in codes},
            },
            # The first color of each class, so that the label PNGs look like the masks.
            palette=[next(c for c, n in named.items() if n == name) for name in table.classes],
            image_mode=self.image_mode,
        )

    @staticmethod
    def draw(task: Task) -> np.ndarray:
        """The class ids of one mask."""
        codes = _color_codes(task.source)
        known = np.asarray(task.content[0], dtype=np.int32)
        position = np.minimum(np.searchsorted(known, codes), len(known) - 1)
        strange = known[position] != codes
        if strange.any():
            raise _unknown_colors(task.source, codes[strange], codes.size, known)
        return np.asarray(task.content[1], dtype=np.uint8)[position]


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


def list_colors(masks: Path, *, workers: int | None = None) -> dict[Color, float]:
    """Colors in a folder of masks, with their shares of all pixels.

    Raises:
        DataError: no such folder, or a mask that cannot be read.
    """
    counts: dict[int, int] = {}
    for one in run_parallel(_count_colors, list(index_images(masks).values()), workers=workers):
        for code, count in one.items():
            counts[code] = counts.get(code, 0) + count
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return {_rgb(code): count / total for code, count in ordered}


def _count_colors(path: Path) -> dict[int, int]:
    values, counts = np.unique(_color_codes(path), return_counts=True)
    return {int(v): int(c) for v, c in zip(values, counts, strict=True)}


def _color_codes(path: Path) -> np.ndarray:
    """Colors of a mask (H, W) int32, as R * 65536 + G * 256 + B."""
    if path.suffix.lower() in _LOSSY:
        raise DataError(
            path,
            found=f"a mask in the lossy format {path.suffix}",
            expected="a lossless file (PNG): lossy ones change the colors along every border",
            remedy="export the masks again as PNG",
        )
    wide = read_image(path).astype(np.int32)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def _rgb(code: int) -> Color:
    return code >> 16, code >> 8 & 255, code & 255


def _unknown_colors(path: Path, codes: np.ndarray, pixels: int, known: np.ndarray) -> DataError:
    values, counts = np.unique(codes, return_counts=True)
    order = np.argsort(-counts)[:5]
    shown = ", ".join(f"{_rgb(int(values[k]))} ({counts[k] / pixels:.2%})" for k in order)
    more = f" and {len(values) - 5} more" if len(values) > 5 else ""
    remedy = "add the color to the color table, or correct the mask"
    if len(values) > 64:
        remedy = "export the masks without smoothing and never through JPEG"
    elif all(len(set(_rgb(int(v)))) == 1 for v in values):
        remedy += "; gray values only: if these are class ids, no conversion is needed"
    most = _rgb(int(values[order[0]]))
    nearest = min(
        (_rgb(int(code)) for code in known),
        key=lambda color: sum((a - b) ** 2 for a, b in zip(color, most, strict=True)),
    )
    return DataError(
        path,
        found=f"colors of no class: {shown}{more}; the nearest known one is {nearest}",
        expected=f"only the {len(known)} colors of the table",
        remedy=remedy,
    )


def _no_color_table(masks: Path, found: Mapping[Color, float]) -> DataError:
    shown = list(found.items())[:_SHOWN_COLORS]
    lines = "".join(f"\n    {r} {g} {b}   {share:.2%}" for (r, g, b), share in shown)
    more = f"\n    and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
    remedy = (
        "write a text file of lines such as 'road 128 64 128', and give it with "
        f"{option('--colors')}"
    )
    if len(found) > 256:
        remedy = "export the masks without smoothing and never through JPEG; then " + remedy
    return DataError(
        masks,
        found=f"{len(found)} colors, and no table that names them:{lines}{more}",
        expected="a class name for each color",
        remedy=remedy,
    )
