"""Writing the procedural scenes as a data set in ADE20K's layout.

Below the root, as in the challenge's download::

    images/{training,validation}/*.jpg        images, JPEG quality 92
    annotations/{training,validation}/*.png   8-bit indexed labels: 0 ignored, k is class k - 1
    objectInfo.txt                            class list with shares, tab-separated
    classes.txt                               class names, one a line
    synthetic.json                            the settings it was made with

All of it is built in a hidden folder below the root and moved into place at the end.  Until
then the root is empty or holds the earlier result.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cgrseg.class_names import class_list_text
from cgrseg.data.image_files import write_image
from cgrseg.data.label_files import write_label_png
from cgrseg.data.synthetic.classes import STUFF, SYNTHETIC_CLASSES, SYNTHETIC_PALETTE
from cgrseg.data.synthetic.scene import SMALLEST_SIDE, make_scene
from cgrseg.errors import DataError, has_option, option
from cgrseg.files import (
    atomic_write_text,
    explained,
    partial_folder,
    refuse_moved,
    write_json,
)
from cgrseg.input_files import read_input_text
from cgrseg.locks import NAME as LOCK
from cgrseg.locks import locking
from cgrseg.processes import signals_deferred
from cgrseg.progress import Progress

MARKER = "synthetic.json"
MADE_BY = "cgrseg data synth"
VERSION = 1
"""Raised whenever the drawing changes, so that older folders are not taken for current ones."""

VALIDATION_OFFSET = 1_000_000
"""Index of the first validation scene: the same scenes for any number of training ones."""

JPEG_QUALITY = 92


@dataclass(frozen=True)
class _Job:
    split: str
    stem: str
    index: int


@locking(lambda given: given["root"])
def write_dataset(
    root: Path | str,
    train: int = 240,
    val: int = 60,
    size: tuple[int, int] = (256, 256),
    seed: int = 0,
    *,
    workers: int = 2,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Draw and write a data set; does nothing when exactly this one is already there.

    Args:
        root: folder to make. It must be absent, empty or an earlier result of this function.
        train: number of training scenes, 1 to 1,000,000.
        val: number of validation scenes, 1 or more.
        size: height and width in pixels.
        seed: seed of all scenes, 0 or more.
        workers: scenes drawn at the same time (threads).
        overwrite: replace an earlier result that was made with other settings. A folder that
            this function did not write is never replaced.
        progress: called with (scenes done, scenes in all) after each scene.

    Returns:
        The root folder.

    Raises:
        DataError: for a folder that holds something else, or settings out of range.
        EnvironmentProblem: when writing fails (full disk, read-only folder).
    """
    target = Path(root)
    settings: dict[str, Any] = {
        "made_by": MADE_BY,
        "version": VERSION,
        "seed": seed,
        "train": train,
        "val": val,
        "size": list(size),
    }
    _check_settings(train, val, size, seed, workers)
    if _is_there(target, settings, overwrite):
        if progress is not None:
            progress(train + val, train + val)
        return target
    with explained(target), partial_folder(target, "scenes") as building:
        counts = _write_scenes(building, train, val, size, seed, workers, progress)
        _write_lists(building, counts)
        refuse_moved(target)
        with signals_deferred(), partial_folder(target, "replaced") as aside:
            _put_in_place(building, target, aside)
            # The marker comes last: where it stands, all is there.
            write_json(target / MARKER, settings)
    return target


def _check_settings(train: int, val: int, size: tuple[int, int], seed: int, workers: int) -> None:
    problems = {
        f"{train} training scenes": not 1 <= train <= VALIDATION_OFFSET,
        f"{val} validation scenes": val < 1,
        f"a size of {size[0]} x {size[1]} pixels": min(size) < SMALLEST_SIDE,
        f"seed {seed}": seed < 0,
        f"{workers} workers": workers < 1,
    }
    for found, wrong in problems.items():
        if wrong:
            raise DataError(
                "procedural scenes",
                found=found,
                expected=f"1 to {VALIDATION_OFFSET} training scenes, 1 or more for validation, "
                f"sides of {SMALLEST_SIDE} pixels or more, seed 0 or more, 1 worker or more",
                remedy="change that number",
            )


