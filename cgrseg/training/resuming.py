"""Resuming: find and check the checkpoint, restore weights and optimizer, protect old runs."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cgrseg.class_names import clean_name, differences, listed, usable_palette
from cgrseg.config.schema import ChannelsConfig, Config
from cgrseg.datasets.spec import DatasetSpec
from cgrseg.errors import ConfigError, WeightsError, option
from cgrseg.processes import is_first_process
from cgrseg.provenance import settings_digest
from cgrseg.training.checkpointing import PREVIOUS, find_latest, read_training_checkpoint
from cgrseg.training.module import TrainingModule
from cgrseg.training.optimizer import parameter_groups
from cgrseg.training.run_log import SCORES, read_table

_LOG = logging.getLogger("cgrseg.training")

# Settings that do not change the trained weights.
_HARMLESS = {
    "name",
    "work_dir",
    "data.root",
    "data.workers",
    "data.check",
    "train.log_interval",
    "train.log_images",
    "train.accept_data",
    "train.teacher",  # its weights are compared
    "train.wandb",
    "train.mlflow",
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint to resume from.

    Attributes:
        path: the file.
        state: its content.
        changed_data: accepted differences of the data, in words.
    """

    path: Path
    state: dict[str, Any]
    changed_data: tuple[str, ...] = ()


def find_checkpoint(
    run_dir: Path, resume_from: Path | str | None, auto_resume: bool
) -> Checkpoint | None:
    """Read the checkpoint to resume from; None for a new run.

    Args:
        run_dir: run folder.
        resume_from: a checkpoint, which must exist.
        auto_resume: use the newest readable checkpoint of the run folder, if there is one.

    Raises:
        DataError: `resume_from` does not exist.
        WeightsError: the checkpoint is damaged, or holds weights only.
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
        # Renamed, or the next save would replace the good checkpoint by the damaged one.
        aside = newest.with_name(f"{newest.name}.damaged")
        with contextlib.suppress(OSError):
            os.replace(newest, aside)
        if is_first_process():
            _LOG.warning("%s\n  resuming from %s instead", error, previous)
        return Checkpoint(previous, state)


def refuse_occupied(run_dir: Path, checkpoint: Checkpoint | None) -> None:
    """Refuse to overwrite the checkpoint or the scores of an earlier run.

    Raises:
        ConfigError: the folder belongs to another run.
    """
    present = _remains(run_dir)
    if present is None:
        return
    if checkpoint is not None and checkpoint.path.resolve().parent == run_dir.resolve():
        return
    raise ConfigError(
        run_dir,
        found=f"the folder of an earlier run ({present.name}); it is not overwritten",
        expected="a folder without a run, or a request to resume this run",
        remedy=(f"resume it with {option('--resume')}, " if find_latest(run_dir) else "")
        + f"choose another {option('--work-dir')}, or move the old folder away",
    )


def _remains(run_dir: Path) -> Path | None:
    """A file of an earlier run that a new run would replace; None if there is none."""
    newest = find_latest(run_dir)
    if newest is not None:
        return newest
    scores = run_dir / SCORES
    kept = [*sorted(run_dir.glob("best*.pth")), *([scores] if read_table(scores) else [])]
    return kept[0] if kept else None


def stored_precision(checkpoint: Checkpoint | None) -> str | None:
    """`train.precision` of the checkpoint's run; None without a checkpoint."""
    if checkpoint is None:
        return None
    settings = _table(checkpoint.state["meta"], "config")
    found: str | None = _table(settings, "train").get("precision")
    return found


def with_measurements_of(checkpoint: Checkpoint | None, config: Config) -> Config:
    """The config with what the run of a checkpoint measured on its training images.

    Batch size, class weights, and mean, deviation and types of channels are measured once per run:
    images that were added since, or another machine, do not change them.
    """
    if checkpoint is None:
        return config
    before = _table(checkpoint.state["meta"], "config")
    images = _table(before, "train").get("batch_size")
    if config.train.batch_size == "auto" and isinstance(images, int):
        train = config.train.model_copy(update={"batch_size": images})
        config = config.model_copy(update={"train": train})
    weights = _table(before, "loss").get("class_weights")
    if isinstance(config.loss.class_weights, str) and isinstance(weights, list):
        loss = config.loss.model_copy(update={"class_weights": weights})
        config = config.model_copy(update={"loss": loss})
    channels = _table(_table(before, "data"), "channels")
    names = config.data.channels.names
    if names is None or channels.get("names") != names:
        return config  # what differs is named later
    measured = {name: channels.get(name) for name in ("mean", "std", "types")}
    given = config.data.channels.model_dump(exclude_none=True)
    try:
        kept = ChannelsConfig.model_validate({**measured, **given})
    except (ValueError, ConfigError):  # somebody edited the file: they are measured again
        return config
    data = config.data.model_copy(update={"channels": kept})
    return config.model_copy(update={"data": data})


