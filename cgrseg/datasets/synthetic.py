"""The procedural scenes of `cgrseg data synth`, written in the layout of ADE20K.

Nothing has to be fetched for them: they are drawn.  Raw 0 is the ignored border.
"""

from __future__ import annotations

from cgrseg.datasets.label_rules import LabelRule
from cgrseg.datasets.spec import DatasetSpec, Recipe, SplitLayout, class_table

CLASSES, PALETTE = class_table("""
    sky 8bbee8, mountain 927696, field c4ce70, water 3478ba, road 5c5c68, building d67654,
    tree 2e8452, fence f0dea8, crate 9e622c, ball e83e60, balloon 9252d6
""")
"""In training-id order; class k is stored as k + 1."""

SPEC = DatasetSpec(
    name="synthetic",
    title="Procedural scenes",
    classes=CLASSES,
    palette=PALETTE,
    label_rule=LabelRule.reduce_zero(len(CLASSES)),
    splits={
        "train": SplitLayout(images="images/training", labels="annotations/training"),
        "val": SplitLayout(images="images/validation", labels="annotations/validation"),
    },
    default_root="data/synthetic",
    how_to_make="draw it: `cgrseg data synth data/synthetic`",
    notes="0 is ignored.",
    order=90,
    recipe=Recipe(
        "synthetic",
        "The embedded scenes of `cgrseg data synth`; what `cgrseg demo` trains.",
        {
            "model": {"pretrained": None},
            "data": {"workers": 1},
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
    shares_folders_of="ade20k",
)
