"""RGB masks, where each class has a color."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from cgrseg.class_names import clean_name
from cgrseg.data.convert.color_masks import Color, color_codes, read_color_table
from cgrseg.data.convert.custom_format import CustomFormat, ImageFolder, OutFolder
from cgrseg.data.convert.format import Annotations, Argument, Option, Task
from cgrseg.data.convert.image_names import index_images
from cgrseg.data.parallel import run_parallel
from cgrseg.errors import DataError, option

_SHOWN_COLORS = 40


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
            found = list_colors(self.masks, suffix=self.mask_suffix, workers=self.workers)
            raise _no_color_table(self.masks, found)
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
        codes = color_codes(task.source)
        known = np.asarray(task.content[0], dtype=np.int32)
        position = np.minimum(np.searchsorted(known, codes), len(known) - 1)
        strange = known[position] != codes
        if strange.any():
            raise _unknown_colors(task.source, codes[strange], codes.size, known)
        return np.asarray(task.content[1], dtype=np.uint8)[position]


def list_colors(masks: Path, *, suffix: str = "", workers: int | None = None) -> dict[Color, float]:
    """Colors in a folder of masks, with their shares of all pixels.

    Args:
        masks: folder of the masks, with its subfolders.
        suffix: ending of the masks' names; other images are left out.
        workers: number of processes; None: chosen from the amount of work.

    Raises:
        DataError: no such folder, or a mask that cannot be read.
    """
    counts: dict[int, int] = {}
    paths = [path for name, path in index_images(masks).items() if name.endswith(suffix)]
    for one in run_parallel(_count_colors, paths, workers=workers):
        for code, count in one.items():
            counts[code] = counts.get(code, 0) + count
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return {_rgb(code): count / total for code, count in ordered}


def _count_colors(path: Path) -> dict[int, int]:
    values, counts = np.unique(color_codes(path), return_counts=True)
    return {int(v): int(c) for v, c in zip(values, counts, strict=True)}


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
