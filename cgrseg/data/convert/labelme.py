"""LabelMe's JSON files (https://github.com/wkentaro/labelme) to label PNGs.

One file per image, with a list of shapes.  Areas are painted in the file's order,
the later one on top, as LabelMe shows them.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cgrseg.data.convert.custom import (
    ClassTable,
    CustomLayout,
    note_unlabelled,
    settle_classes,
    unknown_class,
    unused_ignored,
    written_name,
)
from cgrseg.data.convert.place import ImageMode, find_file, named_inside
from cgrseg.data.convert.polygons import fill_circle, fill_polygon
from cgrseg.data.convert.runner import (
    ConversionReport,
    Failure,
    Task,
    locking_output,
    run_conversion,
)
from cgrseg.data.custom import distinct_colors
from cgrseg.data.folder_layout import IMAGE_SUFFIXES
from cgrseg.data.image_files import decode_gray
from cgrseg.data.parallel import run_parallel
from cgrseg.errors import MALFORMED, DataError, explain, option
from cgrseg.input_files import read_input_text
from cgrseg.progress import Progress

# LabelMe's own names, as its labels.txt has them.
IGNORE_NAME = "__ignore__"
BACKGROUND_NAME = "_background_"


def read_labelme(path: Path) -> dict[str, Any]:
    """One LabelMe file, checked for what a label map needs.

    Returns:
        Its `shapes`, `imagePath`, `imageHeight` and `imageWidth`.

    Raises:
        DataError: unreadable, or not a LabelMe file.
    """
    try:
        data = json.loads(read_input_text(path, "utf-8-sig"))
        if not isinstance(data["shapes"], list):
            raise TypeError("'shapes' is no list")
        return {
            "shapes": data["shapes"],
            "imagePath": str(data["imagePath"]),
            "imageHeight": int(data["imageHeight"]),
            "imageWidth": int(data["imageWidth"]),
        }
    except (OSError, *MALFORMED) as error:
        raise DataError(
            path,
            found=f"it cannot be read ({type(error).__name__}: {error})",
            expected="LabelMe's JSON with shapes, imagePath, imageHeight and imageWidth",
            remedy="open it in LabelMe and save it again, or move it out of the folder",
        ) from error


def draw_label(task: Task) -> np.ndarray:
    """The label map (H, W) uint8 of one LabelMe file.

    Raises:
        DataError: unknown class, a shape without an area, or damaged contents.
    """
    data = read_labelme(task.source)
    table: ClassTable = task.content
    labels = np.full((data["imageHeight"], data["imageWidth"]), table.unlabelled, dtype=np.uint8)
    for number, shape in enumerate(data["shapes"], start=1):
        where = f"{task.source}, shape {number}"
        try:
            name = written_name(shape["label"], where)
            mask = _area(shape, labels.shape[0], labels.shape[1])
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
            raise unknown_class(where, name, table) from None
    return labels


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


@locking_output
def convert_labelme(
    source: Path | str,
    out: Path | str,
    *,
    images: Path | str | None = None,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    background: str | None = None,
    ignored: Sequence[str] = (),
    image_mode: ImageMode = "link",
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ConversionReport:
    """Convert a folder of LabelMe files to the custom layout.

    Args:
        source: folder with the JSON files.
        out: folder that gets images, annotations and classes.txt.
        images: folder of the images; None: where each JSON file says, or beside it.
        split: name of the split's folders; None: no split folders.
        classes: names in id order; None: `classes.txt` in `out`, else all names found,
            sorted.  LabelMe's `__ignore__` and `_background_` among them are understood.
        background: class of pixels that no shape covers; None: they are ignored.
        ignored: names whose pixels become 255.
        image_mode: hard links ('link') or independent files ('copy').
        workers: processes; None chooses by the amount of work.
        overwrite: make finished files anew too.
        progress: called with (done, total).

    Raises:
        DataError: nothing to convert, or class names that contradict each other.
        EnvironmentProblem: full disk and the like.
    """
    folder = Path(source)
    layout = CustomLayout(Path(out), split)
    files = sorted(folder.glob("*.json")) if folder.is_dir() else []
    if not files:
        raise DataError(
            folder,
            found="no .json files" if folder.is_dir() else "no such folder",
            expected="a folder with LabelMe's JSON files",
            remedy="check the path",
        )
    if classes is not None and IGNORE_NAME in classes:
        classes = [name for name in classes if name != IGNORE_NAME]
        ignored = [*ignored, IGNORE_NAME]
    if classes is not None and BACKGROUND_NAME in classes and background is None:
        background = BACKGROUND_NAME
    scanned = list(run_parallel(_scan, files, workers=workers))
    names = sorted({name for item in scanned if isinstance(item, _Scan) for name in item.names})
    table = settle_classes(
        layout, given=classes, found=names, ignored=ignored, background=background
    )
    report = ConversionReport("labelme", layout.root, table.classes)
    # LabelMe's own name for it may be absent; any other is probably misspelt.
    report.notes += unused_ignored((name for name in ignored if name != IGNORE_NAME), names)
    tasks: list[Task] = []
    for path, item in zip(files, scanned, strict=True):
        if isinstance(item, Failure):
            report.failures.append(item)
            continue
        image = _find_image(path, item.image, images)
        if isinstance(image, Failure):
            report.failures.append(image)
            continue
        tasks.append(
            Task(
                source=path,
                label=layout.labels / f"{image.stem}.png",
                inputs=(path,),
                image=image,
                image_target=layout.images / image.name,
                size=item.size,
                content=table,
            )
        )
    return run_conversion(
        report,
        tasks,
        draw_label,
        record_folder=layout.labels,
        class_file=layout.class_file,
        settings={"classes": table.classes, "ignored": table.ignored, "background": background},
        palette=distinct_colors(len(table.classes)),
        image_mode=image_mode,
        workers=workers,
        overwrite=overwrite,
        progress=progress,
        finish=functools.partial(note_unlabelled, table=table),
    )


@dataclass(frozen=True)
class _Scan:
    """What a first look at a file tells: the names it uses, its image and that image's size."""

    names: tuple[str, ...]
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
    size = (data["imageHeight"], data["imageWidth"])
    return _Scan(tuple(sorted(names)), data["imagePath"], size)


def _find_image(path: Path, image: str, images: Path | str | None) -> Path | Failure:
    """The image of a LabelMe file: in the folder given, where it says, or beside it.

    Where it says counts below the folder that holds the JSON file's folder, and nowhere else.
    """
    name = image.replace("\\", "/").rsplit("/", maxsplit=1)[-1]
    folder = Path(images) if images is not None else path.parent
    candidates = [folder / f"{path.stem}{suffix}" for suffix in IMAGE_SUFFIXES]
    with contextlib.suppress(ValueError):
        candidates.insert(0, named_inside(folder, name))
    if images is None:
        # Labels and images often lie side by side in one folder (`../images/a.jpg`).
        with contextlib.suppress(ValueError):
            above = f"{path.absolute().parent.name}/{image}"
            candidates.insert(0, named_inside(path.absolute().parent.parent, above))
    for candidate in candidates:
        found = find_file(candidate)
        if found.is_file():
            return found
    return Failure(
        str(path),
        explain(
            path,
            found=f"its image {image!r} is neither there nor in {folder}",
            expected="the image beside its JSON file",
            remedy=f"put it there, or name the folder of the images ({option('--image-folder')})",
        ),
    )
