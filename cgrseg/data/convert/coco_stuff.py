"""COCO-Stuff-10k: from the raw download to the prepared layout.

The raw download (version 1.1 of https://github.com/nightrome/cocostuff10k) has
`images/*.jpg`, `annotations/*.mat` and `imageLists/{train,test,all}.txt`.  A
`.mat` file's field `S` holds 0 = unlabelled and COCO-Stuff ids 1..182, eleven of
which never occur because their classes were merged away.  The prepared layout,
which mmsegmentation's users have as well, is `images/{train2014,test2014}` and
`annotations/{train2014,test2014}/<stem>_labelTrainIds.png` with 0 = unlabelled and
the 171 classes as 1..171.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cgrseg.data.convert.mat import read_label_field
from cgrseg.data.convert.place import ImageMode, read_stems
from cgrseg.data.convert.runner import (
    ConversionReport,
    Failure,
    Task,
    locking_output,
    run_conversion,
)
from cgrseg.datasets import get_spec
from cgrseg.errors import DataError, explain
from cgrseg.progress import Progress

LABEL_SUFFIX = "_labelTrainIds.png"
HIGHEST_ID = 182
_SPLITS = {"train": "train2014", "test": "test2014"}
_NO_CLASS = 255


@functools.lru_cache(maxsize=1)
def train_ids() -> np.ndarray:
    """Raw id of field `S` to the prepared label value.

    COCO-Stuff-164k stores the same classes in the same order as raw id minus one, so
    its label rule in the catalogue decides which ids exist.

    Returns:
        (183,) uint8: 0 stays 0, classes become 1..171, the eleven unused ids 255.
    """
    rule = get_spec("coco_stuff164k").label_rule.lookup
    table = np.full(HIGHEST_ID + 1, _NO_CLASS, dtype=np.uint8)
    table[0] = 0
    for raw in range(1, HIGHEST_ID + 1):
        if rule[raw - 1] != _NO_CLASS:
            table[raw] = rule[raw - 1] + 1
    return table


def draw_label(task: Task) -> np.ndarray:
    """The prepared label map (H, W) uint8, values 0..171, of one `.mat` file.

    Raises:
        DataError: damaged file, other field, or an id that the dataset does not have.
    """
    raw = read_label_field(task.source, "S", highest=HIGHEST_ID)
    labels = np.take(train_ids(), raw)
    if (labels == _NO_CLASS).any():
        strange = sorted(int(k) for k in np.unique(raw[labels == _NO_CLASS]))
        raise DataError(
            task.source,
            found=f"ids {strange} in field 'S', which COCO-Stuff does not use",
            expected="0 and the 171 ids that the dataset has among 1..182",
            remedy="extract or download the annotations again",
        )
    return labels


@locking_output
def convert_coco_stuff10k(
    source: Path | str,
    out: Path | str | None = None,
    *,
    lists: Sequence[str] | None = None,
    image_mode: ImageMode = "link",
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ConversionReport:
    """Convert the raw COCO-Stuff-10k download.

    Args:
        source: folder with `images`, `annotations` and `imageLists`.
        out: folder that gets the prepared layout; None: the source itself.
        lists: which of 'train' and 'test' to convert; None: those that exist.
        image_mode: hard links ('link') or independent files ('copy').
        workers: processes; None chooses by the amount of work.
        overwrite: make finished files anew too.
        progress: called with (done, total).

    Raises:
        DataError: the source is not the raw download, or a list is unusable.
        EnvironmentProblem: no scipy, full disk and the like.
    """
    root = Path(source)
    target = Path(out) if out is not None else root
    for folder in ("images", "annotations", "imageLists"):
        if not (root / folder).is_dir():
            raise DataError(
                root,
                found=f"no folder {folder!r}",
                expected="the raw COCO-Stuff-10k download: images/*.jpg, annotations/*.mat "
                "and imageLists/{train,test}.txt",
                remedy="extract cocostuff-10k-v1.1.zip and name the folder that it made",
            )
    chosen = _choose_lists(root / "imageLists", lists)
    spec = get_spec("coco_stuff10k")
    report = ConversionReport("coco_stuff10k", target, spec.classes, first_id=1)
    tasks: list[Task] = []
    seen: dict[str, str] = {}
    for name in chosen:
        for stem in read_stems(root / "imageLists" / f"{name}.txt"):
            if stem in seen:
                report.failures.append(
                    Failure(
                        stem,
                        explain(
                            f"{stem} in imageLists/{name}.txt",
                            found=f"it is in {seen[stem]}.txt already",
                            expected="an image either trains or tests",
                            remedy="remove it from one of the lists",
                        ),
                    )
                )
                continue
            seen[stem] = name
            task = _task(root, target, _SPLITS[name], stem)
            if isinstance(task, Failure):
                report.failures.append(task)
            else:
                tasks.append(task)
                report.lists[name] = report.lists.get(name, 0) + 1
    return run_conversion(
        report,
        tasks,
        draw_label,
        record_folder=target / "annotations",
        settings={"unlabelled": 0, "first_class": 1},
        palette=((0, 0, 0), *spec.palette),
        image_mode=image_mode,
        workers=workers,
        overwrite=overwrite,
        progress=progress,
    )


def _choose_lists(folder: Path, lists: Sequence[str] | None) -> list[str]:
    present = [name for name in _SPLITS if (folder / f"{name}.txt").is_file()]
    wanted = present if lists is None else list(dict.fromkeys(lists))
    missing = [name for name in wanted if name not in present]
    if missing or not wanted:
        raise DataError(
            folder,
            found=f"lists {present or 'none'}; asked for {wanted or 'those that exist'}",
            expected="train.txt and test.txt, or one of them (all.txt says nothing about "
            "who trains)",
            remedy="name lists that are there, or extract the download again",
        )
    return wanted


def _task(root: Path, target: Path, split: str, stem: str) -> Task | Failure:
    label = root / "annotations" / f"{stem}.mat"
    image = root / "images" / f"{stem}.jpg"
    for path in (label, image):
        if not path.is_file():
            return Failure(
                str(path),
                explain(
                    path,
                    found="no such file, though a list names it",
                    expected=f"an image and a label for {stem}",
                    remedy="extract the download again, or take the line out of the list",
                ),
            )
    return Task(
        source=label,
        label=target / "annotations" / split / f"{stem}{LABEL_SUFFIX}",
        inputs=(label,),
        image=image,
        image_target=target / "images" / split / image.name,
    )
