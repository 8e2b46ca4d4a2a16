"""Datumaro's "common semantic segmentation": images, masks and dataset_meta.json.

`label_map` there has the name of each id; with `segmentation_colors` the masks have the color of
each class, otherwise its id.  Names of images and masks may begin with different prefixes.
"""

from __future__ import annotations

import json
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from cgrseg.data.convert.color_masks import Color, coded_by_color, read_colored_codes
from cgrseg.data.convert.custom_format import written_name
from cgrseg.data.convert.format import Failure, Option, reading
from cgrseg.data.convert.image_names import index_images
from cgrseg.data.convert.tool_format import LabeledImage, MaskFormat, Source
from cgrseg.input_files import read_input_text

META_FILE = "dataset_meta.json"


@dataclass
class DatumaroMasks(MaskFormat):
    """Datumaro's common semantic segmentation: images, masks, dataset_meta.json.

    Example:
      cgrseg data convert datumaro-masks dataset data/mine --mask-prefix gt_ --image-prefix image_
    """

    name = "datumaro-masks"

    _: KW_ONLY
    image_prefix: Annotated[str, Option("Beginning of image names before the common part.")] = ""
    mask_prefix: Annotated[str, Option("Beginning of mask names before the common part.")] = ""

    @classmethod
    def recognize(cls, source: Path) -> str:
        """The meta file beside the folders."""
        has_folders = (source / "images").is_dir() and (source / "masks").is_dir()
        return META_FILE if has_folders and (source / META_FILE).is_file() else ""

    def find(self) -> Source:
        """Classes are those of label_map, in the order of their ids."""
        path = self.source / META_FILE
        names, colors = _read_meta(path)
        codes = coded_by_color(dict(zip(colors, names, strict=True)))
        images: list[LabeledImage | Failure] = [
            LabeledImage(
                mask,
                self.image_prefix + mask.name.removeprefix(self.mask_prefix),
                folders=[self.source / "images"],
                mask=mask,
                codes=codes,
            )
            for mask in index_images(self.source / "masks").values()
        ]
        return Source(images, names, colors=dict(zip(names, colors, strict=True)))

    @staticmethod
    def read_codes(mask: Path) -> np.ndarray:
        """As VOC's."""
        return read_colored_codes(mask)


def _read_meta(path: Path) -> tuple[list[str], list[Color]]:
    with reading(
        path,
        expected="label_map with a name for each id, and segmentation_colors",
        remedy="export the dataset again",
    ):
        data = json.loads(read_input_text(path, "utf-8-sig"))
        by_id = {int(key): name for key, name in data["label_map"].items()}
        if sorted(by_id) != list(range(len(by_id))):
            raise ValueError(f"its ids are {sorted(by_id)}, not 0 to {len(by_id) - 1}")
        names = [written_name(by_id[k], f"{path}, label_map, {k}") for k in sorted(by_id)]
        listed = data.get("segmentation_colors") or [[0, 0, k] for k in range(len(names))]
        colors = [(int(red), int(green), int(blue)) for red, green, blue in listed]
        if len(colors) != len(names) or len(set(colors)) != len(colors):
            raise ValueError(f"it has {len(names)} classes and {len(set(colors))} colors")
        return names, colors
