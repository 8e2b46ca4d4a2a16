"""CVAT's "CVAT for images 1.1": an XML file with polygons, boxes, ellipses and masks.

Format: https://docs.cvat.ai/docs/manual/advanced/formats/format-cvat/.  A shape with a higher
`z_order` lies on top; among equals the later one, as CVAT draws them.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from cgrseg.data.convert.annotation_writer import (
    AnnotatedImage,
    AnnotationWriter,
    html_color,
    score_entry,
)
from cgrseg.data.convert.custom_format import written_name
from cgrseg.data.convert.format import Failure, reading
from cgrseg.data.convert.image_names import named_inside
from cgrseg.data.convert.regions import Ellipse, Polygon, Region, RowRuns, Shape, corners
from cgrseg.data.convert.shapes import encode_runs
from cgrseg.data.convert.tool_format import LabeledImage, ShapeFormat, Source, plain_split
from cgrseg.errors import DataError
from cgrseg.input_files import read_input

FILE_NAME = "annotations.xml"

_AREAS = ("polygon", "box", "ellipse", "mask")
_NO_AREAS = ("polyline", "points", "cuboid", "skeleton", "tag")


class CvatWriter(AnnotationWriter):
    """Images with polygons or masks, whose score is an attribute.

    CVAT keeps an attribute that its labels declare: `labels.json` declares it.
    """

    file = FILE_NAME
    advice = (
        "create the task from the same images with the labels of labels.json (Raw), then "
        "Actions, Upload annotations, CVAT 1.1"
    )

    def begin(self) -> str:
        """The labels, as in a task."""
        self._count = 0
        labels = "".join(
            f"<label><name>{escape(label['name'])}</name><color>{label['color']}</color><attributes>"
            "<attribute><name>score</name><mutable>False</mutable><input_type>text</input_type>"
            "<default_value></default_value><values></values></attribute></attributes></label>\n"
            for label in self._labels()
        )
        return (
            '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
            f"<meta><task><labels>\n{labels}</labels></task></meta>\n"
        )

    def add(self, image: AnnotatedImage, folder: Path) -> str:
        """An element of the image."""
        head = (
            f'<image id="{self._count}" name={quoteattr(image.name)} width="{image.width}" '
            f'height="{image.height}">\n'
        )
        self._count += 1
        return head + "".join(self._elements(image)) + "</image>\n"

    def end(self) -> str:
        """The end of the file."""
        return "</annotations>\n"

    def companions(self) -> Mapping[str, str]:
        """Labels for CVAT's raw editor."""
        return {"labels.json": json.dumps(self._labels(), indent=2, ensure_ascii=False) + "\n"}

    def _elements(self, image: AnnotatedImage) -> Iterator[str]:
        for region in image.regions:
            label = quoteattr(self.classes[region.value])
            common = f'label={label} source="auto" occluded="0" z_order="0"'
            if self.shape == "mask":
                runs = ", ".join(map(str, encode_runs(region.mask.ravel())))
                rows, columns = region.mask.shape
                tag = "mask"
                place = (
                    f'rle="{runs}" left="{region.left}" top="{region.top}" width="{columns}" '
                    f'height="{rows}"'
                )
            else:
                points = ";".join(f"{x:.2f},{y:.2f}" for x, y in region.joined_outline().tolist())
                tag, place = "polygon", f'points="{points}"'
            score = "".join(
                f'<attribute name="{name}">{value}</attribute>'
                for name, value in score_entry(region.score).items()
            )
            yield f"<{tag} {common} {place}>{score}</{tag}>\n"

    def _labels(self) -> list[dict[str, Any]]:
        score = {
            "name": "score",
            "mutable": False,
            "input_type": "text",
            "default_value": "",
            "values": [""],
        }
        return [
            {"name": name, "color": html_color(color), "attributes": [score]}
            for name, color in zip(self.classes, self.palette, strict=True)
        ]


