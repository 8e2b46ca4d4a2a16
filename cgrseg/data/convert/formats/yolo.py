"""Polygons of Ultralytics' YOLO and of Roboflow's exports for it.

Format: https://docs.ultralytics.com/datasets/segment/: `data.yaml` names the classes and the image
folders of the splits; beside `images` lies `labels` with one text file per image, of lines
`class x1 y1 x2 y2 ...` in fractions of width and height.  Where polygons overlap, the smaller one
is on top.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import yaml

from cgrseg.data.convert.custom_format import written_name
from cgrseg.data.convert.format import Failure, Option, reading, skipped
from cgrseg.data.convert.image_names import named_inside
from cgrseg.data.convert.regions import Polygon, Region, Shape, corners
from cgrseg.data.convert.tool_format import LabeledImage, ShapeFormat, Source
from cgrseg.data.folder_layout import IMAGE_SUFFIXES, SPLIT_FOLDERS
from cgrseg.errors import DataError, option
from cgrseg.input_files import read_input_text

FILE_NAMES = ("data.yaml", "dataset.yaml", "data.yml")


@dataclass
class Yolo(ShapeFormat):
    """YOLO polygons (Ultralytics, Roboflow): data.yaml, images and labels.

    Example:
      cgrseg data convert yolo roboflow/data.yaml data/mine --background other
    """

    name = "yolo"
    tool = "the labeling tool"
    smaller_on_top = True

    _: KW_ONLY
    boxes: Annotated[bool, Option("Paint the boxes of detection labels as filled rectangles.")] = (
        False
    )

    @classmethod
    def recognize(cls, source: Path) -> str:
        """A YAML file with names and a split."""
        files = [source / name for name in FILE_NAMES] if source.is_dir() else [source]
        for path in files:
            if path.suffix.lower() in (".yaml", ".yml") and path.is_file():
                with contextlib.suppress(DataError):
                    if _read_yaml(path).keys() & SPLIT_FOLDERS.keys():
                        return f"names and splits in {path.name}"
        return ""

    def find(self) -> Source:
        """Classes are the names in data.yaml, in the order of their ids."""
        path = self._file()
        data = _read_yaml(path)
        names = _class_names(data, path)
        base = path.parent
        if data.get("path"):
            with contextlib.suppress(ValueError):
                inside = named_inside(path.parent, str(data["path"]))
                base = inside if inside.is_dir() else base
        images: list[LabeledImage | Failure] = []
        for split in SPLIT_FOLDERS:
            for entry in _entries(data.get(split)):
                images += self._split(split, entry, base, path, names)
        if not images:
            raise DataError(
                path,
                found="no image in the folders of train, val and test",
                expected="folders of images below the folder of this file",
                remedy="correct train, val and test, which count from the folder of this file",
            )
        return Source(images, names)

    @staticmethod
    def shape(values: Any, height: int, width: int) -> Shape:
        """A polygon, or four numbers of a box: center, width and height."""
        kind, numbers = values
        if kind == "box":
            x, y, columns, rows = numbers
            left, top = (x - columns / 2) * width, (y - rows / 2) * height
            return Polygon([corners(left, top, left + columns * width, top + rows * height)])
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        return Polygon([[(x * width, y * height) for x, y in pairs]])

    def _file(self) -> Path:
        if not self.source.is_dir():
            return self.source
        for name in FILE_NAMES:
            if (self.source / name).is_file():
                return self.source / name
        raise DataError(
            self.source,
            found="no data.yaml",
            expected="the folder of a YOLO dataset, or its data.yaml",
            remedy="check the path; data.yaml holds names, train and val",
        )

    def _split(
        self, split: str, entry: str, base: Path, path: Path, names: Sequence[str]
    ) -> list[LabeledImage | Failure]:
        folder = _folder(entry, base)
        if folder is None:
            return [
                skipped(
                    path,
                    file=entry,
                    found=f"no folder {entry!r} of the split {split} below {base}",
                    expected="a folder of images below the folder of this file",
                    remedy="correct the entry, or remove it",
                )
            ]
        found: list[LabeledImage | Failure] = []
        for image in sorted(folder.rglob("*")):
            if image.suffix.lower() not in IMAGE_SUFFIXES or image.name.startswith("."):
                continue
            labels = _label_file(image, base)
            if not labels.is_file() and self.background is None:
                found.append(
                    skipped(
                        labels,
                        file=image,
                        found="no such file",
                        expected="the labels of this image",
                        remedy="label the image, or give what no polygon covers a class "
                        f"({option('--background')}): an image without labels then shows only it",
                    )
                )
                continue
            regions = functools.partial(_read_labels, labels, names, self.boxes)
            found.append(
                LabeledImage(
                    labels if labels.is_file() else path,
                    str(image.relative_to(folder)),
                    regions,
                    split=split,
                    folders=[folder],
                )
            )
        return found


def _read_yaml(path: Path) -> Mapping[str, Any]:
    with reading(
        path,
        expected="a YAML file with names, train and val",
        remedy="export the dataset again, or correct the file",
        also=(yaml.YAMLError,),
    ):
        data = yaml.safe_load(read_input_text(path, "utf-8-sig"))
        if not isinstance(data, Mapping) or not isinstance(data.get("names"), (list, Mapping)):
            raise ValueError("it has no list of names")
        return data


def _class_names(data: Mapping[str, Any], path: Path) -> list[str]:
    names = data["names"]
    ids = range(len(names))
    if isinstance(names, Mapping) and names.keys() != set(ids):
        raise DataError(
            path,
            found=f"names of the ids {', '.join(map(str, names))}",
            expected="ids from 0 on without gaps",
            remedy="name each id",
        )
    return [written_name(names[k], f"{path}, names, {k}") for k in ids]


def _entries(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [str(each) for each in values if each]


def _folder(entry: str, base: Path) -> Path | None:
    """The folder that an entry means: as given, without its `..`, or with another split name.

    Roboflow writes `../train/images` for the folder `train/images` beside data.yaml.
    """
    parts = [part for part in PurePosixPath(entry.replace("\\", "/")).parts if part != ".."]
    if not parts:
        return base
    tried = [parts]
    for names in SPLIT_FOLDERS.values():
        for place, part in enumerate(parts):
            if part in names:
                tried += [[*parts[:place], name, *parts[place + 1 :]] for name in names]
    for each in tried:
        with contextlib.suppress(ValueError):
            folder = named_inside(base, "/".join(each))
            if folder.is_dir():
                return folder
    return None


def _label_file(image: Path, base: Path) -> Path:
    """The text file of an image: the last folder `images` of its path becomes `labels`."""
    parts = list(image.relative_to(base).parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return base.joinpath(*parts).with_suffix(".txt")


def _read_labels(path: Path, names: Sequence[str], boxes: bool) -> list[Region]:
    """The lines of a label file; none where there is no file."""
    if not path.is_file():
        return []
    found = []
    try:
        lines = read_input_text(path, "utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(path, str(error)) from error
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        place = f"{path}, line {number}"
        try:
            index, numbers = int(words[0]), [float(word) for word in words[1:]]
        except ValueError as error:
            raise _unusable(place, str(error)) from error
        kind = "box" if len(numbers) == 4 else "polygon"
        if not 0 <= index < len(names):
            raise _unusable(place, f"class {index}, where data.yaml names {len(names)} classes")
        if kind == "polygon" and (len(numbers) < 6 or len(numbers) % 2):
            raise _unusable(place, f"{len(numbers)} numbers after the class")
        if not all(-1 <= each <= 2 for each in numbers):  # NaN compares false
            raise _unusable(place, "coordinates that are no fractions of the image")
        if kind == "box" and not boxes:
            raise DataError(
                place,
                found="a box: the labels are made for detection",
                expected="polygons, which say what belongs to the object",
                remedy="export the dataset for segmentation; to train on filled rectangles: "
                f"{option('--boxes')}",
            )
        found.append(Region(names[index], place, (kind, numbers)))
    return found


def _unusable(where: object, found: str) -> DataError:
    return DataError(
        where,
        found=f"an unusable line: {found}",
        expected="lines 'class x1 y1 x2 y2 x3 y3 ...' with fractions of width and height",
        remedy="export the labels again, or correct the line",
    )
