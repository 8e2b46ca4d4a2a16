"""Cityscapes as it is downloaded, and KITTI's semantic segmentation, which has the same classes.

Masks hold the 34 raw ids, of which 19 are classes and the others are ignored; where there are only
Cityscapes' `instanceIds`, an id is the number from 1000 on divided by 1000.
https://www.cityscapes-dataset.com, https://www.cvlibs.net/datasets/kitti/eval_semseg.php
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cgrseg.data.convert.format import Failure
from cgrseg.data.convert.tool_format import LabeledImage, MaskFormat, Source, plain_split
from cgrseg.data.label_files import read_label_values
from cgrseg.datasets.cityscapes import CLASSES, PALETTE, RAW_IDS
from cgrseg.errors import DataError

_CODES: dict[int, str | None] = {
    **dict.fromkeys((*range(34), 255, -1)),
    **dict(zip(RAW_IDS, CLASSES, strict=True)),
}
# The best of these that an image has is read.
_ENDINGS = ("_gtFine_labelIds.png", "_gtFine_instanceIds.png")
_KITTI = Path("training/semantic")


@dataclass
class Cityscapes(MaskFormat):
    """Cityscapes' gtFine beside leftImg8bit.

    Example:
      cgrseg data convert cityscapes cityscapes data/mine
    """

    name = "cityscapes"

    @classmethod
    def recognize(cls, source: Path) -> str:
        """Masks below gtFine."""
        return next((f"gtFine/*{each}" for each in _ENDINGS if _masks(source, each)), "")

    def find(self) -> Source:
        """Classes are the 19 of the benchmark."""
        masks = {
            mask.name.removesuffix(ending): mask
            for ending in reversed(_ENDINGS)
            for mask in _masks(self.source, ending)
        }
        if not masks:
            raise _missing(self.source, f"gtFine/*/*/*{_ENDINGS[0]}")
        images: list[LabeledImage | Failure] = []
        for stem, mask in sorted(masks.items()):
            split, city = mask.parts[-3:-1]
            images.append(
                LabeledImage(
                    mask,
                    f"{stem}_leftImg8bit.png",
                    split=plain_split(split),
                    folders=[self.source / "leftImg8bit" / split / city],
                    mask=mask,
                    codes=_CODES,
                )
            )
        return _source(images)

    @staticmethod
    def read_codes(mask: Path) -> np.ndarray:
        """Raw ids."""
        values = read_label_values(mask).astype(np.int64)
        return np.where(values >= 1000, values // 1000, values)


@dataclass
class Kitti(MaskFormat):
    """KITTI's semantic segmentation (training/image_2 and training/semantic).

    Example:
      cgrseg data convert kitti data_semantics data/mine
    """

    name = "kitti"

    @classmethod
    def recognize(cls, source: Path) -> str:
        """The folder of the masks."""
        return str(_KITTI) if (source / _KITTI).is_dir() else ""

    def find(self) -> Source:
        """Classes are Cityscapes' 19."""
        masks = sorted((self.source / _KITTI).glob("*.png"))
        if not masks:
            raise _missing(self.source, f"{_KITTI}/*.png")
        folders = [self.source / "training/image_2"]
        return _source(
            [LabeledImage(m, m.name, folders=folders, mask=m, codes=_CODES) for m in masks]
        )

    @staticmethod
    def read_codes(mask: Path) -> np.ndarray:
        """Raw ids."""
        return read_label_values(mask)


def _source(images: list[LabeledImage | Failure]) -> Source:
    return Source(images, CLASSES, colors=dict(zip(CLASSES, PALETTE, strict=True)))


def _masks(source: Path, ending: str) -> list[Path]:
    return sorted((source / "gtFine").glob(f"*/*/*{ending}"))


def _missing(source: Path, pattern: str) -> DataError:
    return DataError(
        source,
        found=f"no files {pattern}",
        expected="the folder of the dataset",
        remedy="check the path",
    )
