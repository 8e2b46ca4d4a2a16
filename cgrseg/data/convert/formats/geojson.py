"""GeoJSON of QuPath and others: polygons with holes, in pixels from the top left corner.

Format: RFC 7946 with the properties of QuPath
(https://qupath.readthedocs.io/en/stable/docs/advanced/exporting_annotations.html).  One file per
image.  QGIS draws such files upside down, since its second axis points upwards.  A later feature
lies on top.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cgrseg.data.convert.annotation_writer import AnnotatedImage, AnnotationWriter, score_entry
from cgrseg.data.convert.custom_format import written_name
from cgrseg.data.convert.format import Failure, reading
from cgrseg.data.convert.regions import Polygon, Region, Shape
from cgrseg.data.convert.tool_format import LabeledImage, ShapeFormat, Source, peek_json
from cgrseg.errors import DataError
from cgrseg.input_files import read_input_text

SUFFIX = ".geojson"

_NAMES = ("class", "label", "name")  # properties that may hold the class, after QuPath's own


class GeoJsonWriter(AnnotationWriter):
    """A feature collection per image."""

    file = "{}" + SUFFIX
    shapes = ("polygon",)
    advice = "QuPath: File, Import objects from file, with the image open"

    def add(self, image: AnnotatedImage, folder: Path) -> str:
        """The file of an image."""
        features = [
            {
                "type": "Feature",
                "geometry": {
                    "type": "Polygon",
                    "coordinates": [
                        [*ring.tolist(), ring[0].tolist()]
                        for ring in (region.outline, *region.holes)
                    ],
                },
                "properties": {
                    "objectType": "annotation",
                    "classification": {
                        "name": self.classes[region.value],
                        "color": list(self.palette[region.value]),
                    },
                    "measurements": score_entry(region.score),
                    "class": self.classes[region.value],
                    **score_entry(region.score),
                },
            }
            for region in image.regions
        ]
        about = {"name": image.name, "width": image.width, "height": image.height}
        data = {"type": "FeatureCollection", "image": about, "features": features}
        return json.dumps(data, ensure_ascii=False) + "\n"


@dataclass
class GeoJson(ShapeFormat):
    """GeoJSON files in pixels, one per image (QuPath).

    Example:
      cgrseg data convert geojson exported data/mine --image-folder images
    """

    name = "geojson"
    tool = "QuPath"
    writer = GeoJsonWriter

    @classmethod
    def recognize(cls, source: Path) -> str:
        """Features in a .geojson file."""
        for path in _files(source)[:1]:
            data = peek_json(path)
            if isinstance(data, dict) and "features" in data:
                return f"features in {path.name}"
        return ""

    def find(self) -> Source:
        """Classes are those that occur, in alphabetical order."""
        files = _files(self.source)
        if not files:
            raise DataError(
                self.source,
                found=f"no {SUFFIX} files",
                expected=f"a {SUFFIX} file, or a folder of them, one per image",
                remedy="check the path",
            )
        top = self.source if self.source.is_dir() else self.source.parent
        left_out: Counter[str] = Counter()
        images: list[LabeledImage | Failure] = []
        for path in files:
            try:
                with reading(
                    path,
                    expected="a FeatureCollection whose features have a class",
                    remedy="export it again, or move it out of the folder",
                ):
                    images.append(_image(path, top, left_out))
            except DataError as error:
                images.append(Failure(str(path), str(error)))
        return Source(images, None, left_out)

    @staticmethod
    def shape(values: Any, height: int, width: int) -> Shape:
        """The polygons of a geometry."""
        polygons = values["coordinates"]
        return _Polygons(
            [polygons] if values["type"] == "Polygon" else polygons,
        )


@dataclass(frozen=True)
class _Polygons:
    """Polygons of one feature: each a list of rings, the first around the others, its holes."""

    polygons: list[list[list[list[float]]]]

    def mask(self, height: int, width: int) -> np.ndarray:
        masks = (Polygon([rings[0]], rings[1:]).mask(height, width) for rings in self.polygons)
        return np.logical_or.reduce([np.zeros((height, width), bool), *masks])


def _files(source: Path) -> list[Path]:
    if source.is_dir():
        return sorted(path for path in source.rglob(f"*{SUFFIX}") if path.is_file())
    return [source] if source.is_file() and source.suffix.lower() in (SUFFIX, ".json") else []


def _image(path: Path, top: Path, left_out: Counter[str]) -> LabeledImage:
    data = json.loads(read_input_text(path, "utf-8-sig"))
    features = data["features"] if isinstance(data, dict) else data  # older versions of QuPath
    about = data.get("image", {}) if isinstance(data, dict) else {}
    regions = []
    for number, feature in enumerate(features, start=1):
        where = f"{path}, feature {number}"
        geometry = feature["geometry"]
        name = _class_name(feature.get("properties") or {})
        if geometry is None or geometry["type"] not in ("Polygon", "MultiPolygon"):
            kind = "no geometry" if geometry is None else geometry["type"]
            left_out[f"{kind}, which has no area"] += 1
        elif name is None:
            left_out["feature without a class"] += 1
        else:
            regions.append(Region(written_name(name, where), where, geometry))
    size = (int(about["height"]), int(about["width"])) if "height" in about else None
    # The image has the name of the file, with any suffix.
    image = str(about.get("name") or f"{path.relative_to(top).with_suffix('').as_posix()}.png")
    folders = (top / "images", top, path.parent)
    return LabeledImage(path, image, regions, size, folders=folders)


def _class_name(properties: Mapping[str, Any]) -> Any:
    classified = properties.get("classification")
    if isinstance(classified, Mapping) and classified.get("name"):
        return classified["name"]
    return next((properties[name] for name in _NAMES if properties.get(name)), None)
