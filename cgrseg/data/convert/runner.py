"""How every converter runs: in parallel, resumable, and never leaving half a file.

A converter is a list of :class:`Task` and one function that turns a task into a
label map.  Everything else is here: label maps that are finished are kept, damaged
sources are named and skipped, files appear whole or not at all, and what was made
is written to `conversion.json` beside the label maps, with the source of each, so
that a later run cannot mix two encodings, or two sources of one name, in a folder.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cgrseg.class_names import class_list_text, read_class_list
from cgrseg.data.convert.place import ImageMode, place_image
from cgrseg.data.convert.record import (
    RECORD_NAME,
    compatible,
    finished_tasks,
    generation_of,
    name_of,
    note_of,
    read_record,
    refuse_collisions,
    refuse_leftovers,
    refuse_other_settings,
    refuse_other_sources,
    refuse_strangers,
)
from cgrseg.data.image_files import MAX_PIXELS, read_image
from cgrseg.data.label_files import label_note, write_label_png
from cgrseg.data.parallel import run_parallel
from cgrseg.errors import DataError, option
from cgrseg.files import atomic_write_text, write_json
from cgrseg.locks import locking
from cgrseg.progress import Progress

# For every converter: without `out`, it writes beside its source.
locking_output = locking(
    lambda given: given["source"] if given["out"] is None else given["out"], below=True
)


@dataclass(frozen=True)
class Task:
    """One label map to make.

    Attributes:
        source: the file that messages name.
        label: label map to write.
        inputs: files that the label map is made from, beside the image.
        inputs_state: their :func:`cgrseg.provenance.joint_state` from before the converter read
            them, where it did; None: the drawing function reads them.
        image: image that belongs to it; its size must be the label map's.
        image_target: where that image goes; None: it stays where it is.
        size: height and width that the source states; compared with the image before anything
            is drawn; None: the source states none.
        content: what the drawing function needs beyond the source.
    """

    source: Path
    label: Path
    inputs: tuple[Path, ...]
    inputs_state: str | None = None
    image: Path | None = None
    image_target: Path | None = None
    size: tuple[int, int] | None = None
    content: Any = None


Draw = Callable[[Task], np.ndarray]


@dataclass(frozen=True)
class Failure:
    """A source that was skipped, and why."""

    file: str
    message: str


@dataclass(repr=False)
class ConversionReport:
    """What a conversion made.

    Attributes:
        converter: its name.
        out: folder that holds the result.
        classes: names in id order of the label maps written.
        first_id: label value of the first class (1 where 0 means unlabelled).
        written: label maps written now.
        kept: label maps that were finished before.
        failures: sources skipped, each with its reason.
        lists: split lists written, name to number of lines.
        notes: things to know that are no errors.
        pixels: pixels per label value 0..255 over the label maps written now.
        seconds: wall-clock time.
    """

    converter: str
    out: Path
    classes: tuple[str, ...]
    first_id: int = 0
    written: int = 0
    kept: int = 0
    failures: list[Failure] = field(default_factory=list)
    lists: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    pixels: list[int] = field(default_factory=lambda: [0] * 256)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether every source was converted and there was at least one."""
        return not self.failures and self.written + self.kept > 0

    @property
    def exit_code(self) -> int:
        """0 when all went well, 1 when something was skipped."""
        return 0 if self.ok else 1

    def __repr__(self) -> str:
        return (
            f"ConversionReport({self.converter} into {self.out}: {self.written} written, "
            f"{self.kept} kept, {len(self.failures)} skipped)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {
            "converter": self.converter,
            "out": str(self.out),
            "ok": self.ok,
            "classes": list(self.classes),
            "first_id": self.first_id,
            "written": self.written,
            "kept": self.kept,
            "failed": [{"file": f.file, "message": f.message} for f in self.failures],
            "lists": dict(self.lists),
            "notes": list(self.notes),
            "pixels": {str(k): n for k, n in enumerate(self.pixels) if n},
            "seconds": round(self.seconds, 3),
        }

    def text(self) -> str:
        """A summary for people, with every skipped source named."""
        lines = [
            f"{self.converter}: {self.written} label maps written, {self.kept} kept, "
            f"{len(self.failures)} skipped, in {self.seconds:.1f} s",
            f"in {self.out}",
        ]
        lines += [f"list {name}: {count} images" for name, count in self.lists.items()]
        total = sum(self.pixels)
        if total:
            named = {self.first_id + k: name for k, name in enumerate(self.classes)}
            present = sum(1 for k in named if self.pixels[k])
            unlabelled = total - sum(self.pixels[k] for k in named)
            lines.append(
                f"{present} of {len(self.classes)} classes occur in what was written; "
                f"{unlabelled / total:.1%} of the pixels belong to none"
            )
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"skipped: {failure.message}" for failure in self.failures]
        return "\n".join(lines)


