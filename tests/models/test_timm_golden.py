"""timm's EfficientFormerV2 against ours: names, and features with geometry-true biases.

The golden files and the draw rules are explained in `tests/golden/TIMM.md`.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cgrseg.models import create_model, load_weights
from cgrseg.models.efficientformer_v2 import EfficientFormerV2
from cgrseg.models.name_mapping import from_timm

VARIANTS = tuple(f"efficientformerv2_{size}" for size in ("s0", "s1", "s2", "l"))
# What a segmentation backbone has beside an ImageNet one (last parts of names).
SEGMENTATION_ONLY = {"attention_biases_seg", "attention_bias_idxs", "attention_bias_idxs_seg"}
# Exchanging q and k of every token mixer moves S1's features by 1e-4 only: no looser bound.
TOLERANCE = 1e-5

Names = dict[str, dict[str, list[Any]]]


@pytest.fixture(scope="module")
def script(repository: Path) -> ModuleType:
    """The script that made the golden files: its draw rules are the tests' own."""
    spec = importlib.util.spec_from_file_location(
        "make_timm_golden", repository / "scripts" / "make_timm_golden.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def names(golden_dir: Path) -> Names:
    """Variant -> timm's name -> [shape, dtype]."""
    listing: Names = json.loads((golden_dir / "timm_keys.json").read_text(encoding="utf-8"))
    return listing


def drawn(script: ModuleType, entries: dict[str, list[Any]]) -> dict[str, Tensor]:
    """timm's state dict with values drawn from its names."""
    state = {}
    for name, (shape, dtype) in entries.items():
        value = script.draw(name, tuple(shape))
        state[name] = (
            torch.zeros(shape, dtype=getattr(torch, dtype))
            if value is None
            else torch.from_numpy(value)
        )
    return state


def features_of(backbone: EfficientFormerV2, script: ModuleType) -> list[Tensor]:
    """Features of the golden input."""
    image = script.generator(script.INPUT_NAME).standard_normal(script.INPUT_SHAPE)
    with torch.no_grad():
        features: list[Tensor] = backbone.eval()(torch.from_numpy(image.astype(np.float32)))
    return features


def assert_equals_timm(features: list[Tensor], variant: str, golden_dir: Path) -> None:
    with np.load(golden_dir / "timm_features.npz") as golden:
        for stage, feature in enumerate(features):
            expected = golden[f"{variant}_stage{stage}"]
            sampled = feature[0, ::8, ::2, ::2].numpy()
            assert sampled.shape == expected.shape
            difference = np.linalg.norm(sampled - expected) / np.linalg.norm(expected)
            assert difference < TOLERANCE, f"stage {stage}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_name_of_timm_finds_its_place(variant: str, names: Names) -> None:
    entries = names[variant]
    state = {
        name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for name, (shape, dtype) in entries.items()
    }
    translated = {name: (value.shape, value.dtype) for name, value in from_timm(state).items()}
    ours = {
        name: (value.shape, value.dtype)
        for name, value in EfficientFormerV2(variant).state_dict().items()
        if name.rpartition(".")[2] not in SEGMENTATION_ONLY
    }
    assert translated == ours
    classifier = [name for name in entries if re.match(r"(norm|head|head_dist)\.", name)]
    assert len(classifier) == 9  # batch norm 5, two linear layers 2 each
    assert len(translated) == len(entries) - len(classifier)  # no two names fell together


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_equal_timm(
    variant: str, names: Names, script: ModuleType, golden_dir: Path
) -> None:
    backbone = EfficientFormerV2(variant, attention_bias="geometric")
    outcome = backbone.load_state_dict(from_timm(drawn(script, names[variant])), strict=False)
    assert outcome.unexpected_keys == []
    leaves = {name.rpartition(".")[2] for name in outcome.missing_keys}
    assert leaves == {"attention_bias_idxs"}  # an unused constant
    assert_equals_timm(features_of(backbone, script), variant, golden_dir)


def test_load_weights_reads_a_file_of_timm(
    names: Names, script: ModuleType, golden_dir: Path, tmp_path: Path
) -> None:
    variant = "efficientformerv2_s1"
    path = tmp_path / "model.safetensors"
    save_file(drawn(script, names[variant]), path)
    model = create_model("cgrseg_t", attention_bias="geometric")
    report = load_weights(model, path, part="backbone")
    assert (report.missing, report.unexpected, report.mismatched) == ([], [], [])
    assert len(report.loaded) == len(names[variant]) - 9  # all but the classifier
    assert_equals_timm(features_of(model.backbone, script), variant, golden_dir)