def data_record(spec: DatasetSpec, images: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Record of the data in a checkpoint, beside class names and palette, in plain types.

    Args:
        spec: the dataset with its class edits.
        images: stems of the "training" and the "validation" images, in order.
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
    """Refuse to resume on other data than those of the checkpoint.

    A checkpoint of an earlier version is compared as far as its record goes.

    Args:
        checkpoint: checkpoint to resume from.
        spec: the present dataset.
        now: :func:`data_record` of the present dataset.
        accepted: `train.accept_data`, which names the accepted state of the data.

    Returns:
        The checkpoint, with the accepted differences.

    Raises:
        ConfigError: other class names or another order, which cannot be accepted; or another
            palette, label rule or image list, which was not accepted.
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
    # A name, not a plain yes: it accepts this state of the data only, and no later one.
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


def refuse_other_teacher(checkpoint: Checkpoint, now: Mapping[str, str]) -> None:
    """Refuse to resume with another teacher, with one from now on, or without one.

    Args:
        checkpoint: checkpoint to resume from.
        now: digest of the present "teacher", if there is one.

    Raises:
        ConfigError: the run had another teacher.
    """
    before = checkpoint.state["meta"].get("teacher")
    if before == now.get("teacher"):
        return
    named = {
        when: f"SHA-256 {digest}" if digest else "none"
        for when, digest in (("then", before), ("now", now.get("teacher")))
    }
    raise ConfigError(
        "train.teacher",
        found=f"another teacher than that of {checkpoint.path} (then: {named['then']}; now: "
        f"{named['now']})",
        expected="the same network in all parts of a run",
        remedy="set train.teacher to the file that the run began with; or start a new run "
        f"(another name or work_dir) with train.load_from={checkpoint.path}",
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

    Settings that do not change the weights (paths, workers) are left out.
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


def restore_weights(module: TrainingModule, checkpoint: dict[str, Any]) -> None:
    """Load a checkpoint's weights into a module, before it is moved to its device.

    Raises:
        ConfigError: the checkpoint has another network.
    """
    training = checkpoint["training"]
    raw = training.get("state_dict", checkpoint["state_dict"])
    try:
        module.model.load_state_dict(raw)
    except RuntimeError as error:
        stored, head = checkpoint["meta"].get("head", "dpg"), module.model.head
        if stored == head:
            lines = [line.strip() for line in str(error).strip().splitlines()[1:3]]
            differs = " ".join(lines)[:300]
            remedy = (
                "resume with the config.json of that run; to start from its weights with other "
                "settings use load-from"
            )
        else:
            differs = f"{stored} head"
            remedy = (
                f"resume with model.head={stored}; or start a new run (another name or work_dir) "
                "from its backbone alone, with model.pretrained set to the checkpoint"
            )
        raise ConfigError(
            "resume-from",
            found=f"a checkpoint of another network than the settings describe ({differs})",
            expected=f"{module.config.model.name}, {head} head, with the same classes and context "
            "blocks",
            remedy=remedy,
        ) from error
    if module.averaged is not None:
        module.averaged.module.load_state_dict(checkpoint["state_dict"])
        if "averaged_steps" in training:
            module.averaged.updates = int(training["averaged_steps"])


def refuse_other_optimizer(module: TrainingModule, checkpoint: dict[str, Any]) -> None:
    """Check that the saved optimizer state fits the optimizer of the run.

    The fused step reads moments as plain memory: a moment with another shape than its
    parameter crashes the process, so every value is checked before.

    Raises:
        ConfigError: different parameter groups.
        WeightsError: optimizer state that no training writes; the message names the parameter.
    """
    saved = checkpoint["training"]["optimizer"]
    groups = parameter_groups(module.model, module.config.optimizer)
    before = [(group.get("names"), group.get("muon", False)) for group in saved["param_groups"]]
    if before != [(group["names"], group["muon"]) for group in groups]:
        raise ConfigError(
            "resume-from",
            found="different optimizer parameter groups",
            expected="the groups that optimizer.*, model.freeze_backbone and, with the ssa head, "
            "loss.ssa.* make",
            remedy="resume with these settings as that run had them, or use load-from",
        )
    owners: dict[Any, tuple[str, torch.Tensor, bool]] = {}
    for old, group in zip(saved["param_groups"], groups, strict=True):
        if len(old["params"]) != len(group["params"]):
            raise _damaged_optimizer(
                "optimizer", f"{len(old['params'])} parameters in a group", len(group["params"])
            )
        named = zip(old["params"], group["names"], group["params"], strict=True)
        owners.update({key: (name, weight, group["muon"]) for key, name, weight in named})
    for key, state in saved["state"].items():
        if key not in owners:
            raise _damaged_optimizer("optimizer", f"state of an unknown parameter {key!r}", "none")
        _refuse_bad_state(*owners[key], state)


def _refuse_bad_state(name: str, parameter: torch.Tensor, muon: bool, state: Any) -> None:
    """Raise unless a parameter's state is that of AdamW (step count, two moments) or of Muon."""
    moments = ["momentum_buffer"] if muon else ["exp_avg", "exp_avg_sq"]
    expected = moments if muon else [*moments, "step"]
    names = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
    if names != expected:
        raise _damaged_optimizer(name, f"the state {names}", " and ".join(expected))
    step = state.get("step", 0)
    if isinstance(step, torch.Tensor):
        plain = step.layout == torch.strided and step.device.type == "cpu"
        step = step.item() if plain and step.numel() == 1 and not step.is_complex() else None
    if not isinstance(step, (int, float)) or not 0 <= step < 2**53 or step != int(step):
        raise _damaged_optimizer(name, f"step {step!r}", "a whole number of steps, 0 or more")
    for moment in moments:
        value = state[moment]
        if not isinstance(value, torch.Tensor):
            raise _damaged_optimizer(name, f"{moment} of type {type(value).__name__}", "a tensor")
        kind = f"{str(value.dtype)[6:]}, {str(value.layout)[6:]}, on {value.device.type}"
        plain = value.layout == torch.strided and value.device.type == "cpu"
        if value.shape != parameter.shape or not plain or not value.is_floating_point():
            raise _damaged_optimizer(
                name,
                f"{moment} of shape {tuple(value.shape)} ({kind})",
                f"shape {tuple(parameter.shape)} (a dense tensor of floating-point numbers)",
            )
        if not torch.isfinite(value).all():
            raise _damaged_optimizer(name, f"non-finite values in {moment}", "finite values")
        if moment == "exp_avg_sq" and (value < 0).any():
            raise _damaged_optimizer(name, f"negative values in {moment}", "values of 0 or more")


def _damaged_optimizer(where: str, found: str, expected: object) -> WeightsError:
    return WeightsError(
        f"resume-from, optimizer state of {where}",
        found=found,
        expected=f"{expected}, as a training writes it",
        remedy=f"the checkpoint is damaged or foreign: resume from {PREVIOUS} in the same "
        "folder, or start from its weights with load-from",
    )


def restore_optimizer(trainer: Any, checkpoint: dict[str, Any]) -> None:
    """Restore a checkpoint's moments and loss scale, once the optimizer exists.

    Rates, decays and betas stay those of the present settings;
    :func:`refuse_other_optimizer` has checked that the groups are equal.
    """
    optimizer = trainer.optimizers[0]
    saved = checkpoint["training"]["optimizer"]
    # Before loading: PyTorch chooses the device of the step counts by the groups.
    groups = [
        {**group, "params": old["params"]}
        for group, old in zip(optimizer.param_groups, saved["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            # The fused step uses the memory order: moments in another memory layout
            # (train.channels_last) would be applied to the wrong weights.
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    scale = checkpoint["training"].get("scaler")
    if scaler is not None and scale:
        scaler.load_state_dict(scale)
