"""Where a run goes on from, and what must not be overwritten."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cgrseg.class_names import clean_name, differences, listed, usable_palette
from cgrseg.config.schema import Config
from cgrseg.datasets.spec import DatasetSpec
from cgrseg.errors import ConfigError, WeightsError, option
from cgrseg.processes import is_first_process
from cgrseg.provenance import settings_digest
from cgrseg.training.checkpointing import PREVIOUS, find_latest, read_training_checkpoint
from cgrseg.training.tables import SCORES, read_table

_LOG = logging.getLogger("cgrseg.training")

# Settings that say where and how to look, not what is trained.
_HARMLESS = {
    "name",
    "work_dir",
    "data.root",
    "data.workers",
    "data.check",
    "train.log_interval",
    "train.log_images",
    "train.accept_data",
    "train.wandb",
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read to resume from.

    Attributes:
        path: the file.
        state: its content.
        changed_data: differences of the data that were accepted, in words.
    """

    path: Path
    state: dict[str, Any]
    changed_data: tuple[str, ...] = ()


def find_checkpoint(
    run_dir: Path, resume_from: Path | str | None, auto_resume: bool
) -> Checkpoint | None:
    """Read what to resume from.

    Args:
        run_dir: the run's folder.
        resume_from: a checkpoint given by name; it must be there.
        auto_resume: take the newest readable one of the folder, or none when there is none.

    Raises:
        DataError: `resume_from` is not there.
        WeightsError: it is damaged, or holds weights only.
    """
    if resume_from is not None:
        return Checkpoint(Path(resume_from), read_training_checkpoint(resume_from))
    if not auto_resume:
        return None
    newest = find_latest(run_dir)
    if newest is None:
        return None
    try:
        return Checkpoint(newest, read_training_checkpoint(newest))
    except WeightsError as error:
        previous = run_dir / PREVIOUS
        if newest == previous or not previous.is_file():
            raise
        state = read_training_checkpoint(previous)
        # Aside, or the next save would put the damaged file in the place of the good one.
        aside = newest.with_name(f"{newest.name}.damaged")
        with contextlib.suppress(OSError):
            os.replace(newest, aside)
        if is_first_process():
            _LOG.warning("%s\n  resuming from %s instead", error, previous)
        return Checkpoint(previous, state)


def refuse_occupied(run_dir: Path, checkpoint: Checkpoint | None) -> None:
    """Refuse to start over in a folder that holds the checkpoint of another run.

    Raises:
        ConfigError: naming the ways to go on.
    """
    present = _remains(run_dir)
    if present is None:
        return
    if checkpoint is not None and checkpoint.path.resolve().parent == run_dir.resolve():
        return
    raise ConfigError(
        run_dir,
        found=f"the folder of an earlier run ({present.name}); it is not overwritten",
        expected="a folder without a run, or leave to go on with this one",
        remedy=(f"go on with {option('--resume')}, " if find_latest(run_dir) is not None else "")
        + f"choose another {option('--work-dir')}, or move the old folder away",
    )


def _remains(run_dir: Path) -> Path | None:
    """A checkpoint or the scores of an earlier run, which a new one would replace."""
    newest = find_latest(run_dir)
    if newest is not None:
        return newest
    scores = run_dir / SCORES
    kept = [*sorted(run_dir.glob("best*.pth")), *([scores] if read_table(scores) else [])]
    return kept[0] if kept else None


def stored_precision(checkpoint: Checkpoint | None) -> str | None:
    """`train.precision` of the run that a checkpoint belongs to; None without one."""
    if checkpoint is None:
        return None
    settings = _table(checkpoint.state["meta"], "config")
    found: str | None = _table(settings, "train").get("precision")
    return found


