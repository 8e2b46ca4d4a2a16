"""Run a conversion: in parallel, resumable, and never leaving half a file.

Finished label maps are kept, damaged sources are named and skipped, files appear whole or not at
all, and `conversion.json` beside the label maps records what was made from which source, so that a
later run cannot mix two encodings, or two sources of one name, in a folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cgrseg.class_names import class_list_text, listed, read_class_list
from cgrseg.data.convert.format import ConversionReport, Failure, Format, Task
from cgrseg.data.convert.image_names import ImageMode, place_image
from cgrseg.data.convert.record import Record, note_of
from cgrseg.data.image_files import MAX_PIXELS, decode_image, read_image
from cgrseg.data.label_files import label_note, write_label_png
from cgrseg.data.parallel import run_parallel
from cgrseg.errors import DataError, option
from cgrseg.files import atomic_write_text
from cgrseg.locks import output_lock
from cgrseg.progress import Progress

_IGNORE = 255


def run_conversion(format: Format, progress: Progress | None = None) -> ConversionReport:
    """Make the label maps of a source.

    Args:
        format: the source and the options of the conversion.
        progress: called with (done, total).

    Raises:
        DataError: a source that cannot be used as a whole, two sources of one label map, files
            that are not ours or were made from another source, other settings.
        EnvironmentProblem: a missing extra, a full disk and the like; finished files stay.
    """
    started = time.perf_counter()
    with output_lock(format.root, below=True):
        format = format.resolved()
        source = format.read()
        report = ConversionReport(
            format.name.replace("-", "_"),
            format.root,
            source.classes,
            source.first_id,
            failures=[each for each in source.images if isinstance(each, Failure)],
            lists=source.lists,
            notes=source.notes,
        )
        if format.recognized_by:
            report.notes.insert(0, f"recognized as {format.name} by {format.recognized_by}")
        tasks = [each for each in source.images if isinstance(each, Task)]
        record = Record(
            format.label_folder, report.converter, source.settings, tasks, format.overwrite
        )
        kept = {} if format.overwrite else record.finished(tasks)
        todo = [task for task in tasks if task.label not in kept]
        report.kept = len(kept)
        unrecorded = sum(not recorded for recorded in kept.values())
        if unrecorded:
            report.notes.append(
                f"{unrecorded} label maps without a record of what they were made from were kept: "
                "an earlier version made them, or something else has written them since; "
                f"{option('--overwrite')} makes them anew"
            )
        if record.unclaimed:
            report.notes.append(
                f"{len(record.unclaimed)} label maps of earlier runs are of no image that these "
                f"sources name now: {listed(record.unclaimed)} in {format.label_folder}; if other "
                "names have replaced them, delete them with their images"
            )
        if todo:
            record.write()
        if tasks and format.class_file is not None:
            _write_classes(format.class_file, source.classes)
        make = functools.partial(
            _make,
            draw=format.draw,
            palette=tuple(source.palette),
            image_mode=source.image_mode,
            replaces=record.replaces,
            generation=record.generation,
            drops_old=record.drops_old,
        )
        pixels, left_out = np.zeros(256, dtype=np.int64), 0
        for outcome in run_parallel(make, todo, workers=format.workers, progress=progress):
            if isinstance(outcome, Failure):
                report.failures.append(outcome)
            elif outcome is None:
                left_out += 1
            else:
                report.written += 1
                pixels += outcome
        if left_out:
            report.notes.append(f"{left_out} tiles without a labeled pixel were left out")
        report.pixels = [int(count) for count in pixels]
        if source.finish is not None:
            source.finish(report)
        report.seconds = time.perf_counter() - started
        if todo:
            record.write(report.to_dict())
    return report


def _write_classes(path: Path, classes: tuple[str, ...]) -> None:
    if not path.is_file() or read_class_list(path) != classes:
        atomic_write_text(path, class_list_text(classes))


def _make(
    task: Task,
    *,
    draw: Callable[[Task], np.ndarray],
    palette: tuple[tuple[int, int, int], ...],
    image_mode: ImageMode,
    replaces: bool,
    generation: str,
    drops_old: bool,
) -> np.ndarray | Failure | None:
    """Make one label map.

    Returns:
        Number of pixels per value (256,) int64, or why it was skipped; None: it was left out.
    """
    note = note_of(task, generation)  # before anything is read
    try:
        image: Path | bytes | None = task.image
        image_size, labels = None, None
        if task.optional:
            labels = draw(task)
            if (labels == _IGNORE).all():
                for path in filter(None, (task.label, task.image_target)):
                    path.unlink(missing_ok=True)
                return None
        if task.embedded is not None:
            image = task.embedded.read()
            if not task.optional:
                image_size = decode_image(image, str(task.embedded)).shape[:2]
        elif task.image is not None:
            image_size = read_image(task.image).shape[:2]
        if task.size is not None:
            _refuse_other_size(task, task.size, image_size)
        if labels is None:
            labels = draw(dataclasses.replace(task, size=task.size or image_size))
        _refuse_other_size(task, labels.shape, image_size)
        if image is not None and task.image_target is not None:
            place_image(image, task.image_target, image_mode, replace=replaces)
        # The label map comes last: where it exists, the whole task is done.
        write_label_png(task.label, labels, palette, note=note)
        return np.bincount(labels.ravel(), minlength=256)
    except DataError as error:
        before = label_note(task.label)
        if drops_old and (before or "").split(" ")[0] != generation:
            with contextlib.suppress(OSError):
                task.label.unlink()
        elif before not in (None, note):
            stays = f"\n  {task.label} stays, made from what these files held before"
            return Failure(str(task.source), f"{error}{stays}")
        return Failure(str(task.source), str(error))


def _refuse_other_size(
    task: Task, size: tuple[int, ...], image_size: tuple[int, ...] | None
) -> None:
    """Raise unless the size of a label map is possible, and that of its image."""
    height, width = size
    name = task.embedded or (task.label.stem if task.image is None else task.image.name)
    if image_size is not None and image_size != size:
        raise DataError(
            task.source,
            found=f"a label map of {width}x{height} pixels for "
            f"{name} of {image_size[1]}x{image_size[0]}",
            expected="image and label map of one size",
            remedy="find out which of the two was resized or rotated",
        )
    if min(size) < 1 or height * width > MAX_PIXELS:
        raise DataError(
            task.source,
            found=f"a label map of {width}x{height} pixels for {name}",
            expected=f"1 to {MAX_PIXELS:,} pixels",
            remedy="correct the size in the file, or export it again",
        )
