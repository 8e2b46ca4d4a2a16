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
from typing import Any

from cgrseg.data.convert.format import Task
from cgrseg.data.convert.image_names import same_content
from cgrseg.data.label_files import label_note
from cgrseg.errors import DataError, option
from cgrseg.files import write_json
from cgrseg.input_files import read_input_text
from cgrseg.provenance import content_digest, file_state, joint_state, settings_digest

RECORD_NAME = "conversion.json"


class Record:
    """The record of a folder of label maps, for one conversion into it.

    Args:
        folder: folder of the label maps.
        converter: name of the converter.
        settings: everything that decides label values.
        tasks: what the conversion makes.
        overwrite: make everything anew.

    Attributes:
        generation: settings and overwriting that the label maps are made by, in the note of each.
            Settings that only add classes or colors keep it.
        replaces: label maps without a note, and other images, are replaced.
        unclaimed: label maps of earlier runs that their sources, which are among these, no longer
            give; paths below the folder.
        drops_old: label maps of another generation are removed where their sources fail: they are
            in an encoding that the folder no longer has.

    Raises:
        DataError: two sources of one label map, files that are not ours, or other settings.
    """

    def __init__(
        self,
        folder: Path,
        converter: str,
        settings: Mapping[str, Any],
        tasks: Sequence[Task],
        overwrite: bool,
    ) -> None:
        self._path = folder / RECORD_NAME
        # Through JSON, so that it compares equal to what an earlier run has stored.
        self._identity = {"converter": converter, "settings": json.loads(json.dumps(settings))}
        known = read_record(self._path)
        names = {self._name(task): os.path.realpath(task.source) for task in tasks}
        before: dict[str, str] = known.get("sources", {})
        changed = bool(known) and not self._continues(known)
        unfinished = bool(known) and not known.get("finished", False)
        self._refuse_collisions(tasks)
        if not overwrite:
            self._refuse_other_settings(known)
            self._refuse_other_sources(before, tasks)
            self._refuse_strangers(before, tasks)
        elif changed:
            self._refuse_leftovers(before, names)
        self._sources = {**before, **names}
        sources = set(names.values())
        self.unclaimed = sorted(
            name
            for name, source in before.items()
            if name not in names and source in sources and (folder / name).is_file()
        )
        self.generation = str(known.get("generation", ""))
        if overwrite or not self.generation:
            number = self.generation.partition("-")[0]
            number_now = (int(number) if number.isdigit() else 0) + overwrite
            self.generation = f"{number_now}-{settings_digest(self._identity)[:16]}"
        # Labels from before an overwriting count as not made, even when that was interrupted.
        self.replaces = overwrite or (unfinished and not self.generation.startswith("0-"))
        self.drops_old = changed or (unfinished and bool(known.get("drops_old")))

    def write(self, made: Mapping[str, Any] | None = None) -> None:
        """Write `conversion.json`: with the report when the conversion is finished."""
        state: dict[str, Any] = {"finished": True, "made": made}
        if made is None:
            state = {"finished": False, "drops_old": self.drops_old}
        entries = {"generation": self.generation, "sources": self._sources}
        write_json(self._path, {"format": 2, **self._identity, **entries, **state})

    def finished(self, tasks: Sequence[Task]) -> dict[Path, bool]:
        """Label maps that are what their sources would give, each with whether a note says so.

        A label map without a note was made by an earlier version or retouched: it is replaced by
        an overwriting, or where a source is newer.
        """
        kept: dict[Path, bool] = {}
        for task in tasks:
            if not task.label.is_file():
                continue
            if task.image_target is not None and not task.image_target.is_file():
                continue
            note = label_note(task.label)
            if note == note_of(task, self.generation):
                kept[task.label] = True
            elif note is None and not self.replaces:
                made = task.label.stat().st_mtime_ns
                inputs = [path for path in (task.source, task.image) if path and path.is_file()]
                if all(path.stat().st_mtime_ns <= made for path in inputs):
                    kept[task.label] = False
        return kept

    def _name(self, task: Task) -> str:
        """Path of a label map below the folder of the record."""
        return Path(os.path.relpath(task.label, self._path.parent)).as_posix()

    def _continues(self, known: Mapping[str, Any]) -> bool:
        """Whether the settings are those of the folder, but for added classes or colors."""
        before, now = known.get("settings"), self._identity["settings"]
        if known.get("converter") != self._identity["converter"]:
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

    @staticmethod
    def _refuse_collisions(tasks: Sequence[Task]) -> None:
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

    def _refuse_other_settings(self, known: Mapping[str, Any]) -> None:
        """Never mix two encodings in one folder."""
        if self._path.is_file() and not self._continues(known):
            before = {key: known.get(key) for key in self._identity}
            raise DataError(
                self._path.parent,
                found=f"label maps made with other settings ({RECORD_NAME} says: {before})",
                expected=f"settings as now: {self._identity}",
                remedy="choose another output folder, or make all of it anew with "
                f"{option('--overwrite')}",
            )

    def _refuse_other_sources(self, before: Mapping[str, str], tasks: Sequence[Task]) -> None:
        """A label map belongs to the source that it was made from, also in a later run."""
        for task in tasks:
            source = before.get(self._name(task))
            if source is not None and source != os.path.realpath(task.source):
                raise DataError(
                    task.source,
                    found=f"two label maps would be {task.label.name}; the other one was made "
                    f"earlier, from {source}",
                    expected="one source for each label map",
                    remedy="rename one of the two, or convert them into different folders (or "
                    f"splits); if it is the same source, moved since, {option('--overwrite')} "
                    "makes it anew",
                )

    def _refuse_leftovers(self, before: Mapping[str, str], names: Mapping[str, str]) -> None:
        """Other settings may replace label maps of a folder only if they replace all of them."""
        folder = self._path.parent
        left = sorted(name for name in before if name not in names and (folder / name).is_file())
        if left:
            raise DataError(
                folder / left[0],
                found=f"{len(left)} label maps made with other settings, from sources that are "
                f"not among these, such as {before[left[0]]}",
                expected="one encoding in one folder",
                remedy="choose another output folder, or move these label maps away first",
            )

    def _refuse_strangers(self, before: Mapping[str, str], tasks: Sequence[Task]) -> None:
        """Never write over files of other programs."""
        for task in tasks:
            if self._name(task) in before:
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


def note_of(task: Task, generation: str) -> str:
    """What a label map is made from, as text in its file."""
    inputs = task.source_state or joint_state([task.source])
    image = "" if task.image is None else file_state(task.image)
    return f"{generation} {content_digest(f'{inputs} {image}'.encode())}"


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
        root: dataset root, above which no folder is searched.
    """
    for folder in [labels, *(above for above in labels.parents if root in above.parents)]:
        known = read_record(folder / RECORD_NAME)
        if known.get("drops_old") and not known.get("finished", False):
            return folder / RECORD_NAME
    return None
