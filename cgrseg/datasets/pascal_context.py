"""Pascal Context (Mottaghi et al., CVPR 2014): 59 classes, or 60 with the background.

The two share their files.  With 60 classes raw 0 is learned as "background"; with 59,
the form of the published numbers, it is ignored and every other id moves down by one.
Names, order and colors are those of mmsegmentation and the Detail toolkit.
"""

from __future__ import annotations

from cgrseg.datasets.label_rules import LabelRule
from cgrseg.datasets.spec import Color, DatasetSpec, Recipe, SplitLayout

CLASSES: tuple[tuple[str, Color], ...] = (
    ("background", (120, 120, 120)),
    ("aeroplane", (180, 120, 120)),
    ("bag", (6, 230, 230)),
    ("bed", (80, 50, 50)),
    ("bedclothes", (4, 200, 3)),
    ("bench", (120, 120, 80)),
    ("bicycle", (140, 140, 140)),
    ("bird", (204, 5, 255)),
    ("boat", (230, 230, 230)),
    ("book", (4, 250, 7)),
    ("bottle", (224, 5, 255)),
    ("building", (235, 255, 7)),
    ("bus", (150, 5, 61)),
    ("cabinet", (120, 120, 70)),
    ("car", (8, 255, 51)),
    ("cat", (255, 6, 82)),
    ("ceiling", (143, 255, 140)),
    ("chair", (204, 255, 4)),
    ("cloth", (255, 51, 7)),
    ("computer", (204, 70, 3)),
    ("cow", (0, 102, 200)),
    ("cup", (61, 230, 250)),
    ("curtain", (255, 6, 51)),
    ("dog", (11, 102, 255)),
    ("door", (255, 7, 71)),
    ("fence", (255, 9, 224)),
    ("floor", (9, 7, 230)),
    ("flower", (220, 220, 220)),
    ("food", (255, 9, 92)),
    ("grass", (112, 9, 255)),
    ("ground", (8, 255, 214)),
    ("horse", (7, 255, 224)),
    ("keyboard", (255, 184, 6)),
    ("light", (10, 255, 71)),
    ("motorbike", (255, 41, 10)),
    ("mountain", (7, 255, 255)),
    ("mouse", (224, 255, 8)),
    ("person", (102, 8, 255)),
    ("plate", (255, 61, 6)),
    ("platform", (255, 194, 7)),
    ("pottedplant", (255, 122, 8)),
    ("road", (0, 255, 20)),
    ("rock", (255, 8, 41)),
    ("sheep", (255, 5, 153)),
    ("shelves", (6, 51, 255)),
    ("sidewalk", (235, 12, 255)),
    ("sign", (160, 150, 20)),
    ("sky", (0, 163, 255)),
    ("snow", (140, 140, 140)),
    ("sofa", (250, 10, 15)),
    ("table", (20, 255, 0)),
    ("track", (31, 255, 0)),
    ("train", (255, 31, 0)),
    ("tree", (255, 224, 0)),
    ("truck", (153, 255, 0)),
    ("tvmonitor", (0, 0, 255)),
    ("wall", (255, 71, 0)),
    ("water", (0, 235, 255)),
    ("window", (0, 173, 255)),
    ("wood", (31, 0, 255)),
)
"""Name, RGB; row k is stored as k."""


def _split(name: str) -> SplitLayout:
    return SplitLayout(
        images="JPEGImages",
        labels="SegmentationClassContext",
        list_file=f"ImageSets/SegmentationContext/{name}.txt",
    )


_SPLITS = {"train": _split("train"), "val": _split("val"), "test": _split("val")}
_ROOT = "data/VOCdevkit/VOC2010"
_HOW_TO_GET = (
    "fetch VOCtrainval_03-May-2010.tar (1.3 GB) from "
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/ and unpack it into data, so that "
    "data/VOCdevkit/VOC2010/JPEGImages exists; put trainval_merged.json "
    "(https://codalabuser.blob.core.windows.net/public/trainval_merged.json) into that VOC2010 "
    "folder; then make labels and lists with `cgrseg data convert pascal-context`"
)

SPEC_59 = DatasetSpec(
    name="pascal_context59",
    title="Pascal Context (59 classes)",
    classes=tuple(name for name, _ in CLASSES[1:]),
    palette=tuple(color for _, color in CLASSES[1:]),
    label_rule=LabelRule.reduce_zero(len(CLASSES) - 1),
    splits=_SPLITS,
    default_root=_ROOT,
    how_to_get=_HOW_TO_GET,
    image_suffixes=(".jpg", ".jpeg"),
    notes="Raw 0 (background) is ignored.",
    order=40,
    recipe=Recipe(
        "pascal-context59_80k",
        "Pascal Context, 59 classes; 80,000 iterations are our choice, none were published.",
        {
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
    known_by_class_count=True,
)

SPEC_60 = DatasetSpec(
    name="pascal_context60",
    title="Pascal Context (59 classes and background)",
    classes=tuple(name for name, _ in CLASSES),
    palette=tuple(color for _, color in CLASSES),
    label_rule=LabelRule.identity(len(CLASSES)),
    splits=_SPLITS,
    default_root=_ROOT,
    how_to_get=_HOW_TO_GET,
    image_suffixes=(".jpg", ".jpeg"),
    notes="Raw 0 (background) is a class.",
    order=50,
    shares_folders_of="pascal_context59",
)