def data_record(spec: DatasetSpec, images: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What a checkpoint says about the data beside class names and palette, in plain types.

    Args:
        spec: the dataset with its class edits.
        images: "training" and "validation" to the stems of their images, in their order.
    """
    rules = [
        [ending, list(rule.lookup), sorted(rule.allowed), rule.ignore_index]
        for ending, rule in spec.encodings
    ]
    return {
        "label_rule": settings_digest(rules),
        "labels": spec.label_rule.meaning,
        "images": {
            use: {"count": len(stems), "digest": settings_digest(list(stems))}
            for use, stems in images.items()
        },
    }


def refuse_other_data(
    checkpoint: Checkpoint, spec: DatasetSpec, now: Mapping[str, Any], accepted: str | None
) -> Checkpoint:
    """Stop a resume whose data are not those that the checkpoint was trained on.

    Checkpoints of earlier versions are compared as far as they tell.

    Args:
        checkpoint: what to resume from.
        spec: the dataset as it is now.
        now: :func:`data_record` of it.
        accepted: `train.accept_data`, which names the state of the data that may differ.

    Returns:
        The checkpoint, with the differences that were accepted.

    Raises:
        ConfigError: other class names or another order of them, which cannot be accepted; or
            another palette, label rule or image list, which was not accepted.
    """
    meta = checkpoint.state["meta"]
    _refuse_other_classes(checkpoint.path, meta.get("classes"), spec)
    palette = [[int(level) for level in color] for color in spec.palette]
    found: list[str] = []
    stored = usable_palette(meta.get("palette"), len(palette), checkpoint.path)
    changed = [k for k, color in enumerate(stored or ()) if list(color) != palette[k]]
    if stored is not None and changed:
        k = changed[0]
        found.append(
            f"the palette (class {spec.classes[k]!r} was {stored[k]}, is {spec.palette[k]})"
        )
    before = _table(meta, "data")
    if before.get("label_rule", now["label_rule"]) != now["label_rule"]:
        found.append(f"the label rule (was: {before.get('labels')}; is: {now['labels']})")
    for use, images in now["images"].items():
        earlier = _table(_table(before, "images"), use) or images
        if earlier.get("digest") != images["digest"]:
            found.append(
                f"the list of {use} images ({earlier.get('count')} images then, "
                f"{images['count']} now)"
            )
    # A name, not a plain yes: what is accepted is this state of the data, no later one.
    token = f"data-{settings_digest([palette, now['label_rule'], now['images']])[:10]}"
    if not found or accepted == token:
        return replace(checkpoint, changed_data=tuple(found))
    raise ConfigError(
        checkpoint.path,
        found="the data changed since this checkpoint: " + "; ".join(found),
        expected="the palette, label rule and image list that the training began with",
        remedy="restore them; or accept the data as they are now with "
        f"train.accept_data={token}; or start a new run (another name or work_dir) with "
        f"train.load_from={checkpoint.path}",
    )


def _table(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}


def _refuse_other_classes(path: Path, stored: Any, spec: DatasetSpec) -> None:
    if stored is None:
        return
    names = stored if isinstance(stored, (list, tuple)) else [stored]
    before = [clean_name(str(name)) for name in names]
    changed = differences(before, spec.classes)
    if changed is None:
        return
    raise ConfigError(
        path,
        found=f"the class names of the data are not those of this checkpoint: {changed}\n"
        f"  checkpoint: {listed(before)}\n  data: {listed(spec.classes)}",
        expected="the same names in the same order: each output of the network has learned "
        "its class",
        remedy="restore the class list (classes.txt, data.classes, data.merge, data.rename, "
        "data.drop); or start a new run (another name or work_dir) with "
        f"train.load_from={path}",
    )


def changed_settings(saved: Mapping[str, Any] | None, config: Config) -> list[str]:
    """Settings that differ from those of a checkpoint, as `key: old -> new`.

    Those that cannot change what is learnt (paths, workers) are left out.
    """
    if not isinstance(saved, Mapping):
        return []
    before, now = _flat(saved), _flat(config.model_dump(mode="json"))
    missing = "not there"
    return [
        f"{key}: {before.get(key, missing)} -> {now.get(key, missing)}"
        for key in sorted(before.keys() | now.keys())
        if key not in _HARMLESS and before.get(key, missing) != now.get(key, missing)
    ]


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
