"""Pascal Context: label maps of 59 classes from either published form.

Source one is `trainval_merged.json` of PASCAL in Detail
(https://github.com/zhanghang1989/detail-api): one run-length encoded region per
annotation, `category_id` among 459 ids.  Source two is the original release
(https://cs.stanford.edu/~roozbeh/pascal-context/, R. Mottaghi et al., CVPR 2014):
one `.mat` file per image with 459 ids in the field `LabelMap`.  Both become
`SegmentationClassContext/<stem>.png` with 0 = background and the 59 frequent
classes as 1..59 in the order of their ids, and split lists in
`ImageSets/SegmentationContext`.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cgrseg.data.convert.mat import read_label_field
from cgrseg.data.convert.place import named_inside, read_stems, write_stems
from cgrseg.data.convert.rle import decode_mask
from cgrseg.data.convert.runner import (
    ConversionReport,
    Failure,
    Task,
    locking_output,
    run_conversion,
)
from cgrseg.datasets import get_spec
from cgrseg.errors import MALFORMED, DataError, explain
from cgrseg.input_files import read_input_text
from cgrseg.progress import Progress
from cgrseg.provenance import joint_state

HIGHEST_ID = 459

# The ids, among the 459, of the 59 classes in the order of `pascal_context59`:
# https://cs.stanford.edu/~roozbeh/pascal-context/ (labels.txt, 59_labels.txt).
IDS_OF_59 = (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98,
    104, 105, 113, 115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260,
    284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397, 415, 416,
    420, 424, 427, 440, 445, 454, 458,
)  # fmt: skip

_IMAGES = "JPEGImages"
_LABELS = "SegmentationClassContext"
_LISTS = Path("ImageSets") / "SegmentationContext"


@functools.lru_cache(maxsize=1)
def to_59() -> np.ndarray:
    """(460,) uint8: id among 459 to 1..59; 0 for all others."""
    table = np.zeros(HIGHEST_ID + 1, dtype=np.uint8)
    table[list(IDS_OF_59)] = np.arange(1, len(IDS_OF_59) + 1)
    return table


def draw_from_mat(task: Task) -> np.ndarray:
    """The label map (H, W) uint8, 0..59, of one `.mat` file.

    Raises:
        DataError: damaged file, no field `LabelMap`, or ids outside 0..459.
    """
    raw = read_label_field(task.source, "LabelMap", highest=HIGHEST_ID)
    return np.take(to_59(), raw)


def draw_from_regions(task: Task) -> np.ndarray:
    """The label map (H, W) uint8, 0..59, of one image's regions in the JSON file.

    Where regions overlap, the later one in the file is on top.

    Raises:
        DataError: a region that cannot be decoded; the message names its id.
    """
    record, regions = task.content
    size = (record["height"], record["width"])
    labels = np.zeros(size, dtype=np.uint8)
    for region in regions:
        try:
            shape = region["segmentation"]
            if tuple(shape["size"]) != size:
                raise ValueError(f"its size is {shape['size']}, the image's {list(size)}")
            mask = decode_mask(shape["counts"], *size)
            category = region["category_id"]
            if not 1 <= category <= HIGHEST_ID:
                raise ValueError(f"category {category} is not among 1..{HIGHEST_ID}")
        except MALFORMED as error:
            raise DataError(
                f"{task.source}, image {record['file_name']}, region {region.get('id')}",
                found=f"it cannot be decoded ({error})",
                expected="a run-length encoded mask of the image's size",
                remedy="download the file again",
            ) from error
        labels[mask] = to_59()[category]
    return labels


@locking_output
def convert_pascal_context(
    source: Path | str,
    out: Path | str,
    *,
    lists: Path | str | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ConversionReport:
    """Convert `trainval_merged.json`, or a folder of 459-class `.mat` files.

    Args:
        source: the JSON file or the folder.
        out: the `VOC2010` folder, or any other.
        lists: folder with `train.txt` and `val.txt`.  None: the JSON file says itself
            which images train; for `.mat` files, the lists in `out` as far as they exist,
            else VOC2010's own `ImageSets/Main`, whose 4,998 and 5,105 images are
            Pascal Context's.
        workers: processes; None chooses by the amount of work.
        overwrite: make finished files anew too.
        progress: called with (done, total).

    Raises:
        DataError: the source is neither, or the lists are unusable.
        EnvironmentProblem: no scipy, full disk and the like.
    """
    origin, target = Path(source), Path(out)
    spec = get_spec("pascal_context59")
    report = ConversionReport("pascal_context", target, spec.classes, first_id=1)
    if origin.is_dir():
        draw, tasks = draw_from_mat, _tasks_from_mat(origin, target)
        splits = _find_lists(target, lists)
    elif origin.is_file():
        draw, tasks, splits = draw_from_regions, *_tasks_from_json(origin, target)
        if lists is not None:
            splits = _find_lists(target, lists)
    else:
        raise DataError(
            origin,
            found="no such file or folder",
            expected="trainval_merged.json, or the folder of the 459-class .mat files",
            remedy="check the path",
        )
    absent = sum(1 for task in tasks if task.image is None)
    if absent:
        report.notes.append(
            f"{absent} of {len(tasks)} images are not in {target / _IMAGES}; the VOC2010 download "
            "(VOCtrainval_03-May-2010.tar) has them"
        )
    stems = {task.label.stem for task in tasks}
    return run_conversion(
        report,
        tasks,
        draw,
        record_folder=target / _LABELS,
        settings={"background": 0, "first_class": 1},
        palette=((0, 0, 0), *spec.palette),
        workers=workers,
        overwrite=overwrite,
        progress=progress,
        finish=functools.partial(_write_lists, splits=splits, stems=stems, overwrite=overwrite),
    )


def _tasks_from_mat(folder: Path, target: Path) -> list[Task]:
    files = sorted(folder.glob("*.mat"))
    if not files:
        raise DataError(
            folder,
            found="no .mat files",
            expected="one .mat file per image, as trainval.tar.gz of Pascal Context has",
            remedy="name the folder that holds them directly",
        )
    return [_task(path, path.stem, target) for path in files]


def _task(source: Path, stem: str, target: Path, content: Any = None) -> Task:
    """The image, where it is there already, only serves to compare sizes."""
    image = target / _IMAGES / f"{stem}.jpg"
    return Task(
        source=source,
        label=target / _LABELS / f"{stem}.png",
        inputs=(source,),
        image=image if image.is_file() else None,
        size=None if content is None else (content[0]["height"], content[0]["width"]),
        content=content,
    )


def _tasks_from_json(path: Path, target: Path) -> tuple[list[Task], dict[str, list[str]]]:
    state = joint_state([path])  # before it is read
    try:
        data = json.loads(read_input_text(path, "utf-8-sig"))
        images, regions, categories = (
            data["images"],
            data["annos_segmentation"],
            data["categories"],
        )
        _check_categories(path, {int(c["category_id"]): str(c["name"]) for c in categories})
        by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for region in regions:
            by_image[region["image_id"]].append(region)
        tasks = []
        splits: dict[str, list[str]] = {"train": [], "val": []}
        for image in images:
            stem = named_inside(target, str(image["file_name"])).stem
            record = {
                "height": int(image["height"]),
                "width": int(image["width"]),
                "file_name": str(image["file_name"]),
            }
            task = _task(path, stem, target, (record, by_image.get(image["image_id"], [])))
            tasks.append(replace(task, inputs_state=state))
            if image.get("phase") in splits:
                splits[image["phase"]].append(stem)
    except (OSError, *MALFORMED) as error:
        raise DataError(
            path,
            found=f"it cannot be read ({type(error).__name__}: {error})",
            expected="PASCAL in Detail's JSON with images, annos_segmentation and categories",
            remedy="download trainval_merged.json again",
        ) from error
    return tasks, splits


def _check_categories(path: Path, named: Mapping[int, str]) -> None:
    """Refuse a file whose ids mean other classes than ours."""
    classes = get_spec("pascal_context59").classes
    for index, category in enumerate(IDS_OF_59):
        if category in named and named[category] != classes[index]:
            raise DataError(
                path,
                found=f"category {category} is called {named[category]!r}",
                expected=f"{classes[index]!r}, as in PASCAL in Detail",
                remedy="use the published trainval_merged.json",
            )


def _find_lists(target: Path, lists: Path | str | None) -> dict[str, list[str]]:
    """Split name to stems, from where the caller says or from the VOC folder."""
    if lists is not None:
        return {name: read_stems(Path(lists) / f"{name}.txt") for name in ("train", "val")}
    for folder in (target / _LISTS, target / "ImageSets" / "Main"):
        if all((folder / f"{name}.txt").is_file() for name in ("train", "val")):
            return {name: read_stems(folder / f"{name}.txt") for name in ("train", "val")}
    return {}


def _write_lists(
    report: ConversionReport,
    *,
    splits: Mapping[str, list[str]],
    stems: set[str],
    overwrite: bool,
) -> None:
    """Write the split lists, restricted to images that have a label map."""
    if not any(splits.values()):
        report.notes.append(
            "no split lists were written: give a folder with train.txt and val.txt (--lists)"
        )
        return
    both = sorted(set(splits.get("train", ())) & set(splits.get("val", ())))
    if both:
        message = explain(
            "the split lists",
            found=f"{len(both)} images both train and validate, {both[0]} among them",
            expected="an image either trains or validates",
            remedy="correct the lists",
        )
        report.failures.append(Failure(both[0], message))
        return
    for name, wanted in splits.items():
        labels = report.out / _LABELS
        listed = [stem for stem in wanted if stem in stems and (labels / f"{stem}.png").is_file()]
        target = report.out / _LISTS / f"{name}.txt"
        before = read_stems(target) if target.is_file() else []
        if not overwrite and not set(before) <= set(listed):
            report.notes.append(
                f"{target} was there, with {len(set(before) - set(listed))} images that this "
                "conversion has no label map for; it stays as it is"
            )
        elif listed:
            report.lists[name] = write_stems(target, listed)
    unlisted = len(stems - {stem for wanted in splits.values() for stem in wanted})
    if unlisted:
        report.notes.append(f"{unlisted} label maps are in neither train.txt nor val.txt")
