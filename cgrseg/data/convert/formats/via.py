"""VGG Image Annotator (VIA), versions 1 and 2: JSON with polygons, rectangles, circles, ellipses.

Format: https://www.robots.ox.ac.uk/~vgg/software/via/.  Version 1 keeps the regions of an image in
a dictionary, version 2 in a list; a project of version 2 has them under `_via_img_metadata`.
A later region lies on top.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any

from cgrseg.data.convert.custom_format import written_name
from cgrseg.data.convert.format import Failure, Option, reading
from cgrseg.data.convert.regions import Ellipse, Polygon, Region, Shape, corners
from cgrseg.data.convert.tool_format import LabeledImage, ShapeFormat, Source, peek_json
from cgrseg.errors import DataError, option
from cgrseg.input_files import read_input_text

_AREAS = ("polygon", "rect", "circle", "ellipse")


@dataclass
class Via(ShapeFormat):
    """VGG Image Annotator (VIA 1.x, 2.x): polygons, rectangles, circles, ellipses.

    Example:
      cgrseg data convert via via_region_data.json data/mine --attribute class
    """

    name = "via"
    tool = "VIA"

    _: KW_ONLY
    attribute: Annotated[
        str | None, Option("Region attribute that holds the class. Default: the only one.")
    ] = None

    @classmethod
    def recognize(cls, source: Path) -> str:
        """Entries with filename and regions."""
        data = peek_json(source)
        entries = data.get("_via_img_metadata", data) if isinstance(data, dict) else {}
        first = next(iter(entries.values()), None) if isinstance(entries, dict) else None
        known = isinstance(first, dict) and {"filename", "regions"} <= first.keys()
        return "entries with filename and regions" if known else ""

    def find(self) -> Source:
        """Classes are the values of the attribute, in alphabetical order."""
        entries = read_via(self.source)
        attribute = self.attribute or self._only_attribute(entries)
        images: list[LabeledImage | Failure] = []
        left_out: Counter[str] = Counter()
        for key, entry in entries.items():
            where = f"{self.source}, image {key}"
            try:
                with reading(
                    where,
                    expected="filename and regions, as VIA writes them",
                    remedy="correct the image in VIA, and export again",
                ):
                    regions = []
                    for number, each in enumerate(_regions_of(entry), start=1):
                        place, values = f"{where}, region {number}", each["shape_attributes"]
                        name = _class(each, attribute)
                        if values.get("name") in _AREAS and name:
                            regions.append(Region(written_name(name, place), place, values))
                        else:
                            left_out[f"{values.get('name')} without a class or an area"] += 1
                    folders = (self.source.parent / "images", self.source.parent)
                    images.append(
                        LabeledImage(self.source, str(entry["filename"]), regions, folders=folders)
                    )
            except DataError as error:
                images.append(Failure(where, str(error)))
        return Source(images, None, left_out)

    @staticmethod
    def shape(values: Mapping[str, Any], height: int, width: int) -> Shape:
        """The shape of a region's shape_attributes."""
        kind = values["name"]
        if kind == "polygon":
            points = zip(values["all_points_x"], values["all_points_y"], strict=True)
            return Polygon([[(float(x), float(y)) for x, y in points]])
        if kind == "rect":
            x, y = float(values["x"]), float(values["y"])
            return Polygon([corners(x, y, x + float(values["width"]), y + float(values["height"]))])
        center = float(values["cx"]), float(values["cy"])
        if kind == "circle":
            return Ellipse(center, (float(values["r"]), float(values["r"])))
        turn = float(values.get("theta", 0)) * 57.29577951308232  # radians
        return Ellipse(center, (float(values["rx"]), float(values["ry"])), turn)

    def _only_attribute(self, entries: Mapping[str, Any]) -> str:
        names: Counter[str] = Counter()
        for entry in entries.values():
            for each in _regions_of(entry):
                names.update(each["region_attributes"].keys())
        if len(names) != 1:
            raise DataError(
                self.source,
                found=f"the region attributes {', '.join(map(repr, names))}"
                if names
                else "regions without attributes",
                expected="one attribute that holds the class of a region",
                remedy=f"name it with {option('--attribute')}"
                if names
                else "give each region its class in VIA, and export again",
            )
        return next(iter(names))


def read_via(path: Path) -> dict[str, Any]:
    """Images of a VIA file by their keys.

    Raises:
        DataError: unreadable, or not a VIA file.
    """
    with reading(
        path,
        expected="a JSON file of VIA 1.x or 2.x: images with filename and regions",
        remedy="export the annotations from VIA as JSON",
    ):
        data = json.loads(read_input_text(path, "utf-8-sig"))
        data = data.get("_via_img_metadata", data)
        if not data or not all(isinstance(data[key]["filename"], str) for key in data):
            raise ValueError("its entries lack 'filename'")
        for entry in data.values():
            _regions_of(entry)
    return dict(data)


def _regions_of(entry: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    regions = entry.get("regions") or []
    listed = list(regions.values() if isinstance(regions, Mapping) else regions)
    for each in listed:
        if not isinstance(each["shape_attributes"], Mapping):
            raise ValueError("a region has no shape_attributes")
        if not isinstance(each["region_attributes"], Mapping):
            raise ValueError("a region has no region_attributes")
    return listed


def _class(region: Mapping[str, Any], attribute: str) -> str | None:
    """Value of the attribute; of checkboxes the only one that is set."""
    value = region["region_attributes"].get(attribute)
    if isinstance(value, Mapping):
        chosen = [name for name, is_set in value.items() if is_set]
        value = chosen[0] if len(chosen) == 1 else None
    return value if isinstance(value, str) and value.strip() else None
