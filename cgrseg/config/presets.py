"""Presets: configs by name, one per variant and dataset.

`cgrseg-t_ade20k_160k` is row `cgrseg_t` with the recipe of `ade20k` (:mod:`cgrseg.datasets`).
ADE20K's settings are those of the published config files.  The 80k schedules of COCO-Stuff-10k
and Pascal Context were never published: they are ours, with the published optimizer and half the
iterations.  CamVid, your own folder, fine-tuning and the embedded data are ours too.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cgrseg.config.schema import Config
from cgrseg.config.settings import build, merge
from cgrseg.datasets import get_spec, list_specs
from cgrseg.datasets.spec import Recipe
from cgrseg.errors import ConfigError
from cgrseg.variants import VARIANTS

_PLUS = "_plus"

_OWN_FOLDER = {
    "custom": Recipe(
        "custom",
        "Your own folder: images/, annotations/ and classes.txt below data.root.",
        {
            "data": {"dataset": "custom", "root": "data/custom"},
            "schedule": {"max_iters": 20_000, "warmup_iters": 500},
            "train": {"batch_size": 8, "eval_interval": 1_000, "precision": "auto"},
        },
    ),
    "finetune": Recipe(
        "finetune",
        "A few hundred images of your own, starting from a trained checkpoint given as "
        "train.load_from: half the rate, a short schedule, frequent evaluation.",
        {
            "data": {"dataset": "custom", "root": "data/custom"},
            "optimizer": {"lr": 6e-5},
            "schedule": {"max_iters": 4_000, "warmup_iters": 200},
            "loss": {"average": "valid"},
            "train": {"batch_size": 8, "eval_interval": 250, "precision": "auto"},
        },
    ),
}


def _dataset_recipes() -> dict[str, Recipe]:
    """Recipes of the datasets, with name and root of the dataset among the settings."""
    recipes = {}
    for spec in map(get_spec, list_specs()):
        if spec.recipe is not None:
            settings = dict(spec.recipe.settings)
            known = {"dataset": spec.name, "root": spec.default_root}
            settings["data"] = {**known, **settings.get("data", {})}
            recipes[spec.name] = replace(spec.recipe, settings=settings)
    return recipes


DATASETS: dict[str, Recipe] = {**_dataset_recipes(), **_OWN_FOLDER}
"""Dataset to its recipe."""


def list_presets() -> list[str]:
    """Names of all presets, e.g. 'cgrseg-t_ade20k_160k'."""
    return [preset_name(model, recipe) for recipe in DATASETS.values() for model in VARIANTS]


def preset_name(model: str, recipe: Recipe) -> str:
    """Name of the preset of a variant on a dataset."""
    return f"{model.replace('_', '-')}_{recipe.suffix}"


def preset(model: str, dataset: str, recipe: str = "published", **changes: Any) -> Config:
    """Config of a variant on a dataset.

    Args:
        model: 'cgrseg_t', 'cgrseg_b' or 'cgrseg_l'.
        dataset: a row of `DATASETS`, such as 'ade20k', 'custom' or 'finetune'.
        recipe: 'published', or 'plus' for :func:`plus`.
        **changes: settings that replace those of the preset: `name="mine"`, or tables such as
            `data={"root": "data/mine"}` and `schedule={"max_iters": 2000}`.

    Raises:
        ConfigError: an unknown variant, dataset, recipe or setting, or a wrong value.
    """
    _check_known("model", model, VARIANTS)
    _check_known("dataset", dataset, DATASETS)
    _check_known("recipe", recipe, RECIPES)
    row = DATASETS[dataset]
    settings: dict[str, Any] = {
        "name": preset_name(model, row),
        **row.settings,
        "model": {**row.settings.get("model", {}), "name": model},
    }
    return build(merge(RECIPES[recipe](build(settings)).model_dump(), changes))


PLUS: dict[str, Any] = {"optimizer.name": "muon", "loss.lovasz_weight": 1.0}
"""Settings that raised accuracy for the same iterations, by dotted name."""


def plus(config: Config) -> Config:
    """The config with :data:`PLUS`, and precision "auto" as in all presets that are not published.

    Each change was tried alone on CamVid from random weights, and both together with two seeds:
    `benchmarks/results/accuracy.md` has the tables, and what was not run.
    """
    changes = {"name": config.name + _PLUS, **PLUS, "train.precision": "auto"}
    return build(merge(config.model_dump(), changes))


RECIPES: dict[str, Callable[[Config], Config]] = {"published": lambda config: config, "plus": plus}
"""Changes applied between the dataset's settings and the user's, by name."""


def named_preset(name: str) -> Config | None:
    """Config of a preset, also with the suffix `_plus`; None: there is no such preset."""
    plain = name.removesuffix(_PLUS)
    for model in VARIANTS:
        for dataset, row in DATASETS.items():
            if plain == preset_name(model, row):
                return preset(model, dataset, "published" if plain == name else "plus")
    return None


def config_file(
    head: str, base: str, changes: Mapping[str, Any], reasons: Mapping[str, str] | None = None
) -> str:
    """Text of a Python config file.

    Args:
        head: comment at the top, without number signs.
        base: name of the preset that the settings replace those of.
        changes: settings by dotted name.
        reasons: dotted name to a comment above that setting.
    """
    lines = [*(f"# {line}".rstrip() for line in head.splitlines()), ""]
    lines += ["from cgrseg.config import load_config", ""]
    lines += ["config = load_config(", f'    "{base}",', "    {"]
    for key, value in changes.items():
        reason = textwrap.wrap((reasons or {}).get(key, ""), 88)
        lines += [f"        # {line}" for line in reason] + [f"        {key!r}: {value!r},"]
    return "\n".join([*lines, "    },", ")", ""])


def _check_known(what: str, name: str, table: Mapping[str, Any]) -> None:
    if name not in table:
        raise ConfigError(
            f"preset, {what}",
            found=f"{name!r} is not known",
            expected="one of " + ", ".join(table),
            remedy="choose one of these, and lay your own settings over it",
        )
