"""Publish a run: weights, config and model card in one folder, checked before it is kept."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

import cgrseg
from cgrseg.config import Config
from cgrseg.config.schema import ChannelsConfig
from cgrseg.config.settings import build, stored_test_settings
from cgrseg.data.pairs import find_pairs
from cgrseg.data.resolve import resolve_spec
from cgrseg.data.synthetic import make_scene
from cgrseg.errors import CGRSegError, ConfigError, WeightsError, option
from cgrseg.files import atomic_write_text, explained, make_folder, partial_folder
from cgrseg.hub import is_hub_id, upload
from cgrseg.inference import Predictor, TorchBackend
from cgrseg.inference.segmenting import is_plain
from cgrseg.input_files import read_input
from cgrseg.locks import output_lock
from cgrseg.models import CGRSeg, load_model
from cgrseg.models.checkpoint_files import DIGEST, Checkpoint, read_checkpoint
from cgrseg.models.digest import weights_digest
from cgrseg.processes import signals_deferred
from cgrseg.published import PublishedWeights
from cgrseg.publishing.card import Measured, is_signed, model_card, signed_card
from cgrseg.reporting.records import read_evaluation

_NAMES = ("best.pth", "latest.pth")
_FILES = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
_CHECKED = 8
"""Maximum number of validation images that the check predicts."""


@dataclass(frozen=True)
class Published:
    """A published folder.

    Attributes:
        folder: the folder.
        scores: scores of the card in 0..1 by name; empty without an evaluation.
        sha256: digest of `model.safetensors`.
        checked: number of images on which folder and checkpoint gave the same.
        address: page on the hub; None: not uploaded.
        row: row of the table of weights by name; None: not uploaded.
    """

    folder: Path
    scores: dict[str, float]
    sha256: str
    checked: int
    address: str | None
    row: PublishedWeights | None


def publish(
    run: str | Path,
    *,
    out: str | Path | None = None,
    name: str | None = None,
    license_id: str | None = None,
    images: Sequence[str | Path] = (),
    data_root: str | Path | None = None,
    to: str | None = None,
    private: bool = False,
    overwrite: bool = False,
    update: bool = False,
    tell: Callable[[str], None] = print,
) -> Published:
    """Write a folder of weights that `cgrseg` and transformers open, and upload it if asked.

    The folder holds `model.safetensors` (float32), `config.json`, `preprocessor_config.json` and
    `README.md`, the model card.  It is kept only if it opens again and gives the labels and
    confidences of the checkpoint, bit for bit.

    Args:
        run: run folder (its `best.pth`, else `latest.pth`), or a checkpoint.
        out: the folder; None: `published` in the run folder, or beside the checkpoint.
        name: title of the card; None: the name of the run.
        license_id: license of the weights as the hub names it, e.g. "apache-2.0".
        images: images of the check; none: some validation images, else a drawn scene.
        data_root: dataset root of the validation images, where it is not that of the run.
        to: hub id to upload to, as "owner/name"; None: no upload.
        private: create a private repository.
        overwrite: replace an earlier published folder.  For an upload, a folder with the same
            weights needs no permission; a card that was edited by hand stays and is uploaded.
        update: add a commit to a repository that exists.
        tell: gets remarks, one line each.

    Raises:
        ConfigError: an existing folder, or a hub id or license of another form.
        WeightsError: a checkpoint that cannot be used.
        DataError: damaged records of the run, or an image that cannot be used.
        EnvironmentProblem: a folder that cannot be written, or an upload that failed; the folder
            stays.
    """
    _check_texts(to, license_id, name)
    path = _checkpoint_of(Path(run))
    target = Path(out) if out is not None else _beside(path)
    again = overwrite or to is not None
    _refuse_existing(target, again, keep_card=again)
    checkpoint = read_checkpoint(path)
    model = load_model(path, verbose=False)
    config = _config(checkpoint)
    title = name or (config.name if config is not None else target.absolute().name)
    measured = _evaluations(path, model, checkpoint, config, tell)
    shown = _predictor(model, path)
    if license_id is None:
        tell(f"no license: the card says that none was given; set it with {option('--license')}")
    card = signed_card(
        model_card(
            title,
            model,
            shown.classes,
            shown.palette,
            measured,
            config=config,
            iteration=_number(checkpoint.meta.get("iteration")),
            versions=_versions(checkpoint),
            license_id=license_id,
            hub_id=to,
            plain=is_plain(shown.test),
        )
    )
    model.classes, model.palette = shown.classes, shown.palette
    model.preprocessing = shown.test.model_dump(mode="json")
    samples = _samples(images, config, data_root, shown.test.image_channels, tell)
    with output_lock(target.parent):
        make_folder(target.parent)
        with explained(target), partial_folder(target.parent, "publishing") as staging:
            written = staging / "folder"
            atomic_write_text(written / "README.md", card)
            model.save_pretrained(written)
            _check(written, shown, samples)
            same = again and _same_weights(target, written)
            if same and _card_was_edited(target):
                tell(f"{target / 'README.md'} was edited by hand: it stays as it is")
            else:
                _refuse_existing(target, overwrite or same)
                _replace(target, written, staging / "old")
    digest = hashlib.sha256(read_input(target / "model.safetensors")).hexdigest()
    scores = dict(measured[0].scores) if measured else {}
    address = row = None
    if to is not None:
        address, revision = upload(target, to, private=private, update=update, tell=tell)
        row = PublishedWeights(
            name=to.partition("/")[2],
            variant=model.variant,
            dataset=None if config is None else config.data.dataset,
            num_classes=model.num_classes,
            scores=scores,
            sha256=digest,
            license_id=license_id,
            hub_id=to,
            revision=revision,
        )
    return Published(target, scores, digest, len(samples), address, row)


def _predictor(model: CGRSeg, source: Path) -> Predictor:
    """The network as published, on the CPU: equal inputs give equal bits."""
    test = stored_test_settings(model.preprocessing, source)
    return Predictor(TorchBackend(model, "cpu"), test, model.classes, model.palette)


def _check_texts(to: str | None, license_id: str | None, name: str | None) -> None:
    if name is not None and (not name.strip() or len(name.splitlines()) > 1):
        raise ConfigError(
            option("--name"),
            found=repr(name),
            expected="a title of one line",
            remedy="remove the line breaks, or leave the option out",
        )
    if to is not None and not is_hub_id(to):
        raise ConfigError(
            option("--to"),
            found=repr(to),
            expected="a hub id of the form owner/name",
            remedy="for example someone/cgrseg-t-streets",
        )
    if license_id is not None and re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license_id) is None:
        raise ConfigError(
            option("--license"),
            found=repr(license_id),
            expected="an identifier of the hub: small letters, digits, dots and hyphens",
            remedy="for example apache-2.0, mit, cc-by-nc-4.0, or other",
        )


def _checkpoint_of(run: Path) -> Path:
    """The checkpoint in a run folder, or the path as it is."""
    if not run.is_dir() or (run / "model.safetensors").is_file():
        return run
    for name in _NAMES:
        if (run / name).is_file():
            return run / name
    raise ConfigError(
        run,
        found=f"a folder without {' and '.join(_NAMES)}",
        expected="a run folder, or a checkpoint",
        remedy="name the checkpoint itself",
    )


def _beside(path: Path) -> Path:
    if not path.exists():  # a hub id, or a path that the reader will refuse
        return Path("published")
    return path.with_name("published") if path.is_file() else path / "published"


def _config(checkpoint: Checkpoint) -> Config | None:
    """The config of the run that is stored in a checkpoint of ours."""
    stored = checkpoint.meta.get("config")
    if not isinstance(stored, dict):
        return None
    try:
        return build(stored, checkpoint.source)
    except CGRSegError:
        return None


def _evaluations(
    path: Path,
    model: CGRSeg,
    checkpoint: Checkpoint,
    config: Config | None,
    tell: Callable[[str], None],
) -> list[Measured]:
    """Whole evaluations of exactly these weights beside the checkpoint, the plain one first."""
    weights = weights_digest(model)
    found, others = [], []
    for file in sorted(path.parent.glob("evaluation*.json")) if path.is_file() else []:
        record = read_evaluation(file)
        settings = record.get("settings", {})
        if settings.get("weights") != weights or "_earlier" in file.stem:
            others.append(file.name)
        elif settings.get("limit") is None:
            found.append(Measured.of_record(record))
    if found:
        return found
    if others:
        tell(f"not of these weights: {', '.join(others)}")
    score = checkpoint.meta.get("mIoU")
    remedy = f"evaluate first for more: cgrseg evaluate {shlex.quote(str(path))}"
    if isinstance(score, float) and config is not None:
        tell(f"the card has the mIoU of the validation during the training; {remedy}")
        split = config.data.eval_split
        return [Measured(f"split {split}, during the training", split, {"mIoU": score}, {})]
    tell(f"no evaluation: the card says that there is none; {remedy}")
    return []


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _versions(checkpoint: Checkpoint) -> str:
    trained = checkpoint.meta.get("version")
    first = f"Trained with cgrseg {trained}. " if isinstance(trained, str) else ""
    return f"{first}Published with cgrseg {cgrseg.__version__}, torch {metadata.version('torch')}."


def _samples(
    images: Sequence[str | Path],
    config: Config | None,
    data_root: str | Path | None,
    channels: ChannelsConfig | None,
    tell: Callable[[str], None],
) -> list[Any]:
    """Images for the check: given ones, some of the validation split, or a drawn scene."""
    if images:
        return list(images)
    reason = "the checkpoint names no dataset"
    if config is not None:
        if data_root is not None:
            config.data.root = str(data_root)
        try:
            pairs = find_pairs(resolve_spec(config.data), config.data.root, config.data.eval_split)
            return [pair.image for pair in pairs[:: -(-len(pairs) // _CHECKED)]]
        except CGRSegError as error:
            if data_root is not None:
                raise
            reason = str(error).splitlines()[0]
    tell(f"the check predicts a drawn scene, no validation image ({reason})")
    scene = make_scene(0, 0)[0]
    if channels is None:
        return [scene]
    bands = [scene[..., k % 3] for k in range(len(channels.names or []))]
    return [np.stack(bands, axis=2).astype(np.result_type(*channels.types or ["uint8"]))]


def _check(folder: Path, expected: Predictor, samples: Sequence[Any]) -> None:
    """Refuse a folder that opens with another result than the checkpoint."""
    opened = _predictor(load_model(folder, verbose=False), folder)
    for sample in samples:
        ours, theirs = (each(sample, confidence=True) for each in (expected, opened))
        if not (
            np.array_equal(ours.labels, theirs.labels)
            and np.array_equal(ours.confidence, theirs.confidence)
        ):
            raise WeightsError(
                folder,
                found="its predictions are not those of the checkpoint",
                expected="the same labels and confidences, bit for bit",
                remedy="the folder is discarded; report this as a bug",
            )


def _replace(target: Path, written: Path, old: Path) -> None:
    """Move a written folder to its place; the earlier one comes back if that fails."""
    with signals_deferred():
        if target.exists():
            os.rename(target, old)
        try:
            os.rename(written, target)
        except OSError:
            if old.exists():
                os.rename(old, target)
            raise


def _same_weights(target: Path, written: Path) -> bool:
    """Whether a folder has the weights and settings that were written now."""
    return all(
        (target / name).is_file() and read_input(target / name) == read_input(written / name)
        for name in _FILES - {"README.md"}
    )


def _card_was_edited(folder: Path) -> bool:
    card = folder / "README.md"
    return os.path.lexists(card) and not (card.is_file() and is_signed(read_input(card)))


def _is_published(folder: Path) -> bool:
    """Whether the files have the marks of `save_pretrained`."""
    try:
        config = json.loads(read_input(folder / "config.json"))
        with safe_open(str(folder / "model.safetensors"), framework="np") as stream:
            marked = DIGEST in (stream.metadata() or {})
    except (OSError, ValueError, RecursionError, SafetensorError, CGRSegError):
        return False
    return marked and isinstance(config, dict) and config.get("model_type") == "cgrseg"


def _refuse_existing(target: Path, overwrite: bool, *, keep_card: bool = False) -> None:
    """Refuse to replace what nobody asked to replace, and what this command did not write."""
    if not os.path.lexists(target):
        return
    remedy = f"choose another one with {option('--out')}"
    names = {entry.name for entry in target.iterdir()} if target.is_dir() else set()
    foreign = ", ".join(sorted(names - _FILES)[:3])
    if not target.is_dir():
        found = "a file of that name"
    elif foreign:
        found = f"a folder that holds more than published weights ({foreign})"
    elif names and not _is_published(target):
        found = f"a folder that this command did not write ({', '.join(sorted(names))})"
    elif _card_was_edited(target) and not keep_card:
        found = "a folder whose README.md was edited by hand"
        remedy += f", or move README.md elsewhere and replace the rest with {option('--overwrite')}"
    elif overwrite:
        return
    else:
        found = "a folder of that name"
        remedy += f", or replace it with {option('--overwrite')}"
    raise ConfigError(target, found=found, expected="a new folder", remedy=remedy)
