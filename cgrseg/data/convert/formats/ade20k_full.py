"""The full ADE20K (2017 and 2020), with all its classes (https://ade20k.csail.mit.edu).

`x_seg.png` holds R // 10 * 256 + G, the index of the class, and in B the object.  Beside it lies
`x.json` (2020), which names the class of each index, or `x_atr.txt` (2017), which names the class
of each object.  Parts of objects (`x_parts_1.png`) are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cgrseg.data.convert.color_masks import color_codes
from cgrseg.data.convert.custom_format import written_name
from cgrseg.data.convert.format import Failure, reading
from cgrseg.data.convert.tool_format import (
    UNCOVERED,
    LabeledImage,
    MaskFormat,
    Source,
    plain_split,
)
from cgrseg.data.parallel import run_parallel
from cgrseg.errors import DataError
from cgrseg.input_files import read_input_text

_ENDING = "_seg.png"
_OBJECT = 1 << 24  # added to the numbers of objects


@dataclass
class Ade20kFull(MaskFormat):
    """The full ADE20K, 2017 or 2020. It has thousands of classes: choose some with --classes.

    Example:
      cgrseg data convert ade20k-full ADE20K_2021_17_01 data/mine --classes wall,floor,door
    """

    name = "ade20k-full"

    @classmethod
    def recognize(cls, source: Path) -> str:
        """A mask with its description."""
        mask = next(_masks(source), None)
        return "" if mask is None else f"*{_ENDING} beside {_description(mask).name}"

    def find(self) -> Source:
        """Classes are the names of objects that occur, in alphabetical order."""
        masks = sorted(_masks(self.source))
        if not masks:
            raise DataError(
                self.source,
                found=f"no files *{_ENDING} beside .json or _atr.txt files",
                expected="the folders of the full ADE20K",
                remedy="name the folder that holds training and validation",
            )
        images: list[LabeledImage | Failure] = []
        for mask, codes in zip(
            masks, run_parallel(_codes, masks, workers=self.workers), strict=True
        ):
            if isinstance(codes, Failure):
                images.append(codes)
                continue
            stem = mask.name.removesuffix(_ENDING)
            above = [plain_split(name) for name in mask.relative_to(self.source).parts[:-1]]
            split = next((name for name in above if name), None)
            images.append(
                LabeledImage(
                    _description(mask),
                    f"{stem}.jpg",
                    split=split,
                    folders=[mask.parent],
                    mask=mask,
                    codes=codes,
                )
            )
        return Source(images)

    @staticmethod
    def read_codes(mask: Path) -> np.ndarray:
        """Indices of classes (2020); ranks of the objects' numbers, with bit 24 set (2017)."""
        colors = color_codes(mask)
        if _description(mask).suffix == ".json":
            return (colors >> 16) // 10 * 256 + (colors >> 8 & 255)
        ranks = np.unique(colors & 255, return_inverse=True)[1]
        return ranks.reshape(colors.shape) | _OBJECT


def _masks(source: Path) -> Iterator[Path]:
    return (each for each in source.rglob(f"*{_ENDING}") if _description(each).is_file())


def _description(mask: Path) -> Path:
    stem = mask.name.removesuffix(_ENDING)
    newer = mask.with_name(f"{stem}.json")
    return newer if newer.is_file() else mask.with_name(f"{stem}_atr.txt")


def _codes(mask: Path) -> dict[int, str | None] | Failure:
    """Class name of each code of a mask."""
    path = _description(mask)
    try:
        with reading(
            path,
            expected="the objects of an image, as ADE20K describes them",
            remedy="unpack the dataset again",
        ):
            text = read_input_text(path, "latin-1")
            if path.suffix == ".json":
                objects = json.loads(text)["annotation"]["object"]
                named = {
                    int(each["name_ndx"]): each["raw_name"]
                    for each in objects
                    if each["parts"]["part_level"] == 0
                }
                found: dict[int, str | None] = {0: UNCOVERED}
            else:
                lines = [[word.strip() for word in line.split("#")] for line in text.splitlines()]
                named = {
                    int(words[0]) | _OBJECT: words[4] for words in lines if words[1:2] == ["0"]
                }
                found = {_OBJECT: UNCOVERED}
            for code, name in named.items():
                found[code] = written_name(name, f"{path}, object {code & ~_OBJECT}")
            return found
    except DataError as error:
        return Failure(str(path), str(error))
