"""CamVid's layout, as CVAT exports it too: folders `NAME` of images and `NAMEannot` of masks.

`label_colors.txt` has lines `r g b name`.  Without it, masks in color have the 32 classes of CamVid
(Brostow et al., 2009), of which Void is ignored; masks in gray hold the ids of the usual 11, and 11
where there is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cgrseg.data.convert.color_masks import (
    COLORED,
    code_of,
    coded_by_color,
    read_color_table,
    read_colored_codes,
)
from cgrseg.data.convert.format import Failure
from cgrseg.data.convert.image_names import index_images
from cgrseg.data.convert.tool_format import LabeledImage, MaskFormat, Source, plain_split
from cgrseg.datasets import camvid
from cgrseg.datasets.spec import class_table
from cgrseg.errors import DataError

COLOR_TABLE = "label_colors.txt"

_ENDING = "annot"
_VOID = "Void"
_ALL_CLASSES, _ALL_COLORS = class_table("""
    Void 000000, Animal 408040, Archway c00080, Bicyclist 0080c0, Bridge 008040, Building 800000,
    Car 400080, CartLuggagePram 4000c0, Child c08040, Column_Pole c0c080, Fence 404080,
    LaneMkgsDriv 8000c0, LaneMkgsNonDriv c00040, Misc_Text 808040, MotorcycleScooter c000c0,
    OtherMoving 804040, ParkingBlock 40c080, Pedestrian 404000, Road 804080, RoadShoulder 8080c0,
    Sidewalk 0000c0, SignSymbol c08080, Sky 808080, SUVPickupTruck 4080c0, TrafficCone 000040,
    TrafficLight 004040, Train c04080, Tree 808000, Truck_Bus c080c0, Tunnel 400040,
    VegetationMisc c0c000, Wall 40c000
""")


@dataclass
class CamVid(MaskFormat):
    """CamVid's layout (train, trainannot, ...), as CVAT exports it too.

    Example:
      cgrseg data convert camvid cvat_export data/mine
    """

    name = "camvid"

    @classmethod
    def recognize(cls, source: Path) -> str:
        """A folder and its partner with the ending."""
        folder = next(iter(_folders(source)), None)
        return "" if folder is None else f"{folder} beside {folder}{_ENDING}"

    def find(self) -> Source:
        """Classes are the lines of label_colors.txt, else those of CamVid."""
        masks = [
            (name, mask)
            for name in _folders(self.source)
            for mask in index_images(self.source / f"{name}{_ENDING}").values()
        ]
        table = self.source / COLOR_TABLE
        ignored: dict[int, None] = {}
        if table.is_file():
            named = read_color_table(table)
        elif masks and int(read_colored_codes(masks[0][1]).max()) >= COLORED:
            named = dict(zip(_ALL_COLORS, _ALL_CLASSES, strict=True))
            ignored = {code_of(color): None for color, name in named.items() if name == _VOID}
        else:
            named = dict(zip(camvid.SPEC.palette, camvid.SPEC.classes, strict=True))
            ignored = {255: None, len(named): None}
        codes = {**coded_by_color(named), **ignored}
        images: list[LabeledImage | Failure] = [
            LabeledImage(
                mask,
                mask.name,
                split=plain_split(name),
                folders=[self.source / name],
                mask=mask,
                codes=codes,
            )
            for name, mask in masks
        ]
        if not images:
            raise DataError(
                self.source,
                found=f"no folders NAME and NAME{_ENDING}",
                expected=f"train and train{_ENDING}, for example",
                remedy="name the folder that holds them",
            )
        declared = [name for name in dict.fromkeys(codes.values()) if name]
        return Source(images, declared, colors={name: color for color, name in named.items()})

    @staticmethod
    def read_codes(mask: Path) -> np.ndarray:
        """As VOC's."""
        return read_colored_codes(mask)


def _folders(source: Path) -> list[str]:
    names = sorted(each.name for each in source.glob(f"*{_ENDING}") if each.is_dir())
    plain = [name.removesuffix(_ENDING) for name in names]
    return [name for name in plain if name and (source / name).is_dir()]