def run_conversion(
    report: ConversionReport,
    tasks: Sequence[Task],
    draw: Draw,
    *,
    record_folder: Path,
    class_file: Path | None = None,
    settings: Mapping[str, Any],
    palette: Sequence[tuple[int, int, int]],
    image_mode: ImageMode = "link",
    workers: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    finish: Callable[[ConversionReport], None] | None = None,
) -> ConversionReport:
    """Make the label maps of `tasks` and fill `report`.

    Args:
        report: gets counts, failures and pixels; failures already in it are kept.
        tasks: what to make.
        draw: importable function from a task to a uint8 (H, W) label map; raises
            DataError for a damaged source.
        record_folder: folder of the label maps, which gets `conversion.json`.
        class_file: text file that gets the class names, one a line; None: not written.
        settings: everything that decides label values; a folder made with other
            settings is refused, unless these only add to the `classes` (a sequence), the
            `colours` or the `values` (mappings) that the folder was made with.
        palette: RGB 0..255 per label value, stored in the PNGs.
        image_mode: how images get to their place.
        workers: processes; None chooses, 0 or 1 stays in this one.
        overwrite: make everything anew, also over files that we did not write.
        progress: called with (done, total).
        finish: adds to the report what is known once all label maps are there.

    Raises:
        DataError: two tasks with one target, files that are not ours or were made from
            another source, other settings.
        EnvironmentProblem: full disk and the like; finished files stay.
    """
    started = time.perf_counter()
    refuse_collisions(tasks)
    record = record_folder / RECORD_NAME
    # Through JSON, so that it compares equal to what an earlier run has stored.
    identity = {"converter": report.converter, "settings": json.loads(json.dumps(settings))}
    known = read_record(record)
    changed = bool(known) and not compatible(known, identity)
    unfinished = bool(known) and not known.get("finished", False)
    sources: dict[str, str] = known.get("sources", {})
    names = {name_of(record, task): os.path.realpath(task.source) for task in tasks}
    if overwrite:
        if changed:
            refuse_leftovers(record, sources, names)
    else:
        refuse_other_settings(record, known, identity)
        refuse_other_sources(record, sources, tasks)
        refuse_strangers(record, sources, tasks)
    # Labels from before an --overwrite count as not made, even when that was interrupted.
    generation = generation_of(known, identity, overwrite)
    replace = overwrite or (unfinished and not generation.startswith("0-"))
    drop_old = changed or (unfinished and bool(known.get("drops_old")))
    kept = {} if overwrite else finished_tasks(tasks, generation, replace)
    todo = [task for task in tasks if task.label not in kept]
    report.kept += len(kept)
    unrecorded = sum(not recorded for recorded in kept.values())
    if unrecorded:
        report.notes.append(
            f"{unrecorded} label maps without a record of what they were made from were kept: an "
            "earlier version made them, or something else has written them since; "
            f"{option('--overwrite')} makes them anew"
        )
    sources = {**sources, **names}
    entries = {"format": 2, **identity, "generation": generation, "sources": sources}
    if todo:
        write_json(record, {**entries, "finished": False, "drops_old": drop_old})
    if (
        class_file is not None
        and (todo or kept)
        and not (class_file.is_file() and read_class_list(class_file) == tuple(report.classes))
    ):
        atomic_write_text(class_file, class_list_text(report.classes))
    perform = functools.partial(
        _perform,
        draw=draw,
        palette=tuple(palette),
        image_mode=image_mode,
        replace=replace,
        generation=generation,
        drop_old=drop_old,
    )
    pixels = np.asarray(report.pixels, dtype=np.int64)
    for outcome in run_parallel(perform, todo, workers=workers, progress=progress):
        if isinstance(outcome, Failure):
            report.failures.append(outcome)
        else:
            report.written += 1
            pixels += outcome
    report.pixels = [int(count) for count in pixels]
    if finish is not None:
        finish(report)
    report.seconds += time.perf_counter() - started
    if todo:
        write_json(record, {**entries, "finished": True, "made": report.to_dict()})
    return report


def _perform(
    task: Task,
    *,
    draw: Draw,
    palette: tuple[tuple[int, int, int], ...],
    image_mode: ImageMode,
    replace: bool,
    generation: str,
    drop_old: bool,
) -> np.ndarray | Failure:
    """Make one label map; pixels per value (256,) int64, or why it was skipped.

    Where it fails, with `drop_old`, a label map of another generation is removed: it is in
    an encoding that the folder no longer has.
    """
    note = note_of(task, generation)  # before anything is read
    try:
        image_size = None if task.image is None else read_image(task.image).shape[:2]
        if task.size is not None:
            _refuse_other_size(task, task.size, image_size)
        labels = draw(task)
        _refuse_other_size(task, labels.shape, image_size)
        if task.image is not None and task.image_target is not None:
            place_image(task.image, task.image_target, image_mode, replace=replace)
        # The label map comes last: where it exists, the whole task is done.
        write_label_png(task.label, labels, palette, note=note)
        return np.bincount(labels.ravel(), minlength=256)
    except DataError as error:
        before = label_note(task.label)
        if drop_old and (before or "").split(" ")[0] != generation:
            with contextlib.suppress(OSError):
                task.label.unlink()
        elif before not in (None, note):
            stays = f"\n  {task.label} stays, made from what these files held before"
            return Failure(str(task.source), f"{error}{stays}")
        return Failure(str(task.source), str(error))


def _refuse_other_size(
    task: Task, size: tuple[int, ...], image_size: tuple[int, ...] | None
) -> None:
    """Raise unless a label map's size is possible, and that of the image where there is one."""
    height, width = size
    name = task.label.stem if task.image is None else task.image.name
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