def _is_there(target: Path, settings: dict[str, Any], overwrite: bool) -> bool:
    """Whether `target` already holds exactly this; raises when it may not be written."""
    if not any(path.name != LOCK for path in target.iterdir()):
        return False
    earlier = _read_marker(target)
    if earlier == settings:
        return True
    if earlier is not None and (overwrite or earlier.get("finished") is False):
        return False
    if earlier is not None:
        changed = [key for key in settings if earlier.get(key) != settings[key]]
        found = "procedural scenes made with other settings (" + ", ".join(
            f"{key} {earlier.get(key)}, now {settings[key]}" for key in changed
        )
        found += ")" if changed else "more settings than this version knows)"
        remedy = "choose another folder"
        if has_option("--overwrite"):
            remedy += f", or replace these scenes with {option('--overwrite')}"
    else:
        found = "a folder with files that did not come from here"
        remedy = "choose another folder; this one is left as it is"
    raise DataError(target, found=found, expected="a new or empty folder", remedy=remedy)


def _read_marker(target: Path) -> dict[str, Any] | None:
    """Settings of an earlier result, or None when the folder is not one."""
    try:
        value = json.loads(read_input_text(target / MARKER))
    except (OSError, ValueError):
        return None
    if isinstance(value, dict) and value.get("made_by") == MADE_BY:
        return value
    return None


def _jobs(train: int, val: int) -> Iterator[_Job]:
    for i in range(train):
        yield _Job("training", f"SYN_train_{i + 1:08d}", i)
    for i in range(val):
        yield _Job("validation", f"SYN_val_{i + 1:08d}", VALIDATION_OFFSET + i)


def _write_scenes(
    folder: Path,
    train: int,
    val: int,
    size: tuple[int, int],
    seed: int,
    workers: int,
    progress: Progress | None,
) -> dict[str, npt.NDArray[np.int64]]:
    """Write all scenes below `folder`; returns pixels per raw label for each split."""
    bins = len(SYNTHETIC_CLASSES) + 1
    counts = {split: np.zeros(bins, np.int64) for split in ("training", "validation")}
    done, total = 0, train + val
    jobs = _jobs(train, val)
    pending: list[tuple[_Job, Future[npt.NDArray[np.int64]]]] = []
    with ThreadPoolExecutor(workers, thread_name_prefix="scenes") as pool:
        try:
            # A short queue keeps memory level and stops soon after an error.
            for job in islice(jobs, workers * 2):
                pending.append((job, pool.submit(_write_scene, folder, job, size, seed)))
            while pending:
                job, future = pending.pop(0)
                counts[job.split] += future.result()
                for following in islice(jobs, 1):
                    task = pool.submit(_write_scene, folder, following, size, seed)
                    pending.append((following, task))
                done += 1
                if progress is not None:
                    progress(done, total)
        finally:
            for _, future in pending:
                future.cancel()
    return counts


def _write_scene(
    folder: Path, job: _Job, size: tuple[int, int], seed: int
) -> npt.NDArray[np.int64]:
    """Draw and write one scene; returns its pixels per raw label."""
    image, label = make_scene(seed, job.index, size)
    write_image(folder / "images" / job.split / f"{job.stem}.jpg", image, quality=JPEG_QUALITY)
    # As the converters write labels: shown in colors by any viewer, and rows without PNG
    # filters, which are read several times faster than OpenCV's default.
    write_label_png(
        folder / "annotations" / job.split / f"{job.stem}.png",
        label,
        ((0, 0, 0), *SYNTHETIC_PALETTE),
    )
    return np.bincount(label.ravel(), minlength=len(SYNTHETIC_CLASSES) + 1).astype(np.int64)


def _write_lists(folder: Path, counts: dict[str, npt.NDArray[np.int64]]) -> None:
    """Write the class list in the columns of ADE20K's objectInfo150.txt, and the plain one."""
    pixels = counts["training"] + counts["validation"]
    shares = pixels[1:] / max(int(pixels[1:].sum()), 1)
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    for k, name in enumerate(SYNTHETIC_CLASSES):
        trained, held_out = (int(counts[split][k + 1]) for split in ("training", "validation"))
        lines.append(
            f"{k + 1}\t{shares[k]:.4f}\t{trained}\t{held_out}\t{int(name in STUFF)}\t{name}"
        )
    atomic_write_text(folder / "objectInfo.txt", "\n".join(lines) + "\n")
    atomic_write_text(folder / "classes.txt", class_list_text(SYNTHETIC_CLASSES))


def _put_in_place(building: Path, target: Path, aside: Path) -> None:
    """Move finished files into their folder, and those that they replace out of it."""
    write_json(target / MARKER, {"made_by": MADE_BY, "finished": False})
    for new in sorted(building.iterdir()):
        old = target / new.name
        if old.exists():
            old.rename(aside / new.name)
        new.rename(old)
