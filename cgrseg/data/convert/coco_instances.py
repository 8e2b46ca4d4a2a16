"""COCO instance files (polygons and run-length masks) to label PNGs.

The format is that of https://cocodataset.org/#format-data, which most labelling
tools export.  Instances overlap; a label map cannot, so the larger ones are painted
first and the smaller ones on top.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cgrseg.class_names import check_class_names, clean_name
from cgrseg.data.convert.custom import (
    ClassTable,
    CustomLayout,
    note_unlabelled,
    refuse_unused_ignored,
    settle_classes,
    written_name,
)
from cgrseg.data.convert.place import ImageMode, find_file, named_inside
from cgrseg.data.convert.polygons import fill_polygon
from cgrseg.data.convert.rle import decode_mask
from cgrseg.data.convert.runner import (
    ConversionReport,
    Failure,
    Task,
    locking_output,
    run_conversion,
)
from cgrseg.data.custom import distinct_colors
from cgrseg.errors import MALFORMED, DataError, explain
from cgrseg.input_files import read_input_text
from cgrseg.progress import Progress
from cgrseg.provenance import joint_state


def draw_label(task: Task) -> np.ndarray:
    """The label map (H, W) uint8 of one image.

    Raises:
        DataError: an annotation without a usable segmentation; the message names its id.
    """
    record, annotations, unlabelled = task.content
    height, width = record["height"], record["width"]
    masks: list[tuple[int, int, np.ndarray]] = []
    for annotation in annotations:
        try:
            mask = _mask(annotation["segmentation"], height, width)
        except MALFORMED as error:
            raise DataError(
                f"{task.source}, image {record['file_name']}, annotation {annotation['id']}",
                found=f"it cannot be drawn ({type(error).__name__}: {error})",
                expected="a segmentation: polygons of x, y pairs, or run-length counts of the "
                "image's size",
                remedy="export it again with segmentation masks, or remove the annotation",
            ) from error
        masks.append((int(mask.sum()), annotation["value"], mask))
    labels = np.full((height, width), unlabelled, dtype=np.uint8)
    for _, value, mask in sorted(masks, key=lambda item: -item[0]):
        labels[mask] = value
    return labels


def _mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """(height, width) bool of one annotation: the union of its parts."""
    if isinstance(segmentation, dict):
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(f"its size is {segmentation['size']}, the image's {[height, width]}")
        return decode_mask(segmentation["counts"], height, width)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("it has no segmentation, only a box")
    mask = np.zeros((height, width), dtype=bool)
    for polygon in segmentation:
        mask |= fill_polygon(np.asarray(polygon, dtype=np.float64).reshape(-1, 2), height, width)
    return mask


@locking_output
def convert_coco_instances(
    source: Path | str,
    images: Path | str,
    out: Path | str,
    *,
    split: str | None = None,
    background: str | None = None,
    ignored: Sequence[str] = (),
    image_mode: ImageMode = "link",
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ConversionReport:
    """Convert a COCO instance file to the custom layout.

    Classes are the file's categories in the order of their ids, after the background
    if it has a name; `classes.txt` in `out`, when it is there already (from another
    split), must agree.

    Args:
        source: the JSON file.
        images: folder that the file names in it are relative to.
        out: folder that gets images, annotations and classes.txt.
        split: name of the split's folders; None: no split folders.
        background: class of pixels that nothing covers; None: they are ignored.
        ignored: categories whose pixels become 255.
        image_mode: hard links ('link') or independent files ('copy').
        workers: processes; None chooses by the amount of work.
        overwrite: make finished files anew too.
        progress: called with (done, total).

    Raises:
        DataError: not a COCO file, or class names that contradict each other.
        EnvironmentProblem: full disk and the like.
    """
    path, folder, layout = Path(source), Path(images), CustomLayout(Path(out), split)
    state = joint_state([path])  # before it is read
    data = _read(path)
    names: dict[int, str] = data["names"]
    ignored = [clean_name(name) for name in ignored]
    background = None if background is None else clean_name(background)
    refuse_unused_ignored(path, ignored, [names[key] for key in sorted(names)])
    wanted = [names[key] for key in sorted(names) if names[key] not in ignored]
    if background is not None:
        wanted = [background, *(name for name in wanted if name != background)]
    table = settle_classes(layout, given=wanted, found=(), ignored=ignored, background=background)
    report = ConversionReport("coco", layout.root, table.classes)
    values = {key: table.value(name) for key, name in names.items()}
    tasks = []
    for record in data["images"]:
        try:
            image = find_file(named_inside(folder, record["file_name"]))
        except ValueError as error:
            report.failures.append(_misnamed(path, record, error))
            continue
        if not image.is_file():
            report.failures.append(_missing(path, image))
            continue
        task = _task(path, image, layout, record, data["annotations"], values, table)
        tasks.append(replace(task, inputs_state=state))
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


def _task(
    path: Path,
    image: Path,
    layout: CustomLayout,
    record: dict[str, Any],
    annotations: dict[Any, list[dict[str, Any]]],
    values: dict[int, int],
    table: ClassTable,
) -> Task:
    # Only what drawing needs travels to the worker process.
    parts = [
        {
            "id": annotation.get("id"),
            "segmentation": annotation.get("segmentation"),
            "value": values[annotation["category_id"]],
        }
        for annotation in annotations.get(record["id"], [])
    ]
    return Task(
        source=path,
        label=layout.labels / f"{image.stem}.png",
        inputs=(path,),
        image=image,
        image_target=layout.images / image.name,
        size=(record["height"], record["width"]),
        content=(record, parts, table.unlabelled),
    )


def _misnamed(path: Path, record: dict[str, Any], error: ValueError) -> Failure:
    return Failure(
        record["file_name"],
        explain(
            f"{path}, image {record['id']}",
            found=str(error),
            expected="a file_name below the folder of images",
            remedy="name the folder that all file_names are relative to, or correct file_name",
        ),
    )


def _missing(path: Path, image: Path) -> Failure:
    return Failure(
        str(image),
        explain(
            image,
            found="no such file",
            expected=f"the image that {path.name} names",
            remedy="check the folder of images",
        ),
    )


def _categories(path: Path, items: Any) -> dict[int, str]:
    """Category names by id.

    Raises:
        DataError: an id or a name of two categories, or a name that cannot be a class name.
    """
    names: dict[int, str] = {}
    for item in items:
        key = int(item["id"])
        if key in names:
            raise ValueError(f"two categories have the id {key}")
        names[key] = written_name(item["name"], f"{path}, category {key}")
    if names:
        check_class_names(
            names.values(),
            path,
            places=[f"category {key}" for key in names],
            remedy="give each category its own name in the labeling tool, and export again",
        )
    return names


def _read(path: Path) -> dict[str, Any]:
    """Categories by id, images, and annotations by image id.

    Raises:
        DataError: unreadable, not COCO, or an annotation of an unknown category or image.
    """
    try:
        data = json.loads(read_input_text(path, "utf-8-sig"))
        names = _categories(path, data["categories"])
        images = [
            {
                "id": item["id"],
                "file_name": str(item["file_name"]),
                "height": int(item["height"]),
                "width": int(item["width"]),
            }
            for item in data["images"]
        ]
        known = {item["id"] for item in images}
        annotations: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for item in data["annotations"]:
            if item["category_id"] not in names or item["image_id"] not in known:
                raise ValueError(
                    f"annotation {item.get('id')} belongs to category {item['category_id']} and "
                    f"image {item['image_id']}, of which the file lacks one"
                )
            annotations[item["image_id"]].append(item)
    except (OSError, *MALFORMED) as error:
        raise DataError(
            path,
            found=f"it cannot be read ({type(error).__name__}: {error})",
            expected="a COCO instance file with images, annotations and categories",
            remedy="export it again from the labelling tool",
        ) from error
    return {"names": names, "images": images, "annotations": dict(annotations)}
