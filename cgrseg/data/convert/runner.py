"""How every converter runs: in parallel, resumable, and never leaving half a file.

A converter is a list of :class:`Task` and one function that turns a task into a
label map.  Everything else is here: label maps that are finished are kept, damaged
sources are named and skipped, files appear whole or not at all, and what was made
is written to `conversion.json` beside the label maps, with the source of each, so
that a later run cannot mix two encodings, or two sources of one name, in a folder.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cgrseg.class_names import class_list_text
from cgrseg.data.convert.place import ImageMode, place_image, same_content
from cgrseg.data.custom import read_class_list
from cgrseg.data.image_io import MAX_PIXELS, read_image, write_label_png
from cgrseg.data.parallel import Progress, run_parallel
from cgrseg.errors import DataError, explain
from cgrseg.files import atomic_write_text, write_json

RECORD_NAME = "conversion.json"


@dataclass(frozen=True)
class Task:
    """One label map to make.

    Attributes:
        source: the file that messages name.
        label: label map to write.
        inputs: files that, when newer than the label map, make it stale.
        image: image that belongs to it; its size must be the label map's.
        image_target: where that image goes; None: it stays where it is.
        size: height and width that the source states; compared with the image before anything
            is drawn; None: the source states none.
        content: what the drawing function needs beyond the source.
    """

    source: Path
    label: Path
    inputs: tuple[Path, ...]
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


@dataclass
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
            settings is refused, unless these only add to the `classes` (a sequence) or
            the `colours` (a mapping) that the folder was made with.
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
    _refuse_collisions(tasks)
    record = record_folder / RECORD_NAME
    # Through JSON, so that it compares equal to what an earlier run has stored.
    identity = {"converter": report.converter, "settings": json.loads(json.dumps(settings))}
    known = _read_record(record)
    changed = bool(known) and not _compatible(known, identity)
    sources: dict[str, str] = known.get("sources", {})
    names = {_name(record, task): str(task.source.resolve()) for task in tasks}
    if overwrite:
        if changed:
            _refuse_leftovers(record, sources, names)
    else:
        _refuse_other_settings(record, known, identity)
        _refuse_other_sources(record, sources, tasks)
        _refuse_strangers(record, sources, tasks)
    # Labels from before an --overwrite count as not made, even when that was interrupted.
    begun = time.time_ns() if overwrite else int(known.get("begun", 0))
    replace = overwrite or (begun > 0 and not known.get("finished", False))
    todo = [task for task in tasks if overwrite or not _is_finished(task, begun)]
    report.kept += len(tasks) - len(todo)
    entries = {"format": 1, **identity, "begun": begun, "sources": {**sources, **names}}
    if todo:
        write_json(record, {**entries, "finished": False})
        if class_file is not None and not (
            class_file.is_file() and read_class_list(class_file) == tuple(report.classes)
        ):
            atomic_write_text(class_file, class_list_text(report.classes))
    perform = functools.partial(
        _perform,
        draw=draw,
        palette=tuple(palette),
        image_mode=image_mode,
        replace=replace,
        drop_old=begun if changed else 0,
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
    drop_old: int,
) -> np.ndarray | Failure:
    """Make one label map; pixels per value (256,) int64, or why it was skipped.

    Where it fails, a label map from before `drop_old` (nanoseconds) is removed: it is in
    an encoding that the folder no longer has.
    """
    try:
        image_size = None if task.image is None else read_image(task.image).shape[:2]
        if task.size is not None:
            _refuse_other_size(task, task.size, image_size)
        labels = draw(task)
        _refuse_other_size(task, labels.shape, image_size)
        if task.image is not None and task.image_target is not None:
            place_image(task.image, task.image_target, image_mode, replace=replace)
        # The label map comes last: where it exists, the whole task is done.
        write_label_png(task.label, labels, palette)
        return np.bincount(labels.ravel(), minlength=256)
    except DataError as error:
        if task.label.is_file() and task.label.stat().st_mtime_ns < drop_old:
            task.label.unlink()
        return Failure(str(task.source), str(error))


def _refuse_other_size(
    task: Task, size: tuple[int, ...], image_size: tuple[int, ...] | None
) -> None:
    """Raise unless a label map's size is possible, and that of the image where there is one."""
    height, width = size
    name = task.label.stem if task.image is None else task.image.name
    if image_size is not None and image_size != size:
        raise DataError(
            explain(
                task.source,
                found=f"a label map of {width}x{height} pixels for "
                f"{name} of {image_size[1]}x{image_size[0]}",
                expected="image and label map of one size",
                remedy="find out which of the two was resized or rotated",
            )
        )
    if min(size) < 1 or height * width > MAX_PIXELS:
        raise DataError(
            explain(
                task.source,
                found=f"a label map of {width}x{height} pixels for {name}",
                expected=f"1 to {MAX_PIXELS:,} pixels",
                remedy="correct the size in the file, or export it again",
            )
        )


