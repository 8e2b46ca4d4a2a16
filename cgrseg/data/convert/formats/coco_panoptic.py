"""COCO's panoptic files: one PNG per image whose colors are the ids of segments.

Format: https://cocodataset.org/#format-data.  A segment's id is R + 256 G + 65536 B; the JSON file
gives the category of each.  Id 0 is covered by nothing.
"""

from __future__ import annotations

import json
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from cgrseg.data.convert.color_masks import color_codes
from cgrseg.data.convert.custom_format import written_name
from cgrseg.data.convert.format import Failure, Option, reading, skipped
from cgrseg.data.convert.image_names import find_file, named_inside
from cgrseg.data.convert.tool_format import UNCOVERED, LabeledImage, MaskFormat, Source, peek_json
from cgrseg.errors import option
from cgrseg.input_files import read_input_text


@dataclass
class CocoPanoptic(MaskFormat):
    """COCO panoptic: a JSON file, and a folder of PNGs whose colors are ids of segments.

    Example:
      cgrseg data convert coco-panoptic panoptic_val2017.json data/mine --image-folder val2017
    """

    name = "coco-panoptic"

    _: KW_ONLY
    masks: Annotated[
        Path | None,
        Option("Folder of the PNGs. Default: the JSON file's name without its ending."),
    ] = None

    @classmethod
    def recognize(cls, source: Path) -> str:
        """Annotations with segments_info."""
        data = peek_json(source)
        listed = data.get("annotations") if isinstance(data, dict) else None
        first = listed[0] if isinstance(listed, list) and listed else None
        known = isinstance(first, dict) and "segments_info" in first
        return "annotations with segments_info" if known else ""

    def find(self) -> Source:
        """Classes are the categories in the order of their ids."""
        folder = self.masks or self.source.with_suffix("")
        places = (self.source.parent / "images", self.source.parent)
        found: list[LabeledImage | Failure] = []
        with reading(
            self.source,
            expected="a COCO panoptic file with images, annotations and categories",
            remedy="download or export it again; files with polygons: cgrseg data convert coco",
        ):
            data = json.loads(read_input_text(self.source, "utf-8-sig"))
            names = {
                int(each["id"]): written_name(each["name"], f"{self.source}, category {number}")
                for number, each in enumerate(data["categories"], start=1)
            }
            images = {each["id"]: each for each in data["images"]}
            for each in data["annotations"]:
                found.append(self._image(each, images[each["image_id"]], names, folder, places))
        return Source(found, [names[key] for key in sorted(names)])

    @staticmethod
    def read_codes(mask: Path) -> np.ndarray:
        """Ids of segments."""
        codes = color_codes(mask)
        return (codes & 255) << 16 | codes & 0xFF00 | codes >> 16

    def _image(
        self,
        annotation: Any,
        image: Any,
        names: dict[int, str],
        folder: Path,
        places: tuple[Path, ...],
    ) -> LabeledImage | Failure:
        codes: dict[int, str | None] = {0: UNCOVERED}
        for each in annotation["segments_info"]:
            codes[int(each["id"])] = names[each["category_id"]]
        file, size = str(annotation["file_name"]), (int(image["height"]), int(image["width"]))
        try:
            mask = find_file(named_inside(folder, file))
            problem = "no such file"
        except ValueError as error:
            mask, problem = folder / "?", str(error)
        if not mask.is_file():
            return skipped(
                mask,
                file=file,
                found=f"no PNG of its segments ({problem})",
                expected=f"the PNG of image {annotation['image_id']} below {folder}",
                remedy=f"put it there, or name the folder of the PNGs ({option('--masks')})",
            )
        return LabeledImage(
            self.source,
            str(image["file_name"]),
            size=size,
            folders=[*places, self.source.parent.parent / "images"],
            mask=mask,
            codes=codes,
        )
