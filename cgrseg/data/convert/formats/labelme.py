"""LabelMe's JSON files (https://github.com/wkentaro/labelme).

One file per image, with a list of shapes, drawn in the order of the file: the later one is on top,
as LabelMe shows them.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np

from cgrseg.addresses import Address
from cgrseg.data.convert.annotation_writer import AnnotatedImage, AnnotationWriter, score_entry
from cgrseg.data.convert.custom_format import (
    Background,
    Classes,
    ClassTable,
    CustomFormat,
    OutFolder,
    unused_ignored,
    written_name,
)
from cgrseg.data.convert.format import (
    Annotations,
    Argument,
    Failure,
    Option,
    Task,
    reading,
    skipped,
)
from cgrseg.data.convert.image_names import find_file, named_inside
from cgrseg.data.convert.shapes import fill_circle, fill_polygon
from cgrseg.data.convert.tool_format import peek_json
from cgrseg.data.folder_layout import IMAGE_SUFFIXES
from cgrseg.data.image_files import decode_gray
from cgrseg.data.parallel import run_parallel
from cgrseg.errors import MALFORMED, DataError, option
from cgrseg.input_files import read_input_text

# LabelMe's own names, as its labels.txt has them.
IGNORE_NAME = "__ignore__"
BACKGROUND_NAME = "_background_"


class LabelMeWriter(AnnotationWriter):
    """A file per image with polygons, or masks as embedded PNGs."""

    file = "{}.json"
    advice = "open this folder in LabelMe (labelme FOLDER)"

    def add(self, image: AnnotatedImage, folder: Path) -> str:
        """The file of an image, which names the image relative to itself."""
        shapes = []
        for region in image.regions:
            shape: dict[str, Any] = {
                "label": self.classes[region.value],
                "points": region.joined_outline().tolist(),
                "group_id": None,
                "description": "",
                "shape_type": self.shape,
                "flags": {},
                "mask": None,
                **score_entry(region.score),
            }
            if self.shape == "mask":
                rows, columns = region.mask.shape
                last = [region.left + columns - 1, region.top + rows - 1]
                shape["points"] = [[region.left, region.top], last]
                png = cv2.imencode(".png", region.mask.astype(np.uint8))[1]
                shape["mask"] = base64.b64encode(png.tobytes()).decode("ascii")
            shapes.append(shape)
        if isinstance(image.path, Address):
            path = str(image.path)
        else:
            try:
                path = os.path.relpath(image.path, folder)
            except ValueError:  # on another drive
                path = os.path.abspath(image.path)
        data: dict[str, Any] = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": path,
            "imageData": None,
            "imageHeight": image.height,
            "imageWidth": image.width,
        }
        return json.dumps(data, ensure_ascii=False) + "\n"


@dataclass
class LabelMe(CustomFormat):
    """A folder of LabelMe JSON files.

    Example:
      cgrseg data convert labelme annotated data/mine --background other
    """

    name = "labelme"
    writer = LabelMeWriter
    source: Annotated[Path, Argument("Folder to convert.")]
    out: OutFolder
    _: KW_ONLY
    images: Annotated[
        Path | None,
        Option(
            "Folder of the images. Default: the image path in each JSON file.", name="image_folder"
        ),
    ] = None
    classes: Classes = None
    background: Background = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes is not None and IGNORE_NAME in self.classes:
            self.classes = [name for name in self.classes if name != IGNORE_NAME]
            self.ignored = [*self.ignored, IGNORE_NAME]
        if self.background is None and BACKGROUND_NAME in (self.classes or ()):
            self.background = BACKGROUND_NAME

    @classmethod
    def recognize(cls, source: Path) -> str:
        """A JSON file with shapes and imagePath."""
        for path in sorted(source.glob("*.json"))[:1] if source.is_dir() else []:
            data = peek_json(path)
            if isinstance(data, dict) and {"shapes", "imagePath"} <= data.keys():
                return f"shapes and imagePath in {path.name}"
        return ""

    def read(self) -> Annotations:
        """Scan all files for their class names, images and sizes."""
        files = sorted(self.source.glob("*.json")) if self.source.is_dir() else []
        if not files:
            raise DataError(
                self.source,
                found="no .json files" if self.source.is_dir() else "no such folder",
                expected="a folder with LabelMe's JSON files",
                remedy="check the path",
            )
        scans = list(run_parallel(_scan, files, workers=self.workers))
        names = sorted({name for scan in scans if isinstance(scan, _Scan) for name in scan.names})
        table = self.settle_classes(self.classes, found=names, background=self.background)
        tasks: list[Task | Failure] = []
        for path, scan in zip(files, scans, strict=True):
            found = scan if isinstance(scan, Failure) else self._find_image(path, scan.image)
            if isinstance(found, Path) and isinstance(scan, _Scan):
                tasks.append(self.task(path, found, size=scan.size, content=table))
            elif isinstance(found, Failure):
                tasks.append(found)
        # LabelMe's own name for it may be absent; any other is probably misspelled.
        notes = unused_ignored((name for name in self.ignored if name != IGNORE_NAME), names)
        return self.shape_annotations(table, tasks, notes)

    @staticmethod
    def draw(task: Task) -> np.ndarray:
        """The shapes of one file."""
        data = read_labelme(task.source)
        table: ClassTable = task.content
        size = data["imageHeight"], data["imageWidth"]
        labels = np.full(size, table.unlabeled, dtype=np.uint8)
        for number, shape in enumerate(data["shapes"], start=1):
            where = f"{task.source}, shape {number}"
            try:
                name = written_name(shape["label"], where)
                mask = _area(shape, *size)
            except MALFORMED as error:
                raise DataError(
                    where,
                    found=f"it cannot be drawn ({type(error).__name__}: {error})",
                    expected="a polygon, rectangle, circle or mask",
                    remedy="correct or remove the shape in LabelMe",
                ) from error
            try:
                labels[mask] = table.value(name)
            except KeyError:
                raise DataError(
                    where,
                    found=f"the class {name!r}",
                    expected=f"one of {', '.join(table.classes)}",
                    remedy="correct it, add it at the end of the class names, or --ignore "
                    f"{name!r}",
                ) from None
        return labels

    def _find_image(self, path: Path, image: str) -> Path | Failure:
        """The image of a file: in the folder given, where the file says, or beside it.

        Where the file says counts below the folder that holds its own folder, and nowhere else.
        """
        name = image.replace("\\", "/").rsplit("/", maxsplit=1)[-1]
        folder = self.images or path.parent
        candidates = [folder / f"{path.stem}{suffix}" for suffix in IMAGE_SUFFIXES]
        with contextlib.suppress(ValueError):
            candidates.insert(0, named_inside(folder, name))
        if self.images is None:
            # Labels and images often lie side by side in one folder (`../images/a.jpg`).
            with contextlib.suppress(ValueError):
                above = f"{path.absolute().parent.name}/{image}"
                candidates.insert(0, named_inside(path.absolute().parent.parent, above))
        for candidate in candidates:
            found = find_file(candidate)
            if found.is_file():
                return found
        return skipped(
            path,
            found=f"its image {image!r} is neither there nor in {folder}",
            expected="the image beside its JSON file",
            remedy=f"put it there, or name the folder of the images ({option('--image-folder')})",
        )


def read_labelme(path: Path) -> dict[str, Any]:
    """The `shapes`, `imagePath`, `imageHeight` and `imageWidth` of a LabelMe file.

    Raises:
        DataError: unreadable, or not a LabelMe file.
    """
    with reading(
        path,
        expected="LabelMe's JSON with shapes, imagePath, imageHeight and imageWidth",
        remedy="open it in LabelMe and save it again, or move it out of the folder",
    ):
        data = json.loads(read_input_text(path, "utf-8-sig"))
        if not isinstance(data["shapes"], list):
            raise TypeError("'shapes' is no list")
        return {
            "shapes": data["shapes"],
            "imagePath": str(data["imagePath"]),
            "imageHeight": int(data["imageHeight"]),
            "imageWidth": int(data["imageWidth"]),
        }


def _area(shape: dict[str, Any], height: int, width: int) -> np.ndarray:
    """(height, width) bool of one shape."""
    kind = shape.get("shape_type") or "polygon"
    points = np.asarray(shape["points"], dtype=np.float64)
    if kind == "polygon":
        return fill_polygon(points, height, width)
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
        return fill_polygon(np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]), height, width)
    if kind == "circle":
        return fill_circle(tuple(points[0]), tuple(points[1]), height, width)
    if kind == "mask":
        return _embedded_mask(shape["mask"], points, height, width)
    raise ValueError(f"shape type {kind!r} has no area")


def _embedded_mask(text: str, points: np.ndarray, height: int, width: int) -> np.ndarray:
    """A PNG inside the file that covers the box from the first to the second point."""
    column, row = (int(v) for v in points.min(axis=0))
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError("the embedded mask begins outside the image")
    encoded = base64.b64decode(text, validate=True)
    inner = decode_gray(encoded, within=(height - row, width - column))
    mask = np.zeros((height, width), dtype=bool)
    mask[row : row + inner.shape[0], column : column + inner.shape[1]] = inner > 0
    return mask


@dataclass(frozen=True)
class _Scan:
    """Class names of a file, its image and the size of that image."""

    names: Sequence[str]
    image: str
    size: tuple[int, int]


def _scan(path: Path) -> _Scan | Failure:
    try:
        data = read_labelme(path)
        names = {
            written_name(shape["label"], f"{path}, shape {number}")
            for number, shape in enumerate(data["shapes"], start=1)
            if isinstance(shape, dict) and "label" in shape
        }
    except DataError as error:
        return Failure(str(path), str(error))
    return _Scan(sorted(names), data["imagePath"], (data["imageHeight"], data["imageWidth"]))
