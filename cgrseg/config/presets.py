"""The runs that CGRSeg knows by name: a table of networks times a table of datasets.

`cgrseg-t_ade20k_160k` is row `cgrseg_t` with row `ade20k`.  ADE20K's settings are those
of the published config files.  The 80k schedules of COCO-Stuff-10k and Pascal Context
were never published: they are ours, with the published optimiser and half the
iterations.  CamVid, your own folder, fine-tuning and the embedded data are ours too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cgrseg.config.overrides import merge
from cgrseg.config.schema import Config
from cgrseg.config.validation import build
from cgrseg.errors import ConfigError
from cgrseg.variants import VARIANTS

_PLUS = "_plus"


@dataclass(frozen=True)
class Recipe:
    """How a dataset is trained and tested.

    Attributes:
        suffix: last part of a run's name.
        about: what it is and where its numbers come from, in a sentence.
        settings: what differs from the defaults of the schema (the published ADE20K run).
    """

    suffix: str
    about: str
    settings: Mapping[str, Any]


DATASETS: dict[str, Recipe] = {
    "ade20k": Recipe(
        "ade20k_160k",
        "ADE20K, 150 classes; the published settings.",
        {"data": {"dataset": "ade20k", "root": "data/ade/ADEChallengeData2016"}},
    ),
    "coco_stuff10k": Recipe(
        "coco-stuff10k_80k",
        "COCO-Stuff-10k, 171 classes; 80,000 iterations are our choice, none were published.",
        {
            "data": {"dataset": "coco_stuff10k", "root": "data/coco_stuff10k"},
            "schedule": {"max_iters": 80_000},
        },
    ),
    "pascal_context59": Recipe(
        "pascal-context59_80k",
        "Pascal Context, 59 classes; 80,000 iterations are our choice, none were published.",
        {
            "data": {"dataset": "pascal_context59", "root": "data/VOCdevkit/VOC2010"},
            "augment": {"scale": [520, 520], "crop_size": [480, 480]},
            "test": {
                "scale": [520, 520],
                "resize": "keep_ratio_divisible",
                "crop_size": [480, 480],
                "stride": [320, 320],
            },
            "schedule": {"max_iters": 80_000},
        },
    ),
    "camvid": Recipe(
        "camvid",
        "CamVid, 11 classes, street scenes of 480x360: a real run that a laptop finishes. Its "
        "validation frames come from a drive that also trains, so quote data.eval_split=test.",
        {
            "data": {"dataset": "camvid", "root": "data/camvid", "workers": 2},
            "augment": {"scale": [480, 360], "crop_size": [256, 256]},
            "test": {"scale": [480, 360]},
            "optimizer": {"lr": 1e-3, "head_multiplier": 2.0},
            "loss": {"initial_weight": 0.4},
            "schedule": {"max_iters": 1_400, "warmup_iters": 100, "warmup_ratio": 0.01},
            "train": {
                "batch_size": 8,
                "eval_interval": 700,
                "precision": "auto",
                "channels_last": True,
            },
        },
    ),
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
    "synthetic": Recipe(
        "synthetic",
        "The embedded scenes of `cgrseg data synth`; what `cgrseg demo` trains.",
        {
            "data": {"dataset": "synthetic", "root": "data/synthetic", "workers": 1},
            # Scenes of 192x192: the smallest ratio still gives a whole crop.
            "augment": {"scale": [192, 192], "ratio_range": [0.67, 1.1], "crop_size": [128, 128]},
            "test": {"scale": [256, 192]},
            "optimizer": {"lr": 1e-3, "head_multiplier": 2.0},
            "schedule": {"max_iters": 300, "warmup_iters": 20, "warmup_ratio": 0.05},
            "train": {
                "batch_size": 8,
                "eval_interval": 100,
                "log_interval": 10,
                "precision": "auto",
                "channels_last": True,
            },
        },
    ),
}
"""Dataset to its recipe."""


def list_presets() -> list[str]:
    """Names that :func:`named_preset` knows, e.g. 'cgrseg-t_ade20k_160k'."""
    return [preset_name(model, recipe) for recipe in DATASETS.values() for model in VARIANTS]


def preset_name(model: str, recipe: Recipe) -> str:
    """Name of the preset of one network on one dataset."""
    return f"{model.replace('_', '-')}_{recipe.suffix}"


def preset(model: str, dataset: str, recipe: str = "published", **changes: Any) -> Config:
    """The config of one network on one dataset.

    Args:
        model: 'cgrseg_t', 'cgrseg_b' or 'cgrseg_l'.
        dataset: a row of `DATASETS`: 'ade20k', 'coco_stuff10k', 'pascal_context59',
            'camvid', 'custom', 'finetune' or 'synthetic'.
        recipe: 'published', or 'plus': with what was measured to raise accuracy, see
            :func:`plus`.
        **changes: settings laid over it: `name="mine"`, or tables such as
            `data={"root": "data/mine"}` and `schedule={"max_iters": 2000}`.

    Raises:
        ConfigError: an unknown network, dataset, recipe or setting, or a value that does not
            fit.
    """
    _check_known("model", model, VARIANTS)
    _check_known("dataset", dataset, DATASETS)
    _check_known("recipe", recipe, RECIPES)
    row = DATASETS[dataset]
    settings: dict[str, Any] = {
        "name": preset_name(model, row),
        "model": {"name": model},
        **row.settings,
    }
    return build(merge(RECIPES[recipe](build(settings)).model_dump(), changes))


def plus(config: Config) -> Config:
    """The config with what was measured to raise accuracy: twice the iterations and warm-up.

    Of the changes that were tried one at a time on CamVid it alone gained more than seeds
    differ by; `benchmarks/results/accuracy.md` has the table, and says how small the runs were.
    """
    schedule = config.schedule
    changes = {
        "name": config.name + _PLUS,
        "schedule.max_iters": 2 * schedule.max_iters,
        "schedule.warmup_iters": 2 * schedule.warmup_iters,
    }
    return build(merge(config.model_dump(), changes))


RECIPES: dict[str, Callable[[Config], Config]] = {"published": lambda config: config, "plus": plus}
"""What can be laid between a dataset's settings and one's own."""


def named_preset(name: str) -> Config | None:
    """The config of a name from :func:`list_presets`; None when there is no such name.

    Each takes `_plus` at its end: 'cgrseg-t_camvid_plus'.
    """
    plain = name.removesuffix(_PLUS)
    for model in VARIANTS:
        for dataset, row in DATASETS.items():
            if plain == preset_name(model, row):
                return preset(model, dataset, "published" if plain == name else "plus")
    return None


def _check_known(what: str, name: str, table: Mapping[str, Any]) -> None:
    if name not in table:
        raise ConfigError(
            f"preset, {what}",
            found=f"{name!r} is not known",
            expected="one of " + ", ".join(table),
            remedy="choose one of these, and lay your own settings over it",
        )
