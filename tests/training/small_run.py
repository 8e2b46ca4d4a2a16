"""A training small enough for tests: 8 images of 64x64, CGRSeg-T with one context block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from cgrseg.config.schema import Config


def write_dataset(root: Path, train: int = 6, val: int = 2) -> Path:
    """Coloured bands with noise, in the layout of a custom dataset."""
    rng = np.random.default_rng(0)
    colours = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]], dtype=np.float64)
    for split, count in (("train", train), ("val", val)):
        images, labels = root / "images" / split, root / "annotations" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for number in range(count):
            label = np.zeros((64, 64), dtype=np.uint8)
            label[int(rng.integers(10, 30)) :] = 1
            label[int(rng.integers(35, 55)) :, int(rng.integers(10, 40)) :] = 2
            label[:2] = 255
            picture = colours[np.minimum(label, 2)] + rng.normal(0, 20, (64, 64, 3))
            cv2.imwrite(str(images / f"{number}.png"), picture.clip(0, 255).astype(np.uint8))
            cv2.imwrite(str(labels / f"{number}.png"), label)
    (root / "classes.txt").write_text("sky\nground\nthing\n")
    return root


def small_config(root: Path, work_dir: Path, **changes: Any) -> Config:
    """Settings of the small run; `changes` are dotted names with `__` for the dot."""
    settings: dict[str, Any] = {
        "name": "small",
        "work_dir": str(work_dir),
        "model": {"pretrained": None, "drop_path": 0.2, "context_blocks": 1},
        "data": {"dataset": "custom", "root": str(root), "workers": 0},
        "augment": {"scale": [64, 64], "crop_size": [64, 64]},
        "test": {"resize": "none"},
        "optimizer": {"lr": 1e-3},
        "schedule": {"max_iters": 6, "warmup_iters": 2},
        "train": {
            "batch_size": 2,
            "eval_interval": 1000,
            "evaluate": False,
            "log_interval": 1,
            "seed": 7,
        },
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        settings.setdefault(section, {})[name] = value
    return Config.model_validate(settings)


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    """The state dict of a checkpoint."""
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return found


def differing(first: Path, second: Path) -> list[str]:
    """Names of the entries that are not equal bit for bit in two checkpoints."""
    one, other = weights_of(first), weights_of(second)
    assert one.keys() == other.keys()
    assert len(one) > 850
    return [name for name in one if not torch.equal(one[name], other[name])]
