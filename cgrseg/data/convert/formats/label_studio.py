"""Label Studio's JSON export: polygons, brush masks, rectangles and ellipses.

Format: https://labelstud.io/guide/export and https://labelstud.io/tags.  Coordinates are percents
of the image.  Of several annotations of a task the one marked as ground truth counts, else the last
one that was not cancelled; a later region lies on top.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import quoteattr

from cgrseg.data.convert.annotation_writer import (
    AnnotatedImage,
    AnnotationWriter,
    html_color,
    score_entry,
)
from cgrseg.data.convert.custom_format import written_name
from cgrseg.data.convert.format import Failure, reading, skipped
from cgrseg.data.convert.regions import (
    BrushRuns,
    Ellipse,
    Polygon,
    Region,
    Shape,
    corners,
    encode_brush_runs,
    placed,
)
from cgrseg.data.convert.tool_format import (
    LabeledImage,
    ShapeFormat,
    Source,
    name_in_address,
    peek_json,
)
from cgrseg.data.folder_layout import IMAGE_SUFFIXES
from cgrseg.errors import DataError
from cgrseg.input_files import read_input_text

# Label Studio stores an uploaded file as eight hexadecimal digits, a hyphen, and its name.
_AREAS = {"points", "rle", "width", "radiusX"}
_UPLOAD = re.compile(r"[0-9a-f]{8}-(?=.)")


class LabelStudioWriter(AnnotationWriter):
    """Tasks with predictions: polygons, or brush masks of the image's size."""

    file = "tasks.json"
    advice = (
        "paste labeling_config.xml under Settings, Labeling interface, Code; serve the folder of "
        "the images (LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT), then import tasks.json"
    )

    def begin(self) -> str:
        """The beginning of the list."""
        self._separator = ""
        return "[\n"

    def add(self, image: AnnotatedImage, folder: Path) -> str:
        """A task; its score is the mean confidence of the image."""
        results = []
        for number, region in enumerate(image.regions, start=1):
            value: dict[str, Any]
            if self.shape == "mask":
                mask = placed(region.mask, region.top, region.left, image.height, image.width)
                value = {"format": "rle", "rle": list(encode_brush_runs(mask))}
            else:
                percent = region.joined_outline() * (100 / image.width, 100 / image.height)
                value = {"points": percent.round(6).tolist(), "closed": True}
            value[self._kind] = [self.classes[region.value]]
            results.append(
                {
                    "id": str(number),
                    "type": self._kind,
                    "from_name": "label",
                    "to_name": "image",
                    "original_width": image.width,
                    "original_height": image.height,
                    "image_rotation": 0,
                    "value": value,
                    **score_entry(region.score),
                }
            )
        prediction = {"model_version": "cgrseg", **score_entry(image.score), "result": results}
        address = f"/data/local-files/?d={quote(image.name)}"
        text = json.dumps(
            {"data": {"image": address}, "predictions": [prediction]}, ensure_ascii=False
        )
        separator, self._separator = self._separator, ",\n"
        return separator + text

    def end(self) -> str:
        """The end of the list."""
        return "\n]\n"

    def companions(self) -> Mapping[str, str]:
        """The labeling configuration, to paste."""
        tag = "BrushLabels" if self.shape == "mask" else "PolygonLabels"
        labels = "".join(
            f"    <Label value={quoteattr(name)} background={quoteattr(html_color(color))}/>\n"
            for name, color in zip(self.classes, self.palette, strict=True)
        )
        return {
            "labeling_config.xml": '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
            f'  <{tag} name="label" toName="image">\n{labels}  </{tag}>\n</View>\n'
        }

    @property
    def _kind(self) -> str:
        return "brushlabels" if self.shape == "mask" else "polygonlabels"


