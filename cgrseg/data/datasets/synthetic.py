"""The procedural scenes of `cgrseg data synth`, written in the layout of ADE20K.

Nothing has to be fetched for them: they are drawn.  Raw 0 is the ignored border.
"""

from __future__ import annotations

from cgrseg.data.label_rules import LabelRule
from cgrseg.data.spec import DatasetSpec, SplitLayout
from cgrseg.data.synthetic.classes import SYNTHETIC_CLASSES, SYNTHETIC_PALETTE

SPEC = DatasetSpec(
    name="synthetic",
    title="Procedural scenes",
    classes=SYNTHETIC_CLASSES,
    palette=SYNTHETIC_PALETTE,
    label_rule=LabelRule.reduce_zero(len(SYNTHETIC_CLASSES)),
    splits={
        "train": SplitLayout(images="images/training", labels="annotations/training"),
        "val": SplitLayout(images="images/validation", labels="annotations/validation"),
    },
    default_root="data/synthetic",
    how_to_get="draw it: `cgrseg data synth data/synthetic`",
    notes="0 is ignored.",
)
