"""Supervisely's projects: bitmaps, polygons and rectangles in JSON files.

Format: https://docs.supervisely.com/data-organization/00_ann_format_navi.  `meta.json` lists the
classes; each dataset is a folder with `img` and `ann`.  A later object lies on top.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cgrseg.data.convert.custom_format import written_name
from cgrseg.data.convert.format import Failure, reading
from cgrseg.data.convert.regions import Bitmap, Polygon, Region, Shape, corners
from cgrseg.data.convert.tool_format import LabeledImage, ShapeFormat, Source, plain_split
from cgrseg.data.parallel import run_parallel
from cgrseg.errors import DataError
from cgrseg.input_files import read_input_text

_AREAS = ("bitmap", "polygon", "rectangle")


@dataclass
class Supervisely(ShapeFormat):
    """Supervisely projects: bitmaps, polygons, rectangles.

    Example:
      cgrseg data convert supervisely my_project data/mine --background other
    """

    name = "supervisely"
    tool = "Supervisely"

    @classmethod
    def recognize(cls, source: Path) -> str:
        """The list of classes and folders of annotations."""
        known = (source / "meta.json").is_file() and any(source.glob("*/ann"))
        return "meta.json and */ann" if known else ""

    def find(self) -> Source:
        """Classes are those of meta.json, in its order."""
        meta = self.source / "meta.json"
        with _reading(meta):
            titles = [each["title"] for each in _read_json(meta)["classes"]]
        declared = [written_name(title, f"{meta}, class {k}") for k, title in enumerate(titles, 1)]
        files = sorted(self.source.glob("*/ann/*.json"))
        if not files:
            raise DataError(
                self.source,
                found="no files */ann/*.json",
                expected="a Supervisely project: meta.json, and datasets with img and ann",
                remedy="name the folder that holds meta.json",
            )
        images: list[LabeledImage | Failure] = []
        left_out: Counter[str] = Counter()
        for path, scan in zip(files, run_parallel(_scan, files, workers=self.workers), strict=True):
            if isinstance(scan, Failure):
                images.append(scan)
                continue
            size, names, left = scan
            left_out.update(left)
            folder = path.parent.parent
            images.append(
                LabeledImage(
                    path,
                    path.name.removesuffix(".json"),
                    functools.partial(_regions, path),
                    size,
                    plain_split(folder.name),
                    [folder / "img"],
                    names,
                )
            )
        return Source(images, list(dict.fromkeys(declared)), left_out)

    @staticmethod
    def shape(values: Mapping[str, Any], height: int, width: int) -> Shape:
        """The shape of an object."""
        kind = values["geometryType"]
        if kind == "bitmap":
            column, row = values["bitmap"]["origin"]
            return Bitmap(values["bitmap"]["data"], int(column), int(row))
        outline, holes = values["points"]["exterior"], values["points"].get("interior") or []
        if kind == "rectangle":
            (x0, y0), (x1, y1) = outline
            # Both corners are pixels of the rectangle.
            return Polygon([corners(min(x0, x1), min(y0, y1), max(x0, x1) + 1, max(y0, y1) + 1)])
        return Polygon([outline], holes)


_reading = functools.partial(
    reading, expected="JSON as Supervisely writes it", remedy="download the project again"
)


def _read_json(path: Path) -> Any:
    return json.loads(read_input_text(path, "utf-8-sig"))


def _scan(path: Path) -> tuple[tuple[int, int], list[str], Counter[str]] | Failure:
    """Size, class names, and what has no area."""
    try:
        with _reading(path):
            data = _read_json(path)
            size = int(data["size"]["height"]), int(data["size"]["width"])
            left_out = Counter(
                f"{each['geometryType']}, which has no area"
                for each in data["objects"]
                if each["geometryType"] not in _AREAS
            )
            return size, sorted({region.name for region in _regions(path)}), left_out
    except DataError as error:
        return Failure(str(path), str(error))


def _regions(path: Path) -> list[Region]:
    """Objects with an area, the lowest first."""
    found = []
    with _reading(path):
        for number, each in enumerate(_read_json(path)["objects"], start=1):
            place = f"{path}, object {number}"
            if each["geometryType"] in _AREAS:
                found.append(Region(written_name(each["classTitle"], place), place, each))
    return found