@dataclass
class LabelStudio(ShapeFormat):
    """Label Studio's JSON: polygons, brush masks, rectangles, ellipses.

    Example:
      cgrseg data convert label-studio export.json data/mine --image-folder images
    """

    name = "label-studio"
    tool = "Label Studio"
    writer = LabelStudioWriter

    @classmethod
    def recognize(cls, source: Path) -> str:
        """Tasks with data and annotations."""
        data = peek_json(source)
        first = data[0] if isinstance(data, list) and data else None
        known = isinstance(first, dict) and {"data", "annotations"} <= first.keys()
        return "tasks with data and annotations" if known else ""

    def find(self) -> Source:
        """Classes are the labels that occur, in alphabetical order."""
        tasks = _read(self.source)
        images: list[LabeledImage | Failure] = []
        left_out: Counter[str] = Counter()
        for number, task in enumerate(tasks, start=1):
            where = f"{self.source}, task {task.get('id', number)}"
            try:
                with reading(
                    where,
                    expected="a task as Label Studio exports it in the format JSON",
                    remedy="export the project again, or remove the task",
                ):
                    images.append(self._image(task, where, left_out))
            except DataError as error:
                images.append(Failure(where, str(error)))
        return Source(images, None, left_out)

    @staticmethod
    def shape(values: Mapping[str, Any], height: int, width: int) -> Shape:
        """The shape of a region's value."""
        across, down = width / 100, height / 100
        if "rle" in values:
            if not isinstance(values["rle"], list):  # bytes() of a number has that many zeros
                raise ValueError("its rle is not a list of bytes")
            return BrushRuns(bytes(values["rle"]))
        if "points" in values:
            return Polygon([[(float(x) * across, float(y) * down) for x, y in values["points"]]])
        x, y = float(values["x"]) * across, float(values["y"]) * down
        angle = float(values.get("rotation") or 0)
        if "radiusX" in values:
            radii = float(values["radiusX"]) * across, float(values["radiusY"]) * down
            return Ellipse((x, y), radii, angle)
        right, bottom = x + float(values["width"]) * across, y + float(values["height"]) * down
        return Polygon([corners(x, y, right, bottom, angle=angle, pivot=(x, y))])

    def references(self, image: str) -> list[str]:
        """The path in the address, its name, and the name before it was uploaded."""
        parts = urlsplit(image)
        local = parse_qs(parts.query).get("d", [])  # /data/local-files/?d=folder/image.jpg
        name = name_in_address(local[0] if local else image)
        path = unquote(parts.path).lstrip("/")
        inside = [] if parts.netloc or local else [path]
        return [*local, *inside, name, _UPLOAD.sub("", name, count=1)]

    def _image(
        self, task: Mapping[str, Any], where: str, left_out: Counter[str]
    ) -> LabeledImage | Failure:
        image = _address(task)
        results = _results(task)
        areas, regions = [], []
        for number, each in enumerate(results or [], start=1):
            value, place = each["value"], f"{where}, region {each.get('id', number)}"
            labels = value.get(each["type"])  # under the name of its control: polygonlabels
            if isinstance(labels, list) and _AREAS & value.keys():
                areas.append(each)
                regions += [Region(written_name(name, place), place, value) for name in labels]
            else:
                left_out[f"result of type {each['type']}, which has no area or no class"] += 1
        if results is None:
            return skipped(
                where,
                found="no annotation",
                expected="an annotation of each task",
                remedy="label the image, or export only the tasks that have annotations",
                file=image,
            )
        sizes = {(int(each["original_height"]), int(each["original_width"])) for each in areas}
        if len(sizes) > 1:
            raise ValueError(f"its regions belong to images of different sizes: {sorted(sizes)}")
        if any(each.get("image_rotation") for each in areas):
            raise ValueError("its image was rotated in Label Studio, the file was not")
        return LabeledImage(
            self.source,
            image,
            regions,
            sizes.pop() if sizes else None,
            folders=(self.source.parent / "images", self.source.parent),
        )


def _read(path: Path) -> list[Mapping[str, Any]]:
    with reading(
        path,
        expected="tasks with data and annotations, as Label Studio exports them in the format "
        "JSON (not JSON-MIN)",
        remedy="export the project again in the format JSON",
    ):
        data = json.loads(read_input_text(path, "utf-8-sig"))
        tasks = data if isinstance(data, list) else [data]
        wanted = {"data", "annotations"}
        if not tasks or not all(isinstance(t, dict) and wanted <= t.keys() for t in tasks):
            raise ValueError("its entries lack 'data' or 'annotations'")
    return tasks


def _address(task: Mapping[str, Any]) -> str:
    """Where the image of a task lies: a path, an address, or the name of the uploaded file."""
    upload, values = task.get("file_upload"), task["data"]
    texts = [value for value in values.values() if isinstance(value, str)]
    named = [text for text in texts if name_in_address(text).lower().endswith(IMAGE_SUFFIXES)]
    local = [text for text in texts if "local-files/?d=" in text]
    image = next(iter([*local, *named, upload, values.get("image"), *texts]), None)
    found = next((each for each in (image, upload) if isinstance(each, str) and each), None)
    if found is None:
        raise ValueError("it names no image")
    return found


def _results(task: Mapping[str, Any]) -> Sequence[Mapping[str, Any]] | None:
    """Regions of the annotation that counts; None: there is no annotation."""
    done = [each for each in task["annotations"] if not each.get("was_cancelled")]
    chosen = next((each for each in done if each.get("ground_truth")), done[-1] if done else None)
    return None if chosen is None else list(chosen["result"])
