"""PASCAL VOC's layout, as CVAT ("Segmentation mask 1.1") and other tools export it.

`SegmentationClass/x.png` holds the masks, `JPEGImages/x.jpg` the images (CVAT leaves them out
unless asked), `ImageSets/Segmentation/NAME.txt` the splits.  With CVAT's `labelmap.txt`, lines
`name:r,g,b::`, masks in color mean its colors and masks in gray its lines; without it, the classes
and colors of PASCAL VOC 2012, where 255 is the border of an object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cgrseg.data.convert.color_masks import (
    COLOR_TABLE,
    Color,
    code_of,
    coded_by_color,
    read_color_table,
    read_colored_codes,
)
from cgrseg.data.convert.format import Failure
from cgrseg.data.convert.image_names import index_images, read_stems
from cgrseg.data.convert.tool_format import LabeledImage, MaskFormat, Source, plain_split
from cgrseg.data.file_index import plain_form
from cgrseg.datasets import voc2012
from cgrseg.errors import DataError

MASKS = "SegmentationClass"

_LISTS = Path("ImageSets/Segmentation")
_BORDER = (224, 224, 192)  # color of 255 in VOC's palette


@dataclass
class Voc(MaskFormat):
    """PASCAL VOC's layout, as CVAT exports it too (Segmentation mask 1.1).

    Example:
      cgrseg data convert voc cvat_export data/mine --image-folder images
    """

    name = "voc"

    @classmethod
    def recognize(cls, source: Path) -> str:
        """SegmentationClass with a color table or with lists of splits."""
        beside = [each for each in (COLOR_TABLE, _LISTS) if (source / each).exists()]
        return f"{MASKS} and {beside[0]}" if beside and (source / MASKS).is_dir() else ""

    def find(self) -> Source:
        """Classes are the lines of labelmap.txt, else those of PASCAL VOC 2012."""
        named, codes = self._colors()
        masks = index_images(self.source / MASKS)
        splits = self._splits()
        images: list[LabeledImage | Failure] = [
            LabeledImage(
                mask,
                f"{mask.stem}.jpg",
                split=splits.get(stem),
                folders=[self.source / "JPEGImages", self.source / "images"],
                mask=mask,
                codes=codes,
            )
            for stem, mask in masks.items()
            if not splits or stem in splits
        ]
        if not images:
            raise DataError(
                self.source / _LISTS,
                found=f"no name of a file in {MASKS}",
                expected="names of masks, without endings",
                remedy="correct the lists, or remove them",
            )
        declared = list(dict.fromkeys(named.values()))
        return Source(images, declared, colors={name: color for color, name in named.items()})

    @staticmethod
    def read_codes(mask: Path) -> np.ndarray:
        """As :func:`read_colored_codes`."""
        return read_colored_codes(mask)

    def _colors(self) -> tuple[Mapping[Color, str], Mapping[int, str | None]]:
        """Class name by color, and by code."""
        table = self.source / COLOR_TABLE
        if table.is_file():
            named = read_color_table(table)
            return named, coded_by_color(named)
        named = dict(zip(voc2012.PALETTE, voc2012.CLASSES, strict=True))
        return named, {255: None, code_of(_BORDER): None, **coded_by_color(named)}

    def _splits(self) -> dict[str, str | None]:
        """Split of each name in the lists; those of trainval and others belong to none."""
        found: dict[str, str | None] = {}
        for path in sorted((self.source / _LISTS).glob("*.txt")):
            split = plain_split(path.stem)
            for stem in read_stems(path):
                found[plain_form(stem)] = found.get(plain_form(stem)) or split
        return found
