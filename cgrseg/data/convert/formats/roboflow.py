"""Roboflow's "Semantic Segmentation Masks".

`train`, `valid` and `test` hold `NAME.jpg` beside `NAME_mask.png`, whose values are numbered in
`_classes.csv` (header `Pixel Value, Class`).
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cgrseg.data.convert.custom_format import written_name
from cgrseg.data.convert.format import Failure, reading, skipped
from cgrseg.data.convert.tool_format import LabeledImage, MaskFormat, Source, plain_split
from cgrseg.data.folder_layout import IMAGE_SUFFIXES
from cgrseg.data.label_files import read_label
from cgrseg.errors import DataError
from cgrseg.input_files import read_input_text

CLASS_FILE = "_classes.csv"

_ENDING = "_mask.png"


@dataclass
class Roboflow(MaskFormat):
    """Roboflow's semantic segmentation masks.

    Example:
      cgrseg data convert roboflow export data/mine
    """

    name = "roboflow"

    @classmethod
    def recognize(cls, source: Path) -> str:
        """The list of classes."""
        return CLASS_FILE if _class_files(source) else ""

    def find(self) -> Source:
        """Classes are the lines of _classes.csv, in the order of their values."""
        tables = {path: _read_classes(path) for path in _class_files(self.source)}
        if not tables:
            raise DataError(
                self.source,
                found=f"no {CLASS_FILE}",
                expected="train, valid and test, each with images, masks and _classes.csv",
                remedy="export the dataset from Roboflow as Semantic Segmentation Masks",
            )
        codes = next(iter(tables.values()))
        other = next((path for path, table in tables.items() if table != codes), None)
        if other is not None:
            raise DataError(
                other,
                found=f"other classes than in {next(iter(tables))}",
                expected="the same classes in each split",
                remedy="export the dataset again",
            )
        images: list[LabeledImage | Failure] = []
        for path in tables:
            images += self._folder(path.parent, codes)
        return Source(images, [codes[code] for code in sorted(codes)])

    @staticmethod
    def read_codes(mask: Path) -> np.ndarray:
        """Values of a mask."""
        return read_label(mask)

    def _folder(self, folder: Path, codes: dict[int, str]) -> list[LabeledImage | Failure]:
        found: list[LabeledImage | Failure] = []
        split = None if folder == self.source else plain_split(folder.name)
        for image in sorted(folder.iterdir()):
            if image.suffix.lower() not in IMAGE_SUFFIXES or image.name.endswith(_ENDING):
                continue
            mask = image.with_name(image.stem + _ENDING)
            if not mask.is_file():
                found.append(
                    skipped(
                        mask,
                        file=image,
                        found="no such file",
                        expected="the mask of this image",
                        remedy="export the dataset again, or remove the image",
                    )
                )
                continue
            found.append(
                LabeledImage(
                    mask, image.name, split=split, folders=[folder], mask=mask, codes=codes
                )
            )
        return found


def _class_files(source: Path) -> list[Path]:
    here = source / CLASS_FILE
    return [here] if here.is_file() else sorted(source.glob(f"*/{CLASS_FILE}"))


def _read_classes(path: Path) -> dict[int, str]:
    with reading(
        path,
        expected="lines 'value, class' below the header 'Pixel Value, Class'",
        remedy="export the dataset again",
        also=(csv.Error,),
    ):
        rows = list(csv.reader(read_input_text(path, "utf-8-sig").splitlines()))
        table = {
            int(row[0]): written_name(row[1].strip(), f"{path}, line {number}")
            for number, row in enumerate(rows[1:], start=2)
            if row
        }
        if not table:
            raise ValueError("it names no class")
        return table
