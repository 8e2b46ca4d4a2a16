"""What the label maps of a folder were made from, and which of them a later run keeps.

`conversion.json` beside the label maps has the converter, the settings and the source of each
label map; each label map carries a note (:mod:`cgrseg.provenance`) with the state of the files
that it was made from.  Label map and note are one file, so a process that is killed leaves no
label map without its note.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgrseg.data.convert.place import same_content
from cgrseg.data.label_files import label_note
from cgrseg.errors import DataError, option
from cgrseg.input_files import read_input_text
from cgrseg.provenance import content_digest, file_state, joint_state, settings_digest

if TYPE_CHECKING:
    from cgrseg.data.convert.runner import Task

RECORD_NAME = "conversion.json"


def generation_of(known: Mapping[str, Any], identity: Mapping[str, Any], overwrite: bool) -> str:
    """Name of what the label maps of a folder were made by: settings, and which overwriting.

    Settings that only add classes or colors keep the name.
    """
    before = str(known.get("generation", ""))
    if before and not overwrite:
        return before
    number = before.partition("-")[0]
    following = (int(number) if number.isdigit() else 0) + overwrite
    return f"{following}-{settings_digest(identity)[:16]}"


def note_of(task: Task, generation: str) -> str:
    """What a label map is made from, as text in its file (:mod:`cgrseg.provenance`)."""
    inputs = task.inputs_state or joint_state(task.inputs)
    image = "" if task.image is None else file_state(task.image)
    return f"{generation} {content_digest(f'{inputs} {image}'.encode())}"


def finished_tasks(tasks: Sequence[Task], generation: str, replacing: bool) -> dict[Path, bool]:
    """Label maps that are what their sources would give, each with whether a record says so.

    A label map without a record was made by an earlier version or retouched: it is replaced by
    an overwriting, or where a source is newer.
    """
    kept: dict[Path, bool] = {}
    for task in tasks:
        if not task.label.is_file():
            continue
        if task.image_target is not None and not task.image_target.is_file():
            continue
        note = label_note(task.label)
        if note == note_of(task, generation):
            kept[task.label] = True
        elif note is None and not replacing and not _older_than_sources(task):
            kept[task.label] = False
    return kept


def _older_than_sources(task: Task) -> bool:
    made = task.label.stat().st_mtime_ns
    inputs = [*task.inputs, *([task.image] if task.image is not None else [])]
    return any(path.is_file() and path.stat().st_mtime_ns > made for path in inputs)


def refuse_collisions(tasks: Sequence[Task]) -> None:
    """Raise where two tasks would write one label map."""
    owners: dict[Path, Path] = {}
    for task in tasks:
        if task.label in owners:
            raise DataError(
                task.source,
                found=f"two label maps would be {task.label.name}; the other one is from "
                f"{owners[task.label]}",
                expected="one source for each label map",
                remedy="rename one of the two, or convert them into different folders",
            )
        owners[task.label] = task.source


def name_of(record: Path, task: Task) -> str:
    """The label map's path below the folder of the record."""
    return Path(os.path.relpath(task.label, record.parent)).as_posix()


def read_record(record: Path) -> dict[str, Any]:
    """What an earlier run has stored; empty where there is nothing, or nothing readable."""
    try:
        known = json.loads(read_input_text(record))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def mixed_record(labels: Path, root: Path) -> Path | None:
    """Record of an overwriting with other settings that was stopped; None: there is none.

    Until the conversion is run again, label maps of two encodings lie side by side.

    Args:
        labels: folder of label maps; its record lies there, or in a folder above.
        root: the dataset's root, above which nothing is looked at.
    """
    for folder in [labels, *(above for above in labels.parents if root in above.parents)]:
        known = read_record(folder / RECORD_NAME)
        if known.get("drops_old") and not known.get("finished", False):
            return folder / RECORD_NAME
    return None


def refuse_other_settings(
    record: Path, known: Mapping[str, Any], identity: Mapping[str, Any]
) -> None:
    """Never mix two encodings in one folder."""
    if not record.is_file():
        return
    if compatible(known, identity):
        return
    before = {key: known.get(key) for key in identity}
    raise DataError(
        record.parent,
        found=f"label maps made with other settings ({RECORD_NAME} says: {before})",
        expected=f"settings as now: {dict(identity)}",
        remedy=f"choose another output folder, or make all of it anew with {option('--overwrite')}",
    )


def compatible(known: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Whether the settings are the same but for classes, colors or values that were added."""
    before, now = known.get("settings"), identity["settings"]
    if known.get("converter") != identity["converter"]:
        return False
    if not isinstance(before, dict) or before.keys() != now.keys():
        return False
    for key, old in before.items():
        new = now[key]
        if key == "classes" and isinstance(old, list):
            same = new[: len(old)] == old
        elif key in ("colours", "values") and isinstance(old, dict):
            same = old.items() <= new.items()
        else:
            same = new == old
        if not same:
            return False
    return True


def refuse_other_sources(record: Path, sources: Mapping[str, str], tasks: Sequence[Task]) -> None:
    """A label map belongs to the source that it was made from, also in a later run."""
    for task in tasks:
        before = sources.get(name_of(record, task))
        if before is not None and before != os.path.realpath(task.source):
            raise DataError(
                task.source,
                found=f"two label maps would be {task.label.name}; the other one was made "
                f"earlier, from {before}",
                expected="one source for each label map",
                remedy="rename one of the two, or convert them into different folders (or "
                f"splits); if it is the same source, moved since, {option('--overwrite')} "
                "makes it anew",
            )


def refuse_leftovers(record: Path, sources: Mapping[str, str], names: Mapping[str, str]) -> None:
    """Other settings may replace a folder's label maps only if they replace all of them."""
    left = sorted(
        name for name in sources if name not in names and (record.parent / name).is_file()
    )
    if left:
        raise DataError(
            record.parent / left[0],
            found=f"{len(left)} label maps made with other settings, from sources that are "
            f"not among these, such as {sources[left[0]]}",
            expected="one encoding in one folder",
            remedy="choose another output folder, or move these label maps away first",
        )


def refuse_strangers(record: Path, sources: Mapping[str, str], tasks: Sequence[Task]) -> None:
    """Never write over files that are not ours."""
    for task in tasks:
        if name_of(record, task) in sources:
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
                strangers[0],
                found="a file that this converter did not write",
                expected="a folder that is empty or was made by this converter",
                remedy="choose another output folder, or replace such files with "
                f"{option('--overwrite')}",
            )