@dataclass
class Cvat(ShapeFormat):
    """CVAT's XML of images (CVAT for images 1.1): polygons, boxes, ellipses, masks.

    Example:
      cgrseg data convert cvat export/annotations.xml data/mine --background other
    """

    name = "cvat"
    tool = "CVAT"
    writer = CvatWriter

    @classmethod
    def recognize(cls, source: Path) -> str:
        """The root of the file, which is annotations.xml in a folder."""
        path = source / FILE_NAME if source.is_dir() else source
        try:
            root = _read(path) if path.suffix.lower() == ".xml" and path.is_file() else None
        except DataError:
            return ""
        return "" if root is None else f"<annotations> in {path.name}"

    def find(self) -> Source:
        """Classes are the labels of the project or task, in its order."""
        path = self.source / FILE_NAME if self.source.is_dir() else self.source
        root = _read(path)
        declared = [
            written_name(label.text, f"{path}, label {number}")
            for number, label in enumerate(root.iterfind("meta//labels/label/name"), start=1)
        ]
        folders = (path.parent / "images", path.parent)
        images: list[LabeledImage | Failure] = []
        left_out: Counter[str] = Counter()
        for element in root.iterfind("image"):
            image = element.get("name", "")
            where = f"{path}, image {image}"
            subset = element.get("subset") or ""
            try:
                with _reading(where):
                    size = int(element.attrib["height"]), int(element.attrib["width"])
                    regions = _regions(element, where, left_out)
            except DataError as error:
                images.append(Failure(where, str(error)))
                continue
            own: list[Path] = []
            with contextlib.suppress(ValueError):  # no subset, or one that leads elsewhere
                own = [named_inside(folder, subset) for folder in folders]
            images.append(
                LabeledImage(path, image, regions, size, plain_split(subset), [*own, *folders])
            )
        if not images:
            raise DataError(
                path,
                found="no <image>, but <track>" if root.find("track") is not None else "no <image>",
                expected="an export in the format 'CVAT for images 1.1'",
                remedy="export the task or project from CVAT again, in this format",
            )
        return Source(images, list(dict.fromkeys(declared)) or None, left_out)

    @staticmethod
    def shape(values: dict[str, str], height: int, width: int) -> Shape:
        """The shape of an element, from its attributes and its tag."""
        tag = values["tag"]
        if tag == "polygon":
            points = [[float(v) for v in point.split(",")] for point in values["points"].split(";")]
            return Polygon([points])
        angle = float(values.get("rotation", 0))
        if tag == "box":
            left, top, right, bottom = (
                float(values[name]) for name in ("xtl", "ytl", "xbr", "ybr")
            )
            return Polygon([corners(left, top, right, bottom, angle=angle)])
        if tag == "ellipse":
            x, y, rx, ry = (float(values[name]) for name in ("cx", "cy", "rx", "ry"))
            return Ellipse((x, y), (rx, ry), angle)
        counts = [int(count) for count in values["rle"].split(",")]
        left, top, columns, rows = (
            int(values[name]) for name in ("left", "top", "width", "height")
        )
        return RowRuns(counts, left, top, columns, rows)


def _regions(image: ElementTree.Element, where: str, left_out: Counter[str]) -> list[Region]:
    """Shapes of an image, the lowest first."""
    found = []
    for number, each in enumerate(image, start=1):
        if each.tag in _AREAS and each.get("label"):
            place = f"{where}, {each.tag} {number}"
            values = {**each.attrib, "tag": each.tag}
            found.append(Region(written_name(each.get("label"), place), place, values))
        elif each.tag in _AREAS:
            left_out["shape without a label"] += 1
        elif each.tag in _NO_AREAS:
            left_out[f"{each.tag}, which has no area"] += 1
    return sorted(found, key=lambda region: int(region.values.get("z_order", 0)))


def _read(path: Path) -> ElementTree.Element:
    with _reading(path):
        data = read_input(path)
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
            raise ValueError("it declares a document type, which CVAT never does")
        root = ElementTree.fromstring(data)
        if root.tag != "annotations":
            raise ValueError(f"its root is <{root.tag}>, not <annotations>")
        return root


_reading = functools.partial(
    reading,
    expected="annotations.xml in the format 'CVAT for images 1.1'",
    remedy="export the task or project from CVAT again, in this format",
    also=(ElementTree.ParseError,),
)
