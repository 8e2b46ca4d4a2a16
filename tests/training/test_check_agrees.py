"""The check finds errors if and only if a training refuses to start.

Each folder is checked and trained on with each preset's dataset settings; the training is the
real one up to its first iteration: pairs, labels and splits as `cgrseg.train` opens them.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cgrseg.config import list_presets, load_config
from cgrseg.config.schema import Config
from cgrseg.data.check import check_dataset
from cgrseg.data.synthetic import write_dataset
from cgrseg.devices import find_placement
from cgrseg.errors import CGRSegError
from cgrseg.training.data_source import DatasetSource
from tests.data import folders
from tests.training.starting import training_starts


def wrong_ids(root: Path) -> Path:
    return folders.write_folder(root, make=lambda k: folders.labels(k, 0, 7))


def damaged_label(root: Path) -> Path:
    folders.write_folder(root)
    (root / "annotations" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return root


def damaged_image(root: Path) -> Path:
    folders.write_folder(root)
    (root / "images" / "2.jpg").write_bytes(b"no image")
    return root


def other_size(root: Path) -> Path:
    folders.write_folder(root)
    folders.save_label(root / "annotations" / "1.png", np.zeros((4, 4), np.uint8))
    return root


def without_label(root: Path) -> Path:
    folders.write_folder(root)
    (root / "annotations" / "1.png").unlink()
    return root


def one_image(root: Path) -> Path:
    return folders.write_folder(root, stems=("0",))


def empty(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    return root


def ade_layout(root: Path) -> Path:
    """ADE20K's folders, with ids that ADE20K, COCO-Stuff and a custom list read differently."""
    for split in ("training", "validation"):
        folders.write_folder(
            root, images=f"images/{split}", annotations=f"annotations/{split}", classes=None
        )
    return root


def synthetic(root: Path) -> Path:
    write_dataset(root, train=3, val=2, size=(64, 64))
    return root


def above(root: Path) -> Path:
    folders.write_folder(root / "mine")
    return root


FOLDERS = {
    "plain": folders.write_folder,
    "binary": folders.binary,
    "foreground_only": folders.foreground_only,
    "all_ignored": folders.all_ignored,
    "gray_values": folders.gray_values,
    "train_only": lambda root: folders.splits(root, "train"),
    "train_and_dev": lambda root: folders.splits(root, "train", "dev"),
    "capitals": lambda root: folders.splits(root, "Train", "Val"),
    "train_and_test": lambda root: folders.splits(root, "train", "test"),
    "no_class_list": lambda root: folders.splits(root, "train", "val", classes=None),
    "masks_with_addition": folders.masks_with_addition,
    "deeper": folders.deeper,
    "decomposed": folders.decomposed,
    "pascal": folders.pascal,
    "split_first": folders.split_first,
    "one_bit": folders.one_bit,
    "bmp": partial(folders.other_format, ending="bmp"),
    "jpg": partial(folders.other_format, ending="jpg"),
    "link_back": folders.link_back,
    "wrong_ids": wrong_ids,
    "damaged_label": damaged_label,
    "damaged_image": damaged_image,
    "other_size": other_size,
    "without_label": without_label,
    "one_image": one_image,
    "empty": empty,
    "missing": lambda root: root / "nowhere",
    "ade_layout": ade_layout,
    "synthetic": synthetic,
    "above": above,
}
# Presets of one dataset differ in their network alone, which the check does not look at.
DATASETS = {load_config(name).data.dataset: name for name in list_presets()}
CUSTOM = [name for name in list_presets() if load_config(name).data.dataset == "custom"]


def check_passes(config: Config) -> bool:
    """What `cgrseg data check` says: no errors, and nothing that it cannot describe."""
    try:
        return check_dataset(config.data, evaluate=config.train.evaluate).ok
    except CGRSegError:
        return False


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("preset", DATASETS.values())
def test_the_check_passes_if_and_only_if_training_starts(
    tmp_path: Path, preset: str, folder: str
) -> None:
    root = FOLDERS[folder](tmp_path)
    config = load_config(preset, {"data.root": str(root)})
    assert check_passes(config) == training_starts(config)


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize(
    "settings",
    [
        {"train.evaluate": False},
        {"data.label_threshold": 128},
        {"data.zero_is_ignore": True},
        {"data.eval_split": "test"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_with_settings_too(tmp_path: Path, folder: str, settings: dict[str, Any]) -> None:
    root = FOLDERS[folder](tmp_path)
    config = load_config(CUSTOM[0], {"data.root": str(root), **settings})
    assert check_passes(config) == training_starts(config)


@pytest.mark.parametrize("folder", ["binary", "foreground_only", "all_ignored", "train_only"])
def test_nothing_to_learn_is_refused_without_a_check_too(tmp_path: Path, folder: str) -> None:
    root = FOLDERS[folder](tmp_path)
    config = load_config(CUSTOM[0], {"data.root": str(root), "data.check": False})
    with pytest.raises(CGRSegError, match="what to do"):
        DatasetSource(config, find_placement("cpu"))


def test_the_folders_are_of_both_kinds(tmp_path: Path) -> None:
    """The comparison above would hold, too, if everything were refused."""
    passing = {
        name
        for name, make in FOLDERS.items()
        if check_passes(load_config(CUSTOM[0], {"data.root": str(make(tmp_path / name))}))
    }
    assert passing == {
        "plain", "train_and_dev", "capitals", "decomposed", "pascal", "split_first", "one_bit",
        "link_back",
    }  # fmt: skip