def _is_finished(task: Task, begun: int) -> bool:
    """Whether the task's files exist, from `begun` (ns) on, and nothing they need is newer."""
    if not task.label.is_file():
        return False
    if task.image_target is not None and not task.image_target.is_file():
        return False
    made = task.label.stat().st_mtime_ns
    if made < begun:
        return False
    inputs = [*task.inputs, *([task.image] if task.image is not None else [])]
    return all(not path.is_file() or path.stat().st_mtime_ns <= made for path in inputs)


def _refuse_collisions(tasks: Sequence[Task]) -> None:
    owners: dict[Path, Path] = {}
    for task in tasks:
        if task.label in owners:
            raise DataError(
                explain(
                    task.source,
                    found=f"two label maps would be {task.label.name}; the other one is from "
                    f"{owners[task.label]}",
                    expected="one source for each label map",
                    remedy="rename one of the two, or convert them into different folders",
                )
            )
        owners[task.label] = task.source


def _name(record: Path, task: Task) -> str:
    """The label map's path below the folder of the record."""
    return Path(os.path.relpath(task.label, record.parent)).as_posix()


def _read_record(record: Path) -> dict[str, Any]:
    """What an earlier run has stored; empty where there is nothing, or nothing readable."""
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _refuse_other_settings(
    record: Path, known: Mapping[str, Any], identity: Mapping[str, Any]
) -> None:
    """Never mix two encodings in one folder."""
    if not record.is_file():
        return
    if _compatible(known, identity):
        return
    before = {key: known.get(key) for key in identity}
    raise DataError(
        explain(
            record.parent,
            found=f"label maps made with other settings ({RECORD_NAME} says: {before})",
            expected=f"settings as now: {dict(identity)}",
            remedy="choose another output folder, or --overwrite to make all of it anew",
        )
    )


def _compatible(known: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Whether the settings are the same but for classes or colours that were added."""
    before, now = known.get("settings"), identity["settings"]
    if known.get("converter") != identity["converter"]:
        return False
    if not isinstance(before, dict) or before.keys() != now.keys():
        return False
    for key, old in before.items():
        new = now[key]
        if key == "classes" and isinstance(old, list):
            same = new[: len(old)] == old
        elif key == "colours" and isinstance(old, dict):
            same = old.items() <= new.items()
        else:
            same = new == old
        if not same:
            return False
    return True


def _refuse_other_sources(record: Path, sources: Mapping[str, str], tasks: Sequence[Task]) -> None:
    """A label map belongs to the source that it was made from, also in a later run."""
    for task in tasks:
        before = sources.get(_name(record, task))
        if before is not None and before != str(task.source.resolve()):
            raise DataError(
                explain(
                    task.source,
                    found=f"two label maps would be {task.label.name}; the other one was made "
                    f"earlier, from {before}",
                    expected="one source for each label map",
                    remedy="rename one of the two, or convert them into different folders (or "
                    "splits); if it is the same source, moved since, --overwrite makes it anew",
                )
            )


def _refuse_leftovers(record: Path, sources: Mapping[str, str], names: Mapping[str, str]) -> None:
    """Other settings may replace a folder's label maps only if they replace all of them."""
    left = sorted(
        name for name in sources if name not in names and (record.parent / name).is_file()
    )
    if left:
        raise DataError(
            explain(
                record.parent / left[0],
                found=f"{len(left)} label maps made with other settings, from sources that are "
                f"not among these, such as {sources[left[0]]}",
                expected="one encoding in one folder",
                remedy="choose another output folder, or move these label maps away first",
            )
        )


def _refuse_strangers(record: Path, sources: Mapping[str, str], tasks: Sequence[Task]) -> None:
    """Never write over files that are not ours."""
    for task in tasks:
        if _name(record, task) in sources:
            continue
        strangers = [path for path in (task.label, task.image_target) if path and path.exists()]
        # The image itself, or its copy, may be in place already.
        if (
            task.image is not None
            and task.image_target in strangers
            and task.image.exists()
            and same_content(task.image, task.image_target)
        ):
            strangers.remove(task.image_target)
        if strangers:
            raise DataError(
                explain(
                    strangers[0],
                    found="a file that this converter did not write",
                    expected="a folder that is empty or was made by this converter",
                    remedy="choose another output folder, or --overwrite to replace such files",
                )
            )
